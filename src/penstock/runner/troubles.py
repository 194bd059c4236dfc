"""What a run does when an attempt brings no answer.

How the attempt may have ended, and what that counts as:

    told to wait                    nothing: a matter of time (`give_up_after`), not of this row
    no connection                   nothing, and nothing was used: one pause for all rows (`outage`)
    server's trouble, answer lost   an attempt; several rows at once and none answered: an outage
    refused for good                the row is given up, and is among the errors
    no answer of a service          the same; what a log-in page or a proxy sends is no row's fault
    the same, or that, for all      the run ends (`addresses`), unless it is about one path of several, or one place
    no money, no key                the run ends, unless it is about one model of several, or one place of several

The hard question is whose trouble it is: the row's, or the server's. A row that fails while others are answered is in
trouble by itself; where none is answered any more, all rows wait for the server. Only the last rows of a run, of
which none is answered for minutes, are given up together.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from penstock import clock, exponential
from penstock._chance import CHANCE
from penstock._numbers import show_seconds
from penstock.llm.endpoints import RequestInFlight
from penstock.llm.failures import Action, Verdict
from penstock.runner import answers
from penstock.runner.addresses import REFUSALS, Addresses
from penstock.runner.place import Place
from penstock.runner.secrets import Secrets
from penstock.runner.settings import Settings
from penstock.runner.summary import Counts
from penstock.runner.work import RefusedReply, Work, ambiguous

__all__ = ["Troubles"]

IN_TROUBLE = 3
"""Rows that fail one after the other, with no answer in between, before that is taken for an outage; one less where it
would cost the row."""

SURE = 300.0
"""Seconds of an outage after which a failure may count against its row: the last few rows may cause the outage."""

OWN_WAITS = 5
"""Times that a row is told to wait, while others are answered, before it waits alone."""

PERSISTENT = 10.0
"""Seconds for which an address must send empty answers, or errors with status 200, before it is left: services under
load send these, to many rows at once."""

_BACKOFF = exponential(first=1, cap=60, jitter="full")
_DOUBT = exponential(first=0.1, cap=1, jitter="full")  # where nothing that answers was the service so far
_PATIENCE = exponential(first=0.05, cap=5, jitter="full")  # for rows that are told again and again to wait a moment
_GATEWAY = frozenset({502, 503, 504, 529})  # what stands in front of a server that is down says


class GiveUp(Protocol):
    """Puts a row among the errors; returns True."""

    def __call__(self, work: Work, code: str, message: str, **more: Any) -> bool:
        """Do it."""
        ...


class Stop(Protocol):
    """Ends the run."""

    def __call__(self, code: str, message: str, status: int | None = None) -> None:
        """Do it; see `Stopped`."""
        ...


class Troubles:
    """Decides about rows whose attempts were not answered. Each method returns whether that ends the row.

    Attributes:
        last_error: What went wrong last, in words; "": nothing.
        addresses: Whether what answers is the service.
    """

    def __init__(
        self,
        settings: Settings,
        counts: Counts,
        places: Sequence[Place],
        *,
        left: Callable[[], Collection[Work] | None],
        give_up: GiveUp,
        stop: Stop,
        say: Callable[[str], None],
    ) -> None:
        """Nothing is wrong.

        Args:
            settings: How to run.
            counts: What happened so far.
            places: Where rows may go.
            left: The rows that are left, if all of them are worked on; None: more will come.
            give_up: Puts a row among the errors.
            stop: Ends the run.
            say: Is told, once each, what a person should know.
        """
        self.last_error: str = ""
        self.addresses: Addresses = Addresses()
        self._settings, self._counts, self._places = settings, counts, places
        self._left = left
        self._give_up, self._stop, self._say = give_up, stop, say
        self._secrets = Secrets(settings.secrets)
        self._long_waits: set[str | int] = set()
        self._said_long_wait = False
        self._answering: set[str] = set()  # models of which the service has answered a row
        self._blocked: dict[str, RefusedReply] = {}
        self._missing: dict[str, RefusedReply] = {}  # paths that are not there
        self._set_aside: list[Work] = []

    def answered(self, work: Work) -> None:
        """A row was answered: whatever failed at its place meanwhile is no outage."""
        group, place, model = work.group, work.group.place, work.row.model
        group.answers += 1
        place.outage.answered()
        if place.in_trouble:
            place.in_trouble.clear()
        if self._long_waits:
            self._long_waits.clear()
        self.addresses.answered(place, work.row.path)
        if model not in self._answering:
            self._answering.add(model)
            self._end_set_aside()

    def is_blocked(self, work: Work) -> bool:
        """Whether the service does not serve the model or the path of a row; then the row ends, or is set aside."""
        missing = self._missing.get(work.row.path)
        if missing is not None:
            return self._give_up_refused(work, missing)
        refused = self._blocked.get(work.row.model)
        if refused is not None:
            self._leave_blocked(work, refused)
        return refused is not None

    def end(self) -> None:
        """Nothing more will be answered: if no row was, the rows whose models were refused had the wrong key."""
        self._end_set_aside()
        if self._set_aside:
            self._end_account(self._blocked[self._set_aside[0].row.model])

    # Connections ------------------------------------------------------------------------------------------------------

    def unreachable(self, work: Work, reason: str, *, is_there: bool = False, is_lasting: bool = False) -> bool:
        """There was no connection: the row waits for the server, and nothing is counted.

        With `is_there` there was one, but not to where the server redirects: the next one proves nothing.
        """
        self.last_error = reason
        work.avoid = work.group
        self._fail_place(work, reason, until_answer=is_there, is_lasting=is_lasting)
        return False

    def lost(self, work: Work, reason: str, *, unreadable: bool = False) -> bool:
        """It was sent, and there is no answer, or none that can be read: it may have been billed.

        To send it once more would only bring, and perhaps cost, the same answer that cannot be read.
        """
        self.last_error = reason
        self._counts.lost += 1
        if self._settings.on_ambiguous == "fail":
            return self._give_up(work, "ambiguous", f"{reason}. {ambiguous(self._settings.named)}")
        work.may_be_billed = True
        if self._server_is_down(work, reason):
            return False
        if unreadable:
            return self._give_up(work, "unreadable_answer", f"{reason}. It was sent, and may have been billed")
        work.failures += 1
        if work.failures >= self._settings.attempts:
            return self._give_up(work, "connection_error", reason)
        work.wait = _BACKOFF.delay(work.failures - 1, None, CHANCE.random())
        return False

    def _fail_place(self, work: Work, reason: str, *, until_answer: bool = False, is_lasting: bool = False) -> None:
        """The place of a row did not serve it. One that stays away is closed; the last one ends the run."""
        place = work.group.place
        over = place.outage.failed(work, reason, until_answer=until_answer, is_lasting=is_lasting)
        if over is not None and not self._close(place, over):
            self._stop("unreachable", over)

    def _close(self, place: Place, reason: str) -> bool:
        """Send nothing there any more; False: there is no other place."""
        if not self._has_others(place):
            return False
        if not place.closed:
            place.closed = reason
            place.outage.give_up()
            self._say(f"nothing more is sent to {place.name}, and the others go on: {reason}")
        return True

    def _has_others(self, place: Place) -> bool:
        """Whether rows may go to any other place."""
        return any(other is not place and not other.closed for other in self._places)

    def _server_is_down(self, work: Work, reason: str) -> bool:
        """Whether it is the server that fails and not this row: so many fail, and none is answered."""
        place = work.group.place
        place.in_trouble.add(work.row.custom_id)
        is_last = work.failures + 1 >= self._settings.attempts
        if len(place.in_trouble) < IN_TROUBLE - is_last:
            return False
        self._fail_place(work, reason, until_answer=True)
        work.avoid = work.group
        since = place.outage.since
        work.probes += 1
        if since is not None and clock.now() - since >= SURE and self._nobody_else_can_tell():
            work.failures = self._settings.attempts - 1  # this one is the last
            return False
        return True

    def _nobody_else_can_tell(self) -> bool:
        """Whether all rows that are left have failed so often in this outage that they may be its cause."""
        left = self._left()
        return left is not None and all(each.probes >= self._settings.attempts for each in left)

    # Refusals ---------------------------------------------------------------------------------------------------------

    def refused(self, work: Work, request: RequestInFlight, refused: RefusedReply) -> bool:
        """The server answered, but not with a result."""
        verdict, status = refused.verdict, refused.reply.status
        if verdict.message:
            self.last_error = self._secrets.hide(verdict.message)
        if status == 429:
            self._counts.status_429 += 1
        if verdict.action is Action.STOP:
            return self._block(work, refused)
        if verdict.action is Action.WAIT:
            return self._told_to_wait(work, request, refused)
        is_foreign = answers.is_foreign(status, verdict.code)
        if verdict.action is Action.PERMANENT and not is_foreign:
            return self._refused_for_good(work, refused)
        is_page = status >= 500 and answers.is_page(refused.reply.content)
        is_no_answer = is_foreign or status < 400 or (status == 500 and is_page)
        if is_no_answer and not self.addresses.is_right(work.group.place, work.row.path):
            return self._no_answer(work, refused, is_foreign=is_foreign)
        if (is_foreign or is_page or status in _GATEWAY) and self._server_is_down(work, _in_words(refused)):
            return False
        work.failures += 1
        if work.failures >= self._settings.attempts:
            return self._give_up_refused(work, refused)
        backoff = _BACKOFF.delay(work.failures - 1, None, CHANCE.random())
        work.wait = min(self._settings.max_pause, max(backoff, verdict.wait or 0.0))
        return False

    def _told_to_wait(self, work: Work, request: RequestInFlight, refused: RefusedReply) -> bool:
        """All rows wait, once, for as long as the server asks, up to `max_pause`. It does not count against the row."""
        verdict, settings, now = refused.verdict, self._settings, clock.now()
        if work.waits_since is None:
            work.waits_since = now
        if now - work.waits_since >= settings.give_up_after:
            return self._give_up_refused(work, refused)
        work.waits += 1
        others_go_on, work.answers_then = work.group.answers > work.answers_then, work.group.answers
        if verdict.wait is None or verdict.wait <= settings.max_pause:
            if work.waits > OWN_WAITS and others_go_on:
                work.wait = (verdict.wait or 0.0) + _BACKOFF.delay(work.waits - OWN_WAITS, None, CHANCE.random())
                return False
            self._pause(work, request, verdict)
            if work.waits > 3:
                work.wait = (verdict.wait or 0.0) + _PATIENCE.delay(work.waits - 4, None, CHANCE.random())
            return False
        # One row may be above a quota of its own, so it waits alone; when a second one is told the same, all wait.
        self._long_waits.add(work.row.custom_id)
        if not self._said_long_wait:
            self._said_long_wait = True
            self._say(
                f"the server asks to wait {show_seconds(verdict.wait)} "
                f"({self._secrets.hide(verdict.message)[:200] or 'without a word why'}); "
                f"it is asked again after {show_seconds(settings.max_pause)}"
            )
        if len(self._long_waits) > 1:
            self._pause(work, request, Verdict(verdict.action, settings.max_pause, verdict.code, verdict.message))
        else:
            work.wait = settings.max_pause
        return False

    def _pause(self, work: Work, request: RequestInFlight, verdict: Verdict) -> None:
        if work.group.on_refusal(request, verdict):
            models = f" for {work.group.name}" if work.group.name else ""
            self._say(
                f"the server refuses far more than the limits that were given{models} explain: from now on less is "
                "sent, as its answers tell what it has"
            )

    def _refused_for_good(self, work: Work, refused: RefusedReply) -> bool:
        """The row is given up; and so is its address, once that has refused whatever it was asked."""
        is_sure = self.addresses.refused(work.group.place, work.row, refused)
        return not self._goes_elsewhere(work, refused, is_sure=is_sure) and self._give_up_refused(work, refused)

    def _no_answer(self, work: Work, refused: RefusedReply, *, is_foreign: bool) -> bool:
        """Where no row was answered so far, something came that is no answer: the row is sent again, for a while."""
        is_sure = self.addresses.gave_no_answer(work.group.place, work.row.path, 0.0 if is_foreign else PERSISTENT)
        if self._goes_elsewhere(work, refused, is_sure=is_sure):
            return False
        work.failures += 1
        if work.failures >= self._settings.attempts:
            return self._give_up_refused(work, refused)
        work.wait = (_DOUBT if is_foreign else _BACKOFF).delay(work.failures - 1, None, CHANCE.random())
        return False

    def _goes_elsewhere(self, work: Work, refused: RefusedReply, *, is_sure: bool) -> bool:
        """Whether a row of a doubtful address is for another place. With `is_sure` nothing more is sent there."""
        place, path, addresses = work.group.place, work.row.path, self.addresses
        has_others = self._has_others(place)
        if has_others and addresses.is_doubtful(place, work.row) and not addresses.serves(place):
            if is_sure:
                self._close(place, self._said_of_all(work, refused))
            work.avoid = work.group
            return True
        if is_sure and not has_others:
            self._missing[path] = refused
            if {each for each, _ in addresses.asked} <= self._missing.keys() and not addresses.serves(place):
                self._stop("unreachable", self._said_of_all(work, refused), refused.reply.status)
        return False

    def _said_of_all(self, work: Work, refused: RefusedReply) -> str:
        path, status = work.row.path, refused.reply.status
        address_of = getattr(work.group.place.client, "address_of", None)
        where = f"{path} ({address_of(path)})" if address_of else path
        words = " ".join(self._secrets.hide(refused.verdict.message).split())[:300]
        if status >= 400 and answers.is_page(refused.reply.content):
            words = "a page, which no service of this kind sends"
        if status < 400 or status == 500 or answers.is_foreign(status, refused.verdict.code):
            return (
                f"the first {REFUSALS} answers to {where} are no answers to rows (status {status}"
                f"{words and ': ' + words}): see whether the address is right, and whether a log-in or a proxy stands "
                "in between; then the run can go on"
            )
        return (
            f"the first {REFUSALS} answers to {where} are all the same refusal (status {status}"
            f"{words and ': ' + words}), for which no row can be to blame: see whether the address of the server is "
            "right, and its path"
        )

    def _give_up_refused(self, work: Work, refused: RefusedReply) -> bool:
        verdict, reply = refused.verdict, refused.reply
        return self._give_up(
            work,
            verdict.code or f"http_{reply.status}",
            self._secrets.hide(verdict.message) or f"the server answered with status {reply.status}",
            status_code=reply.status,
            request_id=reply.headers.get("x-request-id"),
            body=answers.writable(self._secrets.hide_bytes(reply.content)),
        )

    # No money, no key -------------------------------------------------------------------------------------------------

    def _block(self, work: Work, refused: RefusedReply) -> bool:
        """The service takes no such request any more: from this account, or for this model if others are served."""
        if self._close(work.group.place, self._said(refused)):
            work.avoid = work.group
            return False
        model, about_key = work.row.model, refused.reply.status in {401, 403}
        models = {each for _, each in self.addresses.asked}
        if about_key and (models | self._answering) - {model}:
            self._blocked[model] = refused
            if models <= self._blocked.keys() and not self._answering - {model}:
                return self._end_account(refused)
            self._leave_blocked(work, refused)
            return True
        return self._end_account(refused)

    def _said(self, refused: RefusedReply) -> str:
        verdict = refused.verdict
        said = self._secrets.hide(verdict.message or verdict.code or "the server takes no request with this key")
        code = f", {verdict.code}" if verdict.code else ""
        return f"{said} (status {refused.reply.status}{code})"

    def _end_account(self, refused: RefusedReply) -> bool:
        self._stop("account", self._said(refused), refused.reply.status)
        return True

    def _leave_blocked(self, work: Work, refused: RefusedReply) -> None:
        """A row of a model that is not served: given up once it is sure that others are."""
        if self._answering - {work.row.model}:
            self._give_up_refused(work, refused)
        else:
            self._set_aside.append(work)

    def _end_set_aside(self) -> None:
        """Give up rows of models that were refused, once any other was answered."""
        if self._answering:
            rows, self._set_aside = self._set_aside, []
            for work in rows:
                self._give_up_refused(work, self._blocked[work.row.model])


def _in_words(refused: RefusedReply) -> str:
    status = refused.reply.status
    return f"the server answers with status {status}" if status >= 400 else refused.verdict.message
