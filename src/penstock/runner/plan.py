"""What a file would take, before anything is sent: rows, tokens, dollars, time, and which limit decides.

The time is a lower bound by the limits alone, as the summary's optimum is; how long answers take is not known yet.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from penstock._numbers import number_of, show_dollars, show_seconds
from penstock.runner.batch.parts import HEADROOM, QueueLimits, Sizer
from penstock.runner.group import Group
from penstock.runner.place import LimitsOf
from penstock.runner.prices import Prices, output_bound
from penstock.runner.source import Rejected, Row
from penstock.runner.spilled import IdSet

__all__ = ["ModelPlan", "Plan", "make_plan", "plan_sentences"]

WINDOW = 86_400.0
"""Seconds within which the service ends a batch."""


@dataclass(slots=True)
class ModelPlan:
    """What the rows for one model take.

    Attributes:
        rows: How many.
        tokens: That are sent, as the limits count them.
        images: That are made.
        bounded: Rows that bound their answers.
        output_tokens: What those may answer at most, together.
        input_dollars: For the tokens that are sent; None: the price is not known.
        output_dollars: For the answers that are bounded, at most; None: the price is not known.
        batches: That the Batch API would take for them.
    """

    rows: int = 0
    tokens: float = 0.0
    images: float = 0.0
    bounded: int = 0
    output_tokens: float = 0.0
    input_dollars: float | None = None
    output_dollars: float | None = None
    batches: int = 0


@dataclass(slots=True)
class Plan:
    """What a file takes.

    Attributes:
        rows: Rows that were read, bad ones included.
        sendable: Rows that would be sent.
        problems: How many rows have each code of error; `request_too_large` and `duplicate_custom_id` among them.
        first: The first line with each of those codes.
        models: By model.
        limits: For each limit: which, of what models, the work, and the seconds that it alone takes.
        seconds: That the limits take at least; None: they are not known.
        binding: The limit that takes so long; None: none does.
        batch_share: What the Batch API takes, of the dollars.
        batch_windows: Windows of a day that the Batch API takes at most, one after the other, since a model's queue
            holds so many tokens; 1 unless said otherwise.
    """

    rows: int = 0
    sendable: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    models: dict[str, ModelPlan] = field(default_factory=dict)
    limits: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    binding: str | None = None
    batch_share: float = 0.5
    batch_windows: int = 1

    def as_json(self) -> dict[str, Any]:
        """The same as plain objects."""
        return {
            "rows": self.rows,
            "sendable": self.sendable,
            "problems": {
                code: {"rows": count, "first_line": self.first[code]} for code, count in self.problems.items()
            },
            "models": {
                model: {name: getattr(one, name) for name in ModelPlan.__slots__} for model, one in self.models.items()
            },
            "limits": self.limits,
            "seconds": self.seconds,
            "binding": self.binding,
            "batch": {
                "batches": sum(one.batches for one in self.models.values()),
                "dollars": _times(self.dollars, self.batch_share),
                "at_most_seconds": self.batch_windows * WINDOW,
            },
        }

    @property
    def dollars(self) -> float | None:
        """What all that is sent costs, and the answers that are bounded, at most.

        None: the price of a model is not known.
        """
        total = 0.0
        for one in self.models.values():
            if one.input_dollars is None or one.output_dollars is None:
                return None
            total += one.input_dollars + one.output_dollars
        return total


def make_plan(
    entries: Iterable[tuple[int, bytes | None]],
    read: Callable[[int, bytes | None], Row | Rejected],
    limits_of: LimitsOf,
    prices: Prices,
    rows: int | None = None,
    queue_tokens: float | None = None,
) -> Plan:
    """Go over a file.

    Args:
        entries: Its rows: (number, bytes).
        read: How one is read.
        limits_of: The limits of a model. None: they are not known before its first answer.
        prices: What models cost.
        rows: How many rows are looked at, at most.
        queue_tokens: Tokens that all batches of a model may hold; None: not said.
    """
    plan, seen, groups = Plan(batch_share=prices.batch), IdSet(), dict[str, Group]()
    sizer = Sizer(QueueLimits(queue_tokens))
    work: dict[tuple[str, str], float] = {}
    for number, line in entries:
        if rows is not None and plan.rows >= rows:
            break
        plan.rows += 1
        row = read(number, line)
        if isinstance(row, Rejected):
            _problem(plan, row.code, number)
            continue
        if not seen.add(row.name):
            _problem(plan, "duplicate_custom_id", number)
            continue
        try:
            name, limits = limits_of(row.model)
        except ValueError:
            _problem(plan, "unknown_model", number)
            continue
        group = groups.get(name)
        if group is None:
            group = groups[name] = Group(name, limits)
        if group.too_large(row) is not None:
            _problem(plan, "request_too_large", number)
            continue
        plan.sendable += 1
        model = plan.models.setdefault(row.model, ModelPlan())
        _count(model, row, prices)
        model.batches += sizer.begins_another(row)
        for unit, units in row.cost.items():
            work[name, unit] = work.get((name, unit), 0.0) + units
    _decide(plan, groups, work)
    queue = max((model.tokens for model in plan.models.values()), default=0.0) / (queue_tokens or math.inf)
    plan.batch_windows = max(1, math.ceil(queue / HEADROOM))
    return plan


def _problem(plan: Plan, code: str, number: int) -> None:
    plan.problems[code] += 1
    plan.first.setdefault(code, number)


def _count(model: ModelPlan, row: Row, prices: Prices) -> None:
    tokens, bound = row.cost.get("tokens", 0.0), output_bound(row)
    model.rows += 1
    model.tokens += tokens
    model.images += row.cost.get("images", 0.0)
    model.bounded += bound > 0
    model.output_tokens += bound
    price = prices.price(row.model)
    if price is not None:
        model.input_dollars = (model.input_dollars or 0.0) + tokens * price.input
        model.output_dollars = (model.output_dollars or 0.0) + bound * price.output


def _decide(plan: Plan, groups: dict[str, Group], work: dict[tuple[str, str], float]) -> None:
    for name, group in groups.items():
        for unit, those in group.allowances.items():
            for each in those:
                seconds = each.shortest(work.get((name, unit), 0.0))
                plan.limits.append(
                    {
                        "unit": unit,
                        "limit": str(each.limit),
                        "models": name or None,
                        "work": work.get((name, unit), 0.0),
                        "seconds": seconds,
                    }
                )
    if plan.limits:
        longest = max(plan.limits, key=lambda one: float(one["seconds"]))
        plan.seconds = longest["seconds"]
        if plan.seconds:
            plan.binding = (
                f"{longest['unit']}{' of ' + longest['models'] if longest['models'] else ''} ({longest['limit']})"
            )


def plan_sentences(plan: Plan, prices: Prices) -> Iterator[str]:
    """The plan as lines for people."""
    yield f"{number_of(plan.rows, 'row')}: {plan.sendable:,} would be sent, {plan.rows - plan.sendable:,} would not"
    for code, count in plan.problems.most_common():
        yield f"{code}: {number_of(count, 'row')}, the first in line {plan.first[code]}"
    known = [one for one in plan.models.values() if one.input_dollars is not None]
    for model, one in plan.models.items():
        line = f"{model or 'no model'}: {number_of(one.rows, 'row')}, {number_of(round(one.tokens), 'token')}"
        if one.images:
            line += f", {one.images:,.0f} images"
        if one.input_dollars is None or one.output_dollars is None:
            line += "; its price is not known"
        else:
            line += f"; {show_dollars(one.input_dollars, 4)} for what is sent"
            if one.bounded:
                rows = number_of(one.bounded, "row")
                line += f", at most {show_dollars(one.output_dollars, 4)} for the answers of {rows} that bound them"
        yield line
    if len(known) > 1:
        yield f"all models: {show_dollars(sum(one.input_dollars or 0.0 for one in known), 4)} for what is sent"
    if known:
        yield f"prices as of {prices.as_of}"
    for limit in plan.limits:
        yield (
            f"{limit['unit']}{' of ' + limit['models'] if limit['models'] else ''} ({limit['limit']}): "
            f"{limit['work']:,.0f}, which takes {show_seconds(limit['seconds'])}"
        )
    if plan.seconds is None:
        yield (
            "how long it takes is not known: the server's answers will show its limits (or give --limits or --account)"
        )
    elif plan.binding is None:
        yield "no limit is reached: it takes as long as the answers do"
    else:
        yield f"at least {show_seconds(plan.seconds)}, by {plan.binding}"
    yield from _side_by_side(plan)


def _side_by_side(plan: Plan) -> Iterator[str]:
    """Both ways to send it, with what they cost and how long they take."""
    batches = sum(one.batches for one in plan.models.values())
    if not batches:
        return
    now, later = (
        "price not known" if dollars is None else show_dollars(dollars, 4)
        for dollars in (plan.dollars, _times(plan.dollars, plan.batch_share))
    )
    time = "as long as the limits take" if plan.seconds is None else f"at least {show_seconds(plan.seconds)}"
    hours = f"within {24 * plan.batch_windows} h, mostly sooner"
    yield f"one by one:    {now:>16}   {time}"
    yield f"--via batch:   {later:>16}   {hours}, in {number_of(batches, 'batch', 'batches')}"


def _times(dollars: float | None, share: float) -> float | None:
    return None if dollars is None else dollars * share
