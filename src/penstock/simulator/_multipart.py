"""Forms with files (`multipart/form-data`), as SDKs upload them.

Pure: the bytes of a whole body in, its fields out.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a form.

    Attributes:
        filename: What the client calls the file; None: the field is no file.
        content: Its bytes.
    """

    filename: str | None
    content: bytes


def read_form(content_type: str, body: bytes) -> dict[str, Field]:
    """Read a form; of a field that comes more than once, the last one counts.

    Raises:
        ValueError: It is no such form.
    """
    kind = _header(content_type)
    boundary = kind.get_param("boundary")
    if kind.get_content_type() != "multipart/form-data" or not isinstance(boundary, str) or not boundary:
        raise ValueError("expected a form with files: multipart/form-data with a boundary")
    delimiter = b"--" + boundary.encode("ascii", "replace")
    begin = body.find(delimiter)
    fields: dict[str, Field] = {}
    while begin >= 0 and body[begin + len(delimiter) : begin + len(delimiter) + 2] == b"\r\n":
        head = begin + len(delimiter) + 2
        text = body.find(b"\r\n\r\n", head)
        begin = body.find(b"\r\n" + delimiter, head)
        if text < 0 or begin < text:
            raise ValueError("the form ends in the middle of a field")
        name, filename = _names(body[head:text])
        fields[name] = Field(filename, body[text + 4 : begin])
        begin += 2
    if begin < 0 or body[begin + len(delimiter) : begin + len(delimiter) + 2] != b"--":
        raise ValueError("the form has no end")
    return fields


def _names(head: bytes) -> tuple[str, str | None]:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            given = _header(value.decode("utf-8", "replace").strip(), "content-disposition")
            found = [given.get_param(key, header="content-disposition") for key in ("name", "filename")]
            field, filename = (each if isinstance(each, str) else None for each in found)
            if field is not None:
                return field, filename
    raise ValueError("a field of the form has no name")


def _header(value: str, name: str = "content-type") -> Message:
    message = Message()
    message[name] = value.replace("\r", " ").replace("\n", " ")
    return message
