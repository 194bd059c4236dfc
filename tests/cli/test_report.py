"""`penstock report`: Markdown, CSV and HTML that say the same, and nothing that a name can break."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from contextlib import closing
from datetime import timedelta
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from penstock.cli import main
from tests.browser import needs_a_browser, shown
from tests.cli import commands as requests
from tests.docs_examples import ROOT
from tests.usage.recorded import MONDAY, recorded
from tests.usage.test_evidence import growing

EVIL = '<script>alert(1)</script>|`x`\n="&'


@pytest.fixture
def path(tmp_path):
    def write(recorder):
        growing(recorder)
        recorder.limits(MONDAY, requests=10)
        recorder.call(MONDAY + timedelta(days=11), count=9, tokens=10, waited=4.0, user="bob")
        recorder.call(MONDAY + timedelta(days=11), status=429, tokens=0)
        recorder.call(MONDAY, model=EVIL)

    return recorded(tmp_path / "usage.db", write)


def said(capsys, *arguments):
    code = main(["report", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_report_says_what_the_guide_asks_for(path, capsys):
    code, out, _ = said(
        capsys, path, "--limits", "requests=10/min,tokens=325k/min", "--price", "0.02", "--tz", "Europe/Berlin"
    )
    assert code == 0
    for line in (
        "# Use of models: usage.db",
        "From 2026-05-01 11:00 CEST to 2026-05-15 11:01 CEST.",
        "## m-1",
        "| tokens a minute | 100 | 290 | 290 | 325,000/min |",
        "| requests a minute | 1 | 11 | 11 | 10/min |",
        "| users | 2 |",
        "| minutes at ≥ 90 % of 10/min requests | 1 (9.1%) |",
        "| time lost waiting | 36 s (1.7 s a call) |",
        "| 429s | 1 |",
        "### The last 10 business days",
        "| Fri 2026-05-15 | 11 | 290 | 11 | 290 | 290 | 2 | 1 | 36 s | $0.0058 |",
        "### Growth",
        "All input: 325,000 tokens a minute × 60 × $0.02 per 1,000 tokens = $390.00.",
    ):
        assert line in out.splitlines() or line in out, line
    assert out.count("| Mon 2026-05-") >= 2


def test_the_three_forms_hold_the_same_figures(path, tmp_path, capsys):
    for name in ("report.md", "report.csv", "report.html"):
        assert said(capsys, path, "-o", tmp_path / name)[2] == f"penstock: written to {tmp_path / name}\n"
    rows = {
        (row["model"], row["period"]): row for row in csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text()))
    }
    assert float(rows["m-1", "all"]["tokens"]) == 1_591
    assert float(rows["m-1", "2026-05-15"]["requests_per_min_max"]) == 11
    assert len([key for key in rows if key[0] == "m-1"]) == 11
    cells = Cells.of(tmp_path / "report.html")
    for cell in ("290", "36 s", "Fri 2026-05-15", "1,600/min"):
        assert cell in cells
        assert cell in (tmp_path / "report.md").read_text()


class Cells(HTMLParser):
    """The texts of a page's cells; and what it would load."""

    def __init__(self):
        super().__init__()
        self.cells, self.loads, self.tags = [], [], []

    @classmethod
    def of(cls, path):
        reader = cls()
        reader.feed(path.read_text(encoding="utf-8"))
        return reader.cells

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in {"src", "href", "action", "srcset", "data"}]

    def handle_data(self, data):
        self.cells.append(data)


def test_a_page_asks_for_nothing_and_no_name_breaks_it(path, tmp_path, capsys):
    said(capsys, path, "-o", tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Cells()
    page.feed(text)
    assert page.loads == ["data:,"]
    assert "script" not in page.tags
    assert "http://" not in text
    assert "https://" not in text
    assert any("<script>alert(1)</script>" in cell for cell in page.cells)
    pictures = [part.partition("</svg>")[0] + "</svg>" for part in text.split("<svg")[1:]]
    assert len(pictures) == 4
    for picture in pictures:
        ET.fromstring("<svg" + picture)  # it is whole
    assert "limit 1,600" in text


@needs_a_browser
def test_a_browser_shows_a_page_without_an_error_or_a_request(path, tmp_path, capsys):
    said(capsys, path, "-o", tmp_path / "report.html")
    page = shown(tmp_path / "report.html", tmp_path / "browser")
    assert "Fri 2026-05-15" in page
    assert page.count("<svg") == 4


@needs_a_browser
def test_a_browser_shows_the_report_of_a_run_with_the_figures_of_its_ledger(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(requests.chat(number)) + "\n" for number in range(40)))
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--latency", "0.01", "--ledger", "usage.db"]
    assert main([*command, "--limits", requests.LIMITS, "--report", "run.html"]) == 0
    with closing(sqlite3.connect("usage.db")) as ledger:
        estimates = [json.loads(each) for (each,) in ledger.execute("SELECT estimated FROM calls WHERE status = 200")]
    page = shown(tmp_path / "run.html", tmp_path / "browser")
    figures = dict(re.findall(r'data-figure="([^"]+)" data-value="([^"]+)"', page))
    assert len(estimates) == int(figures["answered"]) == int(figures["sent"]) == 40
    assert sum(each["tokens"] for each in estimates) == float(figures["spent:tokens:"])
    assert sum(each["requests"] for each in estimates) == float(figures["spent:requests:"])
    assert page.count("<svg") >= 3


