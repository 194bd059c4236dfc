"""What the page "Try it" runs in the browser, run here: its loop jumps through a minute, and its ways do what the page
says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penstock.testing import virtual_time
from tests.browser import BROWSER, needs_a_browser
from tests.docs_examples import ROOT, text_of

SPEC = importlib.util.spec_from_file_location("try_it", ROOT / "docs/_static/try_it.py")
try_it = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(try_it)


KINDS = re.findall(r'<option value="(\w+)"', text_of("docs/try-it.md"))


def test_at_a_bucket_penstock_is_never_refused_and_uses_what_there_is():
    ours, retry, overwrite = json.loads(try_it.simulate_all("{}"))["ways"]
    assert (sum(ours["refused"]), sum(retry["refused"]) > 100, sum(overwrite["refused"]) > 100) == (0, True, True)
    assert sum(ours["used"]) >= 60_000  # of 60,000 a minute and a burst of 5,000
    assert all(sum(each["used"]) <= 65_000 for each in (ours, retry, overwrite))


def test_the_lighter_flow_hardly_waits():
    ours = try_it.simulate("penstock")
    assert max(ours["waiting"]["bob"]) * 10 < max(ours["waiting"]["alice"])


@pytest.mark.parametrize("kind", KINDS[::2])
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


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_to_copy_is_under_the_limits_of_the_curves(kind):
    names = {"__name__": "__main__"}
    with virtual_time() as time:
        exec(try_it.program(kind, load=0.8), names)
        assert time.now() >= 55
    limiter = names["limiter"]
    assert limiter.statistics().granted == 240
    assert {unit: list(map(str, limits)) for unit, limits in limiter.limits.items()} == {
        unit: list(map(str, limits)) for unit, limits in try_it.limiter_of(kind, 300, 60_000, 5, 0.9).limits.items()
    }


@pytest.mark.parametrize("kind", KINDS[1::2])
def test_the_other_kinds_work_too(kind):
    assert [sum(try_it.simulate(way, kind=kind)["used"]) > 10_000 for way in try_it.WAYS] == [True] * 3


def test_the_script_asks_for_what_the_page_has():
    page, script = text_of("docs/try-it.md"), text_of("docs/_static/try_it.js")
    asked = set(re.findall(r'(?:getElementById|curves)\("([\w-]+)"', script))
    assert asked
    assert [name for name in asked if f'id="{name}"' not in page] == []


DRIVER = """<iframe src="try-it.html" width="900" height="1200"></iframe><script type="module">
const frame = document.querySelector("iframe"), seen = [];
const shown = () => frame.contentDocument?.getElementById("try-it-said");
async function next() {
  while (!/ refusals$|^failed|^This page/.test(shown()?.textContent ?? "")) await new Promise(done => setTimeout(done, 50));
  return shown().textContent;
}
async function see(name) {
  const said = await next(), page = frame.contentDocument;
  seen.push({ name, said, code: page.getElementById("try-it-code").textContent,
    lines: [...page.querySelectorAll("[id^=try-it] polyline")].map(each => each.getAttribute("points")) });
}
await see("at first");
for (const [name, value] of Object.entries({ load: 0.4, tpm: 20000, kind: "window" })) {
  const moved = frame.contentDocument.getElementById("playground").elements[name];
  moved.value = value;
  shown().textContent = "";
  moved.dispatchEvent(new Event("input", { bubbles: true }));
  await see(name);
}
const asked = frame.contentWindow.performance.getEntriesByType("resource").map(each => each.name);
await fetch("/seen", { method: "POST", body: JSON.stringify({ seen, asked }) });
</script>"""
"""Loads the page, moves three of its sliders, and tells what it showed each time."""


class Site(SimpleHTTPRequestHandler):
    """The files of a site, the driver, and what the driver tells."""

    def __init__(self, *arguments, told, **options):
        self.told = told
        super().__init__(*arguments, **options)

    def do_GET(self):
        if self.path != "/driver.html":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(DRIVER.encode())

    def do_POST(self):
        self.told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def told_by_a_browser(site, profile, seconds=100):
    """What the driver tells from a browser that knows no host but the one that serves this site."""
    told = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Site, directory=site, told=told)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"http://127.0.0.1:{server.server_port}/driver.html",
        ]  # fmt: skip
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as browser:
            stop = threading.Timer(seconds, browser.kill)
            stop.start()
            while browser.poll() is None and not told:
                time.sleep(0.1)
            stop.cancel()
            browser.terminate()
            error = browser.communicate()[1]
        server.shutdown()
    assert told, error
    return told[0], f"http://127.0.0.1:{server.server_port}/"


@needs_a_browser
@pytest.mark.skipif("PENSTOCK_SITE" not in os.environ, reason="needs a site with Python for the browser: make try-it")
def test_the_page_runs_penstock_in_a_browser_without_a_network(tmp_path):
    """The curves of each way, ours without a refusal; each slider that moves changes them; no other host is asked."""
    told, here = told_by_a_browser(os.environ["PENSTOCK_SITE"], tmp_path / "profile")
    assert [each["name"] for each in told["seen"]] == ["at first", "load", "tpm", "kind"]
    for each in told["seen"]:
        assert len(each["lines"]) == 4 + 3 + 4, each["said"]
        assert all(re.fullmatch(r"[\d., ]+", line) for line in each["lines"])
    assert re.match(r"penstock: [56]\d,\d{3} tokens, 0 refusals · retry only: ", told["seen"][0]["said"])
    codes = [each["code"] for each in told["seen"]]
    assert [("20000/min" in code, "sliding(" in code) for code in codes] == [
        (False, False), (False, False), (True, False), (False, True)
    ]  # fmt: skip
    assert any(name.endswith("pyodide.asm.wasm") for name in told["asked"])
    assert [name for name in told["asked"] if not name.startswith((here, "data:", "blob:"))] == []
