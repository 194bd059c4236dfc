"""`penstock run --report`: one page, whole in itself, with the summary's figures; and a headless browser opens it."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser

import anyio
import pytest

from penstock.cli import main
from penstock.runner.histogram import Histogram
from penstock.runner.report import render
from penstock.runner.summary import Counts, summarise
from penstock.runner.timeline import MOST_SPANS, Span, Timeline
from penstock.simulator import Simulation
from tests.cli.commands import simulated, write
from tests.runner.service import Service, chat, prepared

VOID = {"meta"}


class Page(HTMLParser):
    """What a page says: its figures, its words, and what it would load. Tags must nest."""

    def __init__(self, text):
        super().__init__()
        self.figures, self.words, self.loads, self.open, self.tags = {}, [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if "data-figure" in found:
            assert found["data-figure"] not in self.figures
            self.figures[found["data-figure"]] = json.loads(found["data-value"])
        self.loads += [value for name, value in attributes if name in {"src", "href", "action", "data", "xlink:href"}]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in {"td", "th", "tr"}:
            while self.open[-1] != tag:
                self.open.pop()
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(path):
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert "script" not in page.tags
    assert not re.search(r"https?:|//|url\(|@import", text)
    return page


def summary_of(folder):
    return json.loads((folder / "out.summary.json").read_text())


def test_the_report_has_the_summarys_figures_and_loads_nothing(folder, capsys):
    write(folder, range(200), b"{torn\n")
    (folder / "prices.json").write_text('{"models": {"gpt-4o-mini": {"input": 1, "output": 4}}}')
    assert simulated("--report", "report.html", "--prices", "prices.json") == 3
    page, summary = page_of(folder / "report.html"), summary_of(folder)
    for name in (
        "rows",
        "answered",
        "failed",
        "sent",
        "retries",
        "status_429",
        "dollars",
        "makespan",
        "optimum",
        "efficiency",
    ):
        assert page.figures[name] == summary[name], name
    for unit, (limit,) in summary["limits"].items():
        assert page.figures[f"spent:{unit}:"] == limit["spent"]
        assert page.figures[f"share:{unit}:"] == limit["share"]
    assert page.figures["failure:invalid_json"] == 1
    assert 0.005 < page.figures["latency_p50"] <= page.figures["latency_p95"] <= page.figures["latency_max"]
    assert page.tags.count("svg") >= 6
    words = "".join(page.words)
    assert "Quota used: requests (6000/min)" in words
    assert "in.jsonl" in words


def test_a_report_by_the_batch_api_has_its_batches(folder, capsys):
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--via", "batch", "--report", "report.html"]) == 0
    page, (batch,) = page_of(folder / "report.html"), summary_of(folder)["batches"]
    assert (page.figures["answered"], page.figures["rows"]) == (20, 20)
    assert batch["id"] in "".join(page.words)


@pytest.mark.parametrize(("path", "words"), [("out.jsonl", "are the same file"), ("nowhere/r.html", "cannot write")])
def test_a_report_that_cannot_be_written_is_said_before_anything_is_sent(folder, capsys, path, words):
    assert simulated("--report", path) == 2
    assert words in capsys.readouterr().err
    assert not (folder / "out.summary.json").exists()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_it_without_an_error_and_without_a_request(folder, capsys):
    """Headless, with the network cut off; what it has built is what the file says."""
    write(folder, range(50))
    assert simulated("--report", "report.html") == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=2000"]
    options += [
        f"--user-data-dir={folder / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", f"file://{folder / 'report.html'}"], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'data-figure="answered" data-value="50"' in done.stdout
    assert done.stdout.count("<svg") == (folder / "report.html").read_text().count("<svg")
    assert "CONSOLE" not in done.stderr


def test_what_the_server_or_a_file_calls_things_is_text_and_no_markup():
    counts = Counts()
    counts.gave_up('<script>alert("x")</script>')
    hostile = {"code": "input", "message": '</p><img src="http://evil">'}
    summary = summarise(counts, {}, 1, stopped=hostile)
    text = render(summary, counts, None, title='<b>&"file')
    assert "<script" not in text
    assert "<img" not in text
    assert Page(text).figures['failure:<script>alert("x")</script>'] == 1


def test_a_timeline_holds_few_spans_however_long_it_is_and_loses_nothing():
    """A second or a month, a thousand looks or a million: at most `MOST_SPANS`, and the sums stay."""
    timeline, sent = Timeline(), 0
    for number in range(1, 20_001):
        span = Span(seconds=130.0, sent=number, in_flight=number % 7, spent={("m", "tokens"): 2.0})
        sent += number
        timeline._put((number - 1) * 130.0, number * 130.0, span)
    assert MOST_SPANS / 2 <= len(timeline.spans) <= MOST_SPANS
    total = timeline.total()
    assert (total.sent, total.spent) == (sent, {("m", "tokens"): pytest.approx(40_000.0)})
    assert sum(span.seconds for span in timeline.spans) == pytest.approx(130.0 * 20_000)
    assert max(span.in_flight for span in timeline.spans) == 6


def test_kinds_of_failure_are_few_however_many_a_server_invents():
    counts = Counts()
    for number in range(1000):
        counts.gave_up(f"code_{number}")
    assert (counts.failed, counts.failures.total()) == (1000, 1000)
    assert len(counts.failures) <= 101


@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.02, 1.0, 37.0, 5e6])
def test_a_quantile_of_times_is_at_most_a_fifth_too_long(seconds):
    times = Histogram()
    for factor in range(1, 101):
        times.add(seconds * factor)
    assert times.quantile(1.0) == times.longest == seconds * 100
    assert seconds * 50 <= times.quantile(0.5) * 1.0001
    assert times.quantile(0.5) <= max(0.001, seconds * 50 * 1.2) or seconds == 5e6
    assert sum(count for _, count in times.bins()) == 100
    assert Histogram().quantile(0.5) == 0.0


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_a_timeline_sees_is_what_happened(virtual_time, tmp_path):
    """Its sums are the run's, also of what was used of each limit; and no span uses more than its limits allow."""
    limits = {"requests": "60/min burst 1", "tokens": "90k/min burst 6000"}
    with prepared(tmp_path, [chat(n) for n in range(120)], Service(Simulation(**limits)), limits=limits) as made:
        timeline = Timeline()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(timeline.follow, made.run)
            await made.run()
            timeline.look(made.run)
            tasks.cancel_scope.cancel()
        total = timeline.total()
        assert (total.sent, total.answered) == (made.counts.sent, made.counts.answered) == (120, 120)
        assert total.spent == pytest.approx(made.counts.spent)
        shares = dict(timeline.limits())["", "requests", "60/min burst 1"]
        assert 0.9 < statistics.mean(share for share in shares if share is not None) <= 1.02
        page = Page(render(made.summary(), made.counts, timeline, title="t"))
        assert page.figures["wait_max"] > 0.9
