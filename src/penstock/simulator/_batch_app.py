"""The HTTP endpoints of files and batches. `_batches` decides when a batch is done, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from penstock import clock
from penstock.simulator import _replies
from penstock.simulator._account import Account
from penstock.simulator._answering import FAILURES, Json
from penstock.simulator._batches import ENDED, BatchJob, Library, StoredFile, wrong_batch
from penstock.simulator._bodies import SILENCE, read_body
from penstock.simulator._faulty import OF_ANSWERS, STILL_ANSWERS, answer_badly
from penstock.simulator._multipart import read_form
from penstock.simulator._simulation import Fault

MAX_FILE = 512 * 1024 * 1024
"""Bytes of a file of any purpose."""

_Entry = TypeVar("_Entry", StoredFile, BatchJob)

Handler = Callable[[Request], Awaitable[Response]]


class _Endpoint:
    """One of the endpoints: an ASGI application, as a connection may have to be cut in the middle of its answer."""

    def __init__(self, endpoints: BatchEndpoints, handler: Handler) -> None:
        self._endpoints = endpoints
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoints.respond(self._handler, Request(scope, receive), send)


class BatchEndpoints:
    """Files and batches of an account.

    Args:
        account: The account that they belong to.
        unauthorized: The answer to a request without a valid key; None if its key is valid.
        hang_up: Cuts the connection of a request.
    """

    def __init__(
        self, account: Account, unauthorized: Callable[[Request], Response | None], hang_up: Callable[[Request], None]
    ) -> None:
        self.library = Library(account.simulation)
        self._account = account
        self._unauthorized = unauthorized
        self._hang_up = hang_up
        self._busy: anyio.Lock | None = None

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/v1/files", _Endpoint(self, self._upload), methods=["POST"]),
            Route("/v1/files", _Endpoint(self, self._list_files), methods=["GET"]),
            Route("/v1/files/{id}", _Endpoint(self, self._file), methods=["GET"]),
            Route("/v1/files/{id}", _Endpoint(self, self._delete), methods=["DELETE"]),
            Route("/v1/files/{id}/content", _Endpoint(self, self._content), methods=["GET"]),
            Route("/v1/batches", _Endpoint(self, self._create), methods=["POST"]),
            Route("/v1/batches", _Endpoint(self, self._list), methods=["GET"]),
            Route("/v1/batches/{id}", _Endpoint(self, self._batch), methods=["GET"]),
            Route("/v1/batches/{id}/cancel", _Endpoint(self, self._cancel), methods=["POST"]),
        ]

    async def respond(self, handler: Handler, request: Request, send: Send) -> None:
        """Keys are looked at first, faults happen, and the time is what it is."""
        fault: Fault | None = None
        response = self._unauthorized(request)
        if response is None:
            fault = self._account.draw(request.url.path, request.method.encode()).fault
            response = self._refused_by(fault) or await self._answer(handler, request)
        if fault in OF_ANSWERS:
            if fault not in STILL_ANSWERS:
                self._account.failed(fault)
            await answer_badly(fault, response, request, send, self._hang_up)
        else:
            await response(request.scope, request.receive, send)

    def _refused_by(self, fault: Fault | None) -> Response | None:
        refusal = self._account.refused_by(fault)
        if refusal is not None:
            return Json(refusal.body, 429, refusal.headers)
        if fault not in FAILURES:
            return None
        status, content = FAILURES[fault]
        self._account.failed(str(status))
        return Json(content, status)

    async def _answer(self, handler: Handler, request: Request) -> Response:
        if self._busy is None:
            self._busy = anyio.Lock()
        async with self._busy:
            for _ in self.library.advance(clock.wall()):
                await anyio.lowlevel.checkpoint()
        return await handler(request)

    # Files ------------------------------------------------------------------------------------------------------------

    async def _upload(self, request: Request) -> Response:
        try:
            body = await read_body(request, MAX_FILE)
        except ClientDisconnect:
            return Response(status_code=400)
        if not isinstance(body, bytes):
            words = "File is too large." if body == 413 else f"The file did not come within {SILENCE:g} s."
            return self._wrong(words, body)
        try:
            form = read_form(request.headers.get("content-type", ""), body)
        except ValueError as problem:
            return self._wrong(str(problem))
        del body
        file, purpose = form.get("file"), form.get("purpose")
        if file is None or file.filename is None or purpose is None:
            return self._wrong("Missing required parameters: 'file', with a name, and 'purpose'.")
        kind = purpose.content.decode("utf-8", "replace")
        if kind == "batch" and len(file.content) > self.library.rules.max_bytes:
            return self._wrong("File is too large.")
        return Json(self.library.store(file.content, file.filename, kind, clock.wall()).as_json())

    async def _small(self, request: Request) -> bytes:
        """The body of a request that is no file; nothing if it is too large, or does not come."""
        body = await read_body(request, self._account.simulation.max_body)
        return body if isinstance(body, bytes) else b""

    async def _list_files(self, request: Request) -> Response:
        purpose = request.query_params.get("purpose")
        files = [file for file in self.library.files.values() if purpose in {None, file.purpose}]
        return self._page(request, files[::-1], StoredFile.as_json, most=10_000)

    async def _file(self, request: Request) -> Response:
        file = self.library.files.get(request.path_params["id"])
        return self._no_file(request) if file is None else Json(file.as_json())

    async def _content(self, request: Request) -> Response:
        file = self.library.files.get(request.path_params["id"])
        return self._no_file(request) if file is None else Response(file.content, media_type="application/octet-stream")

    async def _delete(self, request: Request) -> Response:
        file = self.library.files.pop(request.path_params["id"], None)
        return self._no_file(request) if file is None else Json({"id": file.id, "object": "file", "deleted": True})

    def _no_file(self, request: Request) -> Response:
        return self._wrong(f"No such File object: {request.path_params['id']}", 404)

    # Batches ----------------------------------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        try:
            wanted: Any = json.loads(await self._small(request))
        except (ValueError, RecursionError):
            wanted = None
        problem = wrong_batch(wanted, self.library.files.get)
        if problem is not None:
            return self._wrong(problem)
        file = self.library.files[wanted["input_file_id"]]
        batch = self.library.create(file, wanted["endpoint"], "24h", wanted.get("metadata"))
        return Json(self.library.as_json(batch))

    async def _list(self, request: Request) -> Response:
        batches = list(self.library.batches.values())[::-1]
        return self._page(request, batches, self.library.as_json, most=100)

    async def _batch(self, request: Request) -> Response:
        batch = self.library.batches.get(request.path_params["id"])
        return self._no_batch(request) if batch is None else Json(self.library.as_json(batch))

    async def _cancel(self, request: Request) -> Response:
        batch = self.library.batches.get(request.path_params["id"])
        if batch is None:
            return self._no_batch(request)
        status = self.library.status(batch)
        if status in ENDED or status == "cancelling":
            return self._wrong(f"Cannot cancel a batch with status '{status}'.", 409)
        self.library.cancel(batch)
        return Json(self.library.as_json(batch))

    def _no_batch(self, request: Request) -> Response:
        return self._wrong(f"No batch found with id '{request.path_params['id']}'.", 404)

    # ------------------------------------------------------------------------------------------------------------------

    def _wrong(self, message: str, status: int = 400) -> Response:
        self._account.failed(str(status))
        return Json(_replies.invalid(message), status)

    def _page(
        self, request: Request, entries: list[_Entry], as_json: Callable[[_Entry], dict[str, Any]], *, most: int
    ) -> Response:
        """A part of a list, newest first: `limit` entries that come `after` one."""
        query = request.query_params
        text = query.get("limit", str(min(most, 20 if most <= 100 else most)))
        if not text.isdecimal() or not 1 <= int(text) <= most:
            return self._wrong(f"Invalid 'limit': expected a whole number from 1 to {most}.")
        after = query.get("after")
        begin = 0 if after is None else next((n for n, one in enumerate(entries, 1) if one.id == after), len(entries))
        page = entries[begin : begin + int(text)]
        return Json(
            {
                "object": "list",
                "data": [as_json(one) for one in page],
                "first_id": page[0].id if page else None,
                "last_id": page[-1].id if page else None,
                "has_more": begin + len(page) < len(entries),
            }
        )
