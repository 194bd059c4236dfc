"""What the page "Try it" runs in the browser, run here: its loop jumps through a minute, and its ways do what the page
says."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest

from tests.docs_examples import ROOT, text_of

SPEC = importlib.util.spec_from_file_location("try_it", ROOT / "docs/_static/try_it.py")
try_it = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(try_it)


def test_at_a_bucket_penstock_is_never_refused_and_uses_what_there_is():
    ours, retry, overwrite = json.loads(try_it.simulate_all("{}"))
    assert (sum(ours["refused"]), sum(retry["refused"]) > 100, sum(overwrite["refused"]) > 100) == (0, True, True)
    assert sum(ours["used"]) >= 60_000  # of 60,000 a minute and a burst of 5,000
    assert all(sum(each["used"]) <= 65_000 for each in (ours, retry, overwrite))


def test_the_lighter_flow_hardly_waits():
    ours = try_it.simulate("penstock")
    assert max(ours["waiting"]["bob"]) * 10 < max(ours["waiting"]["alice"])


@pytest.mark.parametrize("kind", ["bucket", "window"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_every_end_of_every_slider_works(kind, name):
    sliders = re.findall(r'<input type="range" ([^>]*)>', text_of("docs/try-it.md"))
    marks = [dict(re.findall(r'(\w+)="([^"]*)"', slider)) for slider in sliders]
    assert len(marks) == 6
    for moved in marks:
        options = {each["name"]: float(each[name if each is moved else "value"]) for each in marks}
        result = try_it.simulate("penstock", kind=kind, **options)
        assert len(result["used"]) == try_it.SECONDS
        assert sum(result["used"]) > 0


def test_the_script_asks_for_what_the_page_has():
    page, script = text_of("docs/try-it.md"), text_of("docs/_static/try_it.js")
    asked = set(re.findall(r'(?:getElementById|curves)\("([\w-]+)"', script))
    assert asked
    assert [name for name in asked if f'id="{name}"' not in page] == []
