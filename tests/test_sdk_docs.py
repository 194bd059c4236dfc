"""The pages about SDKs and about HTTP clients show what happens."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from penstock.testing import virtual_time
from tests.docs_examples import examples_of, run_example


def module_of(name, code, monkeypatch):
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    run_example(code, f"{name}.py", vars(module))
    return module


@pytest.mark.parametrize("number", range(1, 5))
def test_a_client_of_any_http_api_keeps_its_limits(number, capsys, monkeypatch):
    """docs/any-http-api.md"""
    examples = examples_of("docs/any-http-api.md")
    assert len(examples) == 5
    service = module_of("api", examples[0][0], monkeypatch)
    try:
        run_example(examples[number][0], "any-http-api.md", {"__name__": "__main__"})
        assert capsys.readouterr().out == examples[number][1]
    finally:
        service.server.__exit__(None, None, None)
    # On a busy machine requests that left one by one come in a bunch, which may be larger than the server's burst.
    assert sum(service.server.statistics().refused.values()) <= 5


def test_a_greedy_user_does_not_stand_in_the_way_of_an_urgent_one(capsys, monkeypatch):
    """docs/your-sdk.md; its first example is a line that needs the SDK of Anthropic."""
    _, (app, _), (program, output) = examples_of("docs/your-sdk.md")
    with virtual_time():
        module_of("app", app, monkeypatch)
        run_example(program, "your-sdk.md", {"__name__": "__main__"})
    assert capsys.readouterr().out == output
