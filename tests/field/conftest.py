"""What the tests of the outside world share: a fixture that tells what they measured."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import pytest


class Field:
    """Collects the rows of the table that the docs show."""

    environment = os.environ.get("PENSTOCK_FIELD_ENVIRONMENT", "")
    """The name of the environment that this runs in, as the pins are named."""

    def row(self, subject: str, columns: dict[str, object], *, table: str = "") -> None:
        """Add a row: what was measured, its columns, and which of the page's tables it belongs to."""
        where = os.environ.get("PENSTOCK_FIELD_ROWS")
        if where:
            with Path(where).open("a") as rows:
                rows.write(json.dumps({"table": table, "subject": subject, "columns": columns}) + "\n")

    @staticmethod
    def version(package: str) -> str:
        """A package's name and version, for a subject: `openai 2.8.1`."""
        return f"{package} {metadata.version(package)}"


@pytest.fixture
def field() -> Field:
    return Field()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param
