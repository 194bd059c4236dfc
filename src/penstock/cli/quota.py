"""`penstock quota`: show and change caps per user while programs run. The caps are those of `usage.Quotas`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock._text import visible
from penstock.cli.frame import app
from penstock.cli.terminal import Fault, table, write
from penstock.runner.files import is_special
from penstock.stores import RedisStore, SQLiteStore
from penstock.stores._redis_url import is_address
from penstock.usage import Quota, Quotas, Review
from penstock.usage.words import a_period, counted, moment, named

__all__ = ["quota"]

quota: typer.Typer = typer.Typer(
    help="List, set and reset caps per user, of penstock.usage.Quotas.", no_args_is_help=True
)
app.add_typer(quota, name="quota")

Where = Annotated[
    str, typer.Argument(metavar="STORE", help="The SQLite file, or redis://…, that the program's Quotas use.")
]
User = Annotated[str, typer.Argument(metavar="USER", help="The user, as the program names them.")]
Unit = Annotated[str, typer.Argument(metavar="UNIT", help="requests, tokens, dollars…")]
Name = Annotated[str, typer.Option("--name", help="The name= of the program's Quotas.")]
By = Annotated[str, typer.Option("--by", help="Who decides; it is recorded.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


@contextmanager
def _opened(where: str, name: str, tz: str | None = None, *, makes: bool = False) -> Iterator[Quotas]:
    """The quotas at an address, as long as the context.

    Raises:
        Fault: There are none, or an option is wrong.
    """
    is_server = is_address(where)
    path = Path(where.removeprefix("sqlite:"))
    if not is_server and not makes and not path.exists():
        raise Fault(f"there are no quotas at {path}: a program's Quotas, or penstock quota set, makes the file")
    if not is_server and is_special(path):
        raise Fault(f"{path} is not a regular file, and cannot hold quotas")
    try:
        store = RedisStore(where) if is_server else SQLiteStore(path)
        try:
            with Quotas(store, tz=tz, name=name) as quotas:
                yield quotas
        finally:
            store.close()
    except ValueError as error:
        raise Fault(str(error)) from None


@quota.command("list")
def list_quotas(
    where: Where,
    user: Annotated[str | None, typer.Option("--user", help="Only this user, even if nothing is used.")] = None,
    name: Name = "quota",
    as_json: AsJson = False,
) -> int:
    """Show what each user has used of each cap in this period."""
    with _opened(where, name) as quotas:
        found = quotas.all() if user is None else quotas.of(user)
    if as_json:
        write(json.dumps([{**asdict(one), "remaining": one.remaining} for one in found], indent=2))
    elif found:
        write(
            table(
                ("USER", "UNIT", "PER", "USED", "OF", "LEFT", "AGAIN AT", ""),
                [_row(one) for one in found],
                right={3, 4, 5},
            )
        )
    else:
        write("no caps for anybody" if user is not None else "nobody has used anything, or has caps of their own")
    return 0


def _row(one: Quota) -> tuple[str, ...]:
    notes = ["own cap"] if one.is_own else []
    if one.extra:
        notes.append(f"{counted(one.unit, one.extra)} allowed on top")
    left = counted(one.unit, one.remaining)
    return (
        visible(one.user), one.unit, one.period, counted(one.unit, one.used), counted(one.unit, one.limit), left,
        moment(one.resets_at, one.tz), ", ".join(notes),
    )  # fmt: skip


@quota.command("set")
def set_caps(
    where: Where,
    user: User,
    caps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="UNIT=CAP…",
            help='Such as requests=100/day, dollars=20/month, tokens=unlimited, or "requests=0/day".',
        ),
    ] = None,
    tz: Annotated[
        str | None,
        typer.Option(
            "--tz", help="Time zone in which days, weeks and months begin.", show_default="as of the program's caps"
        ),
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Remove the user's own caps; the caps for everybody apply again.")
    ] = False,
    name: Name = "quota",
) -> int:
    """Give a user caps of their own. Running programs apply them from the next call on."""
    if default == bool(caps):
        raise Fault("give caps for the user, such as requests=100/day, or --default to remove the user's own caps")
    wanted: dict[str, Any] = {}
    for text in caps or ():
        unit, equals, cap = text.partition("=")
        if not equals:
            raise Fault(f"cannot read {text!r}: write it like requests=100/day or dollars=20/month")
        wanted[unit.strip()] = [*wanted.get(unit.strip(), []), cap]
    with _opened(where, name, tz, makes=True) as quotas:
        if default:
            quotas.unset(user)
        else:
            quotas.set(user, wanted)
        found = quotas.of(user)
    for one in found:
        write(
            f"{visible(user)}: "
            f"{named(one.unit, one.limit)} {a_period(one.period)} ({one.tz}), {counted(one.unit, one.used)} used"
        )
    if not found:
        write(f"{visible(user)}: no caps")
    return 0


@quota.command("reset")
def reset(where: Where, user: User, name: Name = "quota") -> int:
    """Set what a user has used back to 0. Exit code 3 if it was 0 already."""
    with _opened(where, name) as quotas:
        was = quotas.reset(user)
    write(f"{visible(user)}: forgotten" if was else f"{visible(user)} has used nothing in {name!r}")
    return 0 if was else 3


@quota.command("reviews")
def reviews(
    where: Where,
    pending: Annotated[bool, typer.Option("--pending", help="Only reviews that are not decided yet.")] = False,
    name: Name = "quota",
    as_json: AsJson = False,
) -> int:
    """Show reviews: calls beyond a cap that were approved, refused, or are not decided yet."""
    with _opened(where, name) as quotas:
        found = quotas.reviews("pending" if pending else None)
    if as_json:
        write(json.dumps([asdict(one) for one in found], indent=2))
    elif found:
        head = ("USER", "UNIT", "PER", "STATE", "ASKED", "ALLOWED", "CALLS", "SINCE", "BY")
        write(table(head, [_review_row(one) for one in found], right={4, 5, 6}))
    else:
        write("no reviews")
    return 0


def _review_row(one: Review) -> tuple[str, ...]:
    return (
        visible(one.user), one.unit, one.period, one.state, counted(one.unit, one.asked),
        counted(one.unit, one.allowed), f"{one.calls}", moment(one.at, one.tz), visible(one.by),
    )  # fmt: skip


@quota.command("approve")
def approve(
    where: Where,
    user: User,
    unit: Unit,
    more: Annotated[
        float | None, typer.Argument(metavar="MORE", help="Units more until the period ends.", show_default="as asked")
    ] = None,
    by: By = "",
    name: Name = "quota",
) -> int:
    """Approve a review: the user may use MORE units until the period ends."""
    with _opened(where, name) as quotas:
        review = quotas.approve(user, unit, more, by=by)
    write(f"{visible(user)}: {named(unit, review.allowed)} more until {moment(review.until, review.tz)}")
    return 0


@quota.command("refuse")
def refuse(where: Where, user: User, unit: Unit, by: By = "", name: Name = "quota") -> int:
    """Refuse a review. No further review of this cap is recorded until the period ends."""
    with _opened(where, name) as quotas:
        review = quotas.refuse(user, unit, by=by)
    write(f"{visible(user)}: no more {unit} until {moment(review.until, review.tz)}")
    return 0