def test_the_page_of_the_docs_shows_what_it_writes(path, capsys):
    """Each row of its tables, from the ledger of these tests."""
    out = said(capsys, path, "--limits", "requests=10/min,tokens=325k/min", "--price", "0.02", "--tz", "Europe/Berlin")[
        1
    ]
    page = (ROOT / "docs" / "usage-evidence.md").read_text(encoding="utf-8")
    block = page.partition("```markdown\n")[2].partition("```")[0]
    lines = [line for line in block.splitlines() if line.strip() not in {"", "…"}]
    assert len(lines) > 15
    assert [line for line in lines if line not in out.splitlines()] == []


def test_no_name_breaks_markdown_or_a_spreadsheet(tmp_path, capsys):
    path = recorded(tmp_path / "usage.db", lambda recorder: recorder.call(MONDAY, model="=1+1|<b>"))
    assert r"## =1+1\|\<b\>" in said(capsys, path)[1]
    assert "\n'=1+1|<b>,all," in said(capsys, path, "--format", "csv")[1]


def test_one_model_and_a_span_of_time_alone(path, capsys):
    out = said(
        capsys, path, "--model", "m-1", "--since", "2026-05-15", "--until", "2026-05-16T00:00", "--format", "csv"
    )[1]
    assert [line.split(",")[2:5] for line in out.splitlines()[1:2]] == [["11", "11", "290.0"]]
    assert "script" not in out
    assert "No call was recorded." in said(capsys, path, "--since", "1h")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FILE", "--tz", "Mars/Base"], "--tz: unknown time zone 'Mars/Base'"),
        (["FILE", "--since", "yesterday"], "--since: cannot read 'yesterday': write it like 2026-05-01"),
        (["FILE", "--limits", "tokens=-5/min"], "--limits: tokens"),
        (["FILE", "--price", "-1"], "--price: -1.0 is not an amount of dollars"),
        (["FILE", "--growth", "nan"], "--growth: nan is not a percentage per week"),
        (["FILE", "--model", "m-9"], "has no call of 'm-9'"),
        (["FILE", "-o", "FILE"], "is the ledger itself"),
        (["FILE", "-o", "nowhere/x.md"], "cannot write nowhere/x.md: No such file"),
        (["FILE", "--prices", "FILE"], "prices"),
        (["nowhere.db"], "there is no ledger at nowhere.db"),
        (["."], "there is no ledger at ."),
        ([__file__], "cannot be read as a ledger"),
    ],
)
def test_what_is_wrong_is_one_sentence(path, capsys, arguments, words):
    before = path.read_bytes()
    code, out, err = said(capsys, *[path if word == "FILE" else word for word in arguments])
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert path.read_bytes() == before


def test_a_run_writes_the_ledger_that_a_report_reads(tmp_path, monkeypatch, capsys):
    """Every attempt once, those that were refused too, with what the answers say that they took."""
    monkeypatch.chdir(tmp_path)
    requests.write(tmp_path, range(30))
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--ledger", "usage.db", "--quiet"]
    assert main([*command, "--simulate", "--latency", "0.01", "--limits", "requests=6000/min,tokens=600k/min"]) == 0
    with closing(sqlite3.connect(tmp_path / "usage.db")) as file:
        rows = file.execute(
            "SELECT model, outcome, status, input_tokens, output_tokens, dollars, elapsed FROM calls"
        ).fetchall()
        limits = dict(file.execute("SELECT unit, amount FROM limits").fetchall())
    answers = [line["response"]["body"]["usage"] for line in requests.lines_of(tmp_path / "out.jsonl")]
    assert {row[:3] for row in rows} == {("gpt-4o-mini", "answered", 200)}
    assert sum(row[3] for row in rows) == sum(usage["prompt_tokens"] for usage in answers)
    assert sum(row[4] for row in rows) == sum(usage["completion_tokens"] for usage in answers)
    assert all(row[5] > 0 and row[6] > 0 for row in rows)
    assert len(rows) == 30
    assert limits == {"requests": 6_000, "tokens": 600_000}
    assert main(["report", "usage.db"]) == 0
    assert "gpt-4o-mini" in capsys.readouterr().out


def test_a_ledger_that_is_none_is_said_before_anything_is_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    requests.write(tmp_path, range(3))
    (tmp_path / "notes").write_text("my notes\n" * 1_000)
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--ledger", "notes"]) == 2
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--ledger", "."]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "penstock: --ledger: cannot write notes: file is not a database",
        "penstock: cannot write .: Is a directory",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "notes"]
    assert (tmp_path / "notes").read_text() == "my notes\n" * 1_000
