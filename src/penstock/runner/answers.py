"""Whether what came back is the answer to a row, and if not, what that means for the row and for the run.

Pure: a status, headers and bytes in; an `Answer` or a `Verdict` out. A success is judged by its body, since services
send errors, nulls and empty lists of choices with status 200; a stream of events is judged by the answer that it
tells. Nothing here raises, whatever a server sends: what was paid for is kept, and nothing that is read beside an
answer can cost it.

What something else than a service of this kind sends (a log-in page, a proxy, another program at that address) has the
code `FOREIGN`: no row is to blame for it, and nobody was paid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.llm import failures
from penstock.llm.failures import Action, Verdict
from penstock.runner import streams
from penstock.runner.source import dump_json, load_json
from penstock.runner.streams import StreamError

__all__ = ["FOREIGN", "Answer", "is_foreign", "is_page", "judge", "may_be_billed", "readable", "writable"]

FOREIGN = "foreign_answer"
"""The code of what no service of this kind sends."""

_FOREIGN_STATUSES = frozenset({301, 302, 303, 307, 308, 407, 426, 511})
"""A log-in or another address is elsewhere, a proxy wants a password, a socket another protocol, a captive portal a
log-in. The other statuses from 300 on say nothing of that: they are about the row, as SDKs have them."""

_ALWAYS = {
    "/completions": "choices",
    "/embeddings": "data",
    "/responses": "output",
    "/messages": "content",
    "/moderations": "results",
}
"""What an answer of an endpoint always has."""

_MAY_BE = frozenset({"choices", "created", "error", "id", "model", "object", "type", "usage"})
"""Fields by which an object is known for an answer that lacks something."""


class Answer(NamedTuple):
    """An answer to a row: JSON on one line, as the server wrote it."""

    body: bytes


def judge(path: str, status: int, headers: Mapping[str, str], content: bytes) -> Answer | Verdict:
    """Say what came back for a request to `path`."""
    if 200 <= status < 300:
        return _success(path, status, headers, content)
    if status < 400:
        return Verdict(Action.PERMANENT, None, f"http_{status}", _redirection(status, headers))
    if b'"jsonrpc"' in content and (said := _of_another(path, readable(content))) is not None:
        return _foreign(said)
    return _failure(status, content, headers)


def is_foreign(status: int, code: str) -> bool:
    """Whether an answer of this status and code can never be one of a service of this kind, whatever the row."""
    return code == FOREIGN or status < 200 or status in _FOREIGN_STATUSES


def may_be_billed(status: int, verdict: Verdict) -> bool:
    """Whether what is no answer may have cost what an answer does: a model wrote it, and something spoilt it."""
    return 200 <= status < 300 and verdict.code in {"empty_answer", "stream_cut", "invalid_response"}


def is_page(content: bytes) -> bool:
    """Whether a body is a page of HTML: no JSON begins like one."""
    return content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<"


def _foreign(what: str) -> Verdict:
    return Verdict(Action.BACK_OFF, None, FOREIGN, f"{what}, which no service of this kind sends")


def _of_another(path: str, value: Any) -> str | None:
    """What JSON is that no answer of an endpoint looks like; None: it may be an answer, or lack something."""
    if not isinstance(value, dict):
        return None
    if "jsonrpc" in value:
        return "JSON-RPC"
    path = path.partition("?")[0]
    always = next((name for ending, name in _ALWAYS.items() if path.endswith(ending)), None)
    if always is None or not value or always in value or value.keys() & _MAY_BE:
        return None
    return f'JSON without "{always}" ({json.dumps(value)[:100]})'


def _page_in_words(content: bytes) -> str:
    title = _TITLE.search(content)
    words = "" if title is None else " ".join(title[1].decode("utf-8", "replace").split())
    return f'a web page, "{words}"' if words else "a web page"


_TITLE = re.compile(rb"<title[^>]*>([^<]{1,100})", re.IGNORECASE)


def _redirection(status: int, headers: Mapping[str, str]) -> str:
    """What a status below 400 says; other redirects are followed."""
    target = headers.get("location")
    if not target:
        return f"the server answered with status {status}"
    return (
        f"the server redirects to {target[:500]} (status {status}), and a request is not posted there: ask that address"
    )


def readable(content: bytes) -> Any:
    """An answer that is no result, to be kept beside the error: as JSON if it is that, else as text, all of it."""
    try:
        return load_json(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "backslashreplace")


def writable(content: bytes) -> Any:
    """The same, as text too where it is JSON that cannot be written again: a number too large for that."""
    value = readable(content)
    try:
        dump_json(value)
        return value
    except (ValueError, RecursionError):
        return content.decode("utf-8", "backslashreplace")


def _success(path: str, status: int, headers: Mapping[str, str], content: bytes) -> Answer | Verdict:
    text = content.strip()
    if status in {204, 205}:
        return _foreign(f"an answer without content (status {status})")
    if is_page(text):
        return _foreign(_page_in_words(text))
    if not text:
        return Verdict(Action.BACK_OFF, None, "empty_answer", f"the answer with status {status} is empty")
    if streams.is_stream(text):
        try:
            text = streams.assemble(text)
        except StreamError as error:
            if error.error is not None:
                return _failure(status, {"error": error.error}, None)
            return Verdict(Action.BACK_OFF, None, "stream_cut", f"{error}")
        except Exception:  # noqa: BLE001 - pieces of an unforeseen shape
            return Verdict(Action.BACK_OFF, None, "stream_cut", "the stream holds what is no event of an answer")
    try:
        if json.detect_encoding(text) != "utf-8":  # UTF-16, or a byte order mark: results are UTF-8 without one
            text = content.decode(json.detect_encoding(content)).strip().encode()
        value = load_json(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        kind = _other_kind(headers)
        if kind and not text.startswith((b"{", b"[")):  # an answer that was cut short begins like one
            return _foreign(kind)
        return Verdict(Action.PERMANENT, None, "invalid_response", f"the answer with status {status} is not JSON")
    said = _of_another(path, value)
    if said is not None:
        return _foreign(said)
    inside = _error_inside(value)
    if inside is not None:
        return _failure(status, {"error": inside}, None)
    missing = _missing(path, value)
    if missing is not None:
        return Verdict(Action.BACK_OFF, None, "empty_answer", f"the answer with status {status} {missing}")
    return Answer(_on_one_line(text))


def _other_kind(headers: Mapping[str, str]) -> str:
    """What the headers say that a body is if not JSON, or JSON that only had to be unpacked; "": nothing else."""
    kind = headers.get("content-type", "").lower()
    if kind and "json" not in kind and "event-stream" not in kind:
        return f"a body of the type {kind[:100]}"
    coding = headers.get("content-encoding", "").lower()
    return f"a body that is said to be {coding[:100]} and is no JSON in it" if coding else ""


def _error_inside(value: Any) -> Any:
    """The error that a success carries; None: it carries none."""
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if error:
        return error
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return (first.get("error") or None) if isinstance(first, dict) else None


def _missing(path: str, value: Any) -> str | None:
    """What an answer of this endpoint always has, and this one has not."""
    if value is None:
        return "is null"
    path = path.partition("?")[0]
    name = "choices" if path.endswith("/completions") else "data" if path.endswith("/embeddings") else None
    if name is None:
        return None if isinstance(value, dict | list) else "is neither an object nor a list"
    if not isinstance(value, dict) or not value.get(name):
        return f"has no {name}"
    entries = value[name] if isinstance(value[name], list) else []
    if entries and all(map(_is_hollow, entries)):
        return f"has {name} with nothing in them"
    return None


def _is_hollow(entry: Any) -> bool:
    """Whether a choice or an embedding is nothing, and says so."""
    if not isinstance(entry, dict):
        return entry is None
    return not entry or any(name in entry and entry[name] in (None, []) for name in ("message", "embedding"))


def _failure(status: int, body: Any, headers: Mapping[str, str] | None) -> Verdict:
    try:
        return failures.judge(status, body, headers)
    except Exception:  # noqa: BLE001 - an unforeseen header or word of the server's
        action = Action.WAIT if status == 429 else Action.BACK_OFF if status >= 500 else Action.PERMANENT
        return Verdict(action, None, f"http_{status}", f"the server answered with status {status}")


def _on_one_line(text: bytes) -> bytes:
    """Valid JSON without line ends.

    Between tokens they are white space, and in strings there are none but those of Unicode.
    """
    text = text.replace(b"\r", b" ").replace(b"\n", b" ")
    for end, escaped in _LINE_ENDS:
        if end in text:
            text = text.replace(end, escaped)
    return text


_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))
