"""The endpoints of files and batches, as a run uses them: each call sees itself through, or says why it cannot.

What fails on the way is tried again for as long as the run is willing to wait. One call must not be: to create a batch
whose first answer was lost would pay twice. So a batch carries the name of its part in its metadata, and is looked for
by it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, TypeVar

import anyio

from penstock import clock, exponential
from penstock._chance import CHANCE
from penstock._numbers import show_seconds
from penstock.llm import failures
from penstock.llm.failures import Action, Verdict
from penstock.runner import answers
from penstock.runner.batch.state import NAME, BatchState, UploadedFile, read_batch, read_batches, read_file
from penstock.runner.client import Lost, NotSent, Reply

__all__ = ["Batches", "GoneError", "NoBatchesError", "RefusedError", "ServiceError", "Transport"]

_T = TypeVar("_T")

NEVER_CONNECTED = 300.0
"""Seconds after which a server that never answered is given up."""

LOOKS = (1.0, 10.0)
"""Seconds before each look for a batch whose answer was lost: lists may be late."""

STRANGE = 5
"""Answers of something else than the service, before any of its own, after which the address is taken for wrong."""

_HEAD = 4096
"""Bytes at the beginning of a downloaded file that are looked at."""

_BACKOFF = exponential(first=1, cap=60, jitter="full")


class ServiceError(Exception):
    """A call cannot be seen through.

    Attributes:
        code: Why the run ends: `account`, `unreachable` or `service`.
        status: The HTTP status of the answer that says so; None: none does.
    """

    def __init__(self, code: str, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class RefusedError(Exception):
    """The service refuses a call, and would again; or asks to wait before the next one.

    Attributes:
        verdict: What it said.
        status: The HTTP status.
    """

    def __init__(self, verdict: Verdict, status: int) -> None:
        super().__init__(verdict.message or f"the server answered with status {status}")
        self.verdict = verdict
        self.status = status


class NoBatchesError(ServiceError):
    """The server has no such endpoint: for this kind of run it is as if it were not there."""

    def __init__(self, endpoint: str, status: int) -> None:
        words = f"the server has no /v1/{endpoint} (status {status}): it does not offer the Batch API"
        super().__init__("unreachable", f"{words}; without --via batch the rows are sent one by one", status)


class GoneError(ServiceError):
    """The service has no such file or batch, of what it once had."""


class Transport(Protocol):
    """How requests get there; an async context manager."""

    async def request(
        self, method: str, path: str, body: bytes | BinaryIO | None = None, content_type: str = "application/json"
    ) -> Reply:
        """Send a request and wait for the whole answer.

        Raises:
            NotSent: There was no connection.
            Lost: The request left, and no whole answer came.
        """
        ...

    async def download(self, path: str, into: BinaryIO) -> Reply:
        """Write the body of a success into a file; `content` of the reply holds that of any other answer.

        Raises:
            NotSent: There was no connection.
            Lost: The answer is not whole.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class Batches:
    """Files and batches of an account.

    Args:
        transport: How requests get there.
        give_up_after: Seconds for which the service may be away.
        on_trouble: Told in words what goes wrong, each time.
        hide: Takes keys out of what the service says.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        give_up_after: float,
        on_trouble: Callable[[str], None] = lambda _: None,
        hide: Callable[[str], str] = str,
    ) -> None:
        self._transport = transport
        self._give_up_after = give_up_after
        self._on_trouble = on_trouble
        self._hide = hide
        self._has_answered = False
        self._is_right = False  # the service was met

    async def upload(self, form: BinaryIO, content_type: str) -> UploadedFile:
        """Store a file: a form with it, from its beginning."""

        async def send() -> Reply:
            form.seek(0)
            return await self._transport.request("POST", "/v1/files", form, content_type)

        return await self._see_through(send, read_file, "files")

    async def create(self, file: str, endpoint: str, name: str) -> BatchState | None:
        """Create a batch of an uploaded file; None: it may or may not be there, and has to be looked for.

        Raises:
            RefusedError: The service refuses, or asks to wait.
            ServiceError: It cannot be reached, or the account is at its end.
        """
        body = json.dumps(
            {
                "input_file_id": file,
                "endpoint": endpoint,
                "completion_window": "24h",
                "metadata": {NAME: name},
            }
        ).encode()
        began, tries = clock.now(), 0
        while True:
            try:
                reply = await self._transport.request("POST", "/v1/batches", body)
                if reply.status >= 500:
                    raise Lost(f"the server answers with status {reply.status}")
                return self._read(reply, read_batch, "batches")
            except NotSent as error:
                await self._pause(str(error), began, tries, 0.0, is_lasting=error.is_lasting)
                tries += 1
            except Lost as error:
                self._on_trouble(str(error))
                return None
            except RefusedError as refused:
                if refused.status >= 300 and refused.verdict.code != answers.FOREIGN:
                    raise
                self._on_trouble(self._hide(str(refused)))
                return None  # a success that cannot be read, or what stands in between answered

    async def find(self, name: str, since: float, *, looks: tuple[float, ...] = LOOKS) -> BatchState | None:
        """Look for the batch of a part among those that were created after a moment; None: there is none.

        Raises:
            NoBatchesError: The service does not list batches.
            ServiceError: It cannot be reached, or the account is at its end.
        """
        for wait in looks:
            await anyio.sleep(wait)
            async for batch in self._list():
                if batch.part == name:
                    return batch
                if batch.created_at < since:  # newest first
                    break
        return None

    async def _list(self) -> AsyncIterator[BatchState]:
        last, has_more = "", True
        while has_more:
            path = "/v1/batches?limit=100" + (f"&after={last}" if last else "")
            batches, has_more = await self._see_through(
                partial(self._transport.request, "GET", path), read_batches, "batches"
            )
            for batch in batches:
                yield batch
            if not batches or batches[-1].id == last:
                return
            last = batches[-1].id

    async def retrieve(self, batch: str) -> BatchState:
        """Look at a batch."""
        send = partial(self._transport.request, "GET", f"/v1/batches/{batch}")
        try:
            return await self._see_through(send, lambda value: read_batch({"id": batch, **value}))
        except GoneError as error:
            words = (
                f"batch {batch}, whose rows may be paid for, is not there "
                "(another key, or another --base-url, may find it)"
            )
            raise ServiceError("service", f"{words}: {error}") from None

    async def cancel(self, batch: str) -> None:
        """Ask for the end of a batch. One that has ended, or is being cancelled, is left as it is."""

        async def send() -> Reply:
            reply = await self._transport.request("POST", f"/v1/batches/{batch}/cancel", b"{}")
            return Reply(200, reply.headers, b"{}") if reply.status == 409 else reply

        try:
            await self._see_through(send, dict)
        except ServiceError as error:
            if error.code != "service":
                raise
            self._on_trouble(f"batch {batch} could not be cancelled: {error}")

    async def download(self, file: str, into: BinaryIO) -> None:
        """Write the content of a file of the service into one of ours.

        Raises:
            GoneError: There is none of that name.
        """

        async def send() -> Reply:
            into.seek(0)
            into.truncate()
            reply = await self._transport.download(f"/v1/files/{file}/content", into)
            if reply.status == 200:
                into.seek(0)
                self._refuse_foreign(reply._replace(content=into.read(_HEAD)), is_whole=False)
            return reply

        await self._see_through(send, dict, has_content=True)

    # ------------------------------------------------------------------------------------------------------------------

    async def _see_through(
        self,
        send: Callable[[], Awaitable[Reply]],
        read: Callable[[dict[str, Any]], _T],
        endpoint: str = "",
        *,
        has_content: bool = False,
    ) -> _T:
        """Send until there is an answer; for calls that may be made twice.

        Args:
            send: Makes the call.
            read: Reads the object that the service answers with; ValueError: it says nothing.
            endpoint: Which one it is, where it is the endpoint that a 404 misses.
            has_content: A success is a file, which is written already.
        """
        began, tries, strange = clock.now(), 0, 0
        while True:
            is_lasting = False
            try:
                reply = await send()
                return read({}) if has_content and reply.status == 200 else self._read(reply, read, endpoint)
            except (NotSent, Lost) as error:
                reason, wait = str(error), 0.0
                is_lasting = isinstance(error, NotSent) and error.is_lasting
            except RefusedError as refused:
                if refused.verdict.action is Action.PERMANENT:
                    kind = GoneError if refused.status in {404, 410} else ServiceError
                    raise kind("service", self._hide(str(refused)), refused.status) from None
                reason, wait = self._hide(str(refused)), refused.verdict.wait or 0.0
                strange += not self._is_right and refused.verdict.code in {answers.FOREIGN, "invalid_response"}
                if strange >= STRANGE:
                    raise ServiceError("unreachable", self._said_of_all(reason), refused.status) from None
            await self._pause(reason, began, tries, wait, is_lasting=is_lasting)
            tries += 1

    def _read(self, reply: Reply, read: Callable[[dict[str, Any]], _T], endpoint: str = "") -> _T:
        """What the service answered."""
        if endpoint and reply.status in {404, 405, 501} and b'"No ' not in reply.content:
            raise NoBatchesError(endpoint, reply.status)
        self._refuse_foreign(reply)
        self._has_answered = True
        if 200 <= reply.status < 300:
            try:
                value = json.loads(reply.content)
                if isinstance(value, dict):
                    found = read(value)
                    self._is_right = True
                    return found
            except (ValueError, RecursionError):
                pass
            words = "the answer is not a JSON object with an id"
            raise RefusedError(Verdict(Action.BACK_OFF, None, "invalid_response", words), 200)
        verdict = failures.judge(reply.status, reply.content, reply.headers)
        if verdict.action is Action.STOP:
            message = self._hide(verdict.message or verdict.code or "the server takes no request with this key")
            raise ServiceError("account", f"{message} (status {reply.status})", reply.status)
        raise RefusedError(verdict, reply.status)

    def _refuse_foreign(self, reply: Reply, *, is_whole: bool = True) -> None:
        """Raise `RefusedError` for what no service of this kind sends: another try may well meet the service."""
        is_page = reply.status < 500 and answers.is_page(reply.content)
        if not is_whole and not is_page:
            return
        said = answers.judge("", reply.status, reply.headers, reply.content)
        if isinstance(said, answers.Answer) or said.action in {Action.WAIT, Action.STOP}:
            return
        if is_page or answers.is_foreign(reply.status, said.code):
            raise RefusedError(Verdict(Action.BACK_OFF, None, answers.FOREIGN, said.message), reply.status)

    def _said_of_all(self, reason: str) -> str:
        address_of = getattr(self._transport, "address_of", None)
        where = address_of("/v1/files") if address_of else "the server"
        return (
            f"the first {STRANGE} answers of {where} are none of the Batch API ({reason[:300]}): see whether the "
            "address is right, and whether a log-in or a proxy stands in between; then the run can go on"
        )

    async def _pause(self, reason: str, began: float, tries: int, wait: float, *, is_lasting: bool) -> None:
        self._on_trouble(reason)
        if is_lasting and not self._has_answered:
            raise ServiceError("unreachable", reason)
        patience = self._give_up_after if self._has_answered else min(self._give_up_after, NEVER_CONNECTED)
        left = began + patience - clock.now()
        if left <= 0:
            raise ServiceError(
                "unreachable", f"the server has been away for {show_seconds(clock.now() - began)}: {reason}"
            )
        await anyio.sleep(min(left, max(wait, _BACKOFF.delay(min(tries, 20), None, CHANCE.random()))))
