"""What a person sees while a run goes on."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from penstock.limits import parse
from penstock.llm.tokens import by_bytes
from penstock.runner import progress
from penstock.runner.client import Reply
from penstock.runner.engine import Run
from penstock.runner.formats import Prompt
from penstock.runner.output import Results, beside
from penstock.runner.place import Place
from penstock.runner.progress import Events, Plain, count_rows, follow
from penstock.runner.screen import Rich, picture, redraws
from penstock.runner.settings import Settings
from penstock.runner.source import Lines
from tests.runner.service import ANSWER, Service, prepared

SCREENS = Path(__file__).parent / "screens"
pytestmark = pytest.mark.anyio

ROW = b'{"body": {"model": "m", "messages": [{"role": "user", "content": "' + b"x" * 384 + b'"}]}}\n'


@pytest.fixture
def anyio_backend():
    """The one that the command line runs on."""
    return "asyncio"


@pytest.mark.parametrize("display", [Plain, Rich])
async def test_a_server_that_is_away_is_said_with_its_reason(tmp_path, virtual_time, display):
    """From the beginning, when nothing was sent yet; and a picture has it too."""
    from penstock.runner.client import NotSent

    rows = [{"body": json.loads(ROW)["body"]} for _ in range(3)]
    service = Service(answer=lambda _: NotSent("cannot connect to test:80: Connection refused"))
    with prepared(tmp_path, rows, service) as this:
        screen = Terminal()
        with contextlib.ExitStack() as stack:
            shown = display(screen)
            if display is Rich:
                stack.enter_context(shown)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(this.run)
                tasks.start_soon(follow, this.run, this.run._lines, shown)
                await anyio.sleep(45)
                this.run.stop("interrupted", "interrupted")
                tasks.cancel_scope.cancel()
        said = re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()))
    assert re.search(
        r"the server is away for \d+ s: cannot connect to test:80: Connection refused; tried again in \d+ s", said
    )


class Terminal(io.StringIO):
    """A terminal that remembers all that was drawn."""

    def isatty(self):
        return True


class Closed(io.StringIO):
    """A terminal that is gone."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture
def watched(tmp_path, virtual_time):
    """Runs 600 rows at one a second, for a minute and with a display."""

    class Slow(Service):
        def __init__(self, status, headers):
            super().__init__()
            self.status, self.headers = status, headers

        async def send(self, path, body, left):
            left()
            await anyio.sleep(2)
            return Reply(self.status, self.headers, ANSWER)

    async def watch(display, rows=600, seconds=60, name="", answer=(200, {})):
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        source.write_bytes(ROW * rows)
        with Results(out, beside(out, ".errors.jsonl")) as results, source.open("rb") as file:
            lines = Lines(file.fileno())
            limits = {"requests": (parse("60/min burst 10"),), "tokens": (parse("12k/min"),)}
            run = Run(lines, results, Settings(by_bytes), [Place(Slow(*answer), lambda _: (name, limits))])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                tasks.start_soon(follow, run, lines, display)
                await anyio.sleep(seconds)
                run.stop("interrupted", "interrupted")
                tasks.cancel_scope.cancel()
            return run

    return watch


async def test_a_log_gets_a_line_now_and_then(watched):
    """How much is done of how much, how fast against each limit, and how long the rest takes: here one row a second."""
    log = io.StringIO()
    await watched(Plain(log))
    lines = log.getvalue().splitlines()
    assert 5 <= len(lines) <= 6
    pattern = (
        r"penstock: (\d+) of 600, [23] in flight, \d+ waiting, 0 × 429; "
        r"requests (\d+)/min \((\d+)%\); tokens [\d,]+/min \(\d+%\); (\d+):(\d\d) min left"
    )
    done, rate, share, minutes, seconds = map(int, re.fullmatch(pattern, lines[-1]).groups())
    assert rate == 60
    assert 90 <= share <= 100
    assert minutes * 60 + seconds == pytest.approx(600 - done, abs=15)


async def test_a_terminal_gets_a_picture_that_moves(watched):
    terminal = Terminal()
    with Rich(terminal) as display:
        await watched(display, seconds=20, name="[bold]m[/x]")  # a name is no markup
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"(59|60|61)/min, (9[5-9]|100)% of what is allowed", drawn)
    assert "requests of [bold]m[/x]" in drawn
    assert len(re.findall(r"\d+ of 600", drawn)) > 50


async def test_a_burst_is_no_more_than_what_is_allowed(watched):
    """The first seconds spend what the limit held at first: it is all of what it allows, and not a multiple of its
    rate."""
    terminal = Terminal()
    with Rich(terminal) as display:
        await watched(display, seconds=5)
    shares = [int(share) for share in re.findall(r"(\d+)% of what is allowed", terminal.getvalue())]
    assert 90 < max(shares) <= 100


@pytest.mark.parametrize("columns", [80, 200])
async def test_the_picture_fills_the_screen(watched, columns, monkeypatch):
    """As it is kept in `screens`, letter by letter."""
    views = []
    monkeypatch.setattr(progress.Plain, "show", lambda _, seen: views.append(seen))
    monkeypatch.setattr(progress.Plain, "every", 0.25)
    run = await watched(Plain(io.StringIO()), seconds=45.1)
    run.counts.dollars = 1.2
    run._troubles.last_error = (
        "Rate limit reached for m in organization org-1 on requests per min (RPM): Limit 60, Used 60"
    )
    screen = io.StringIO()
    Console(file=screen, width=columns, color_system=None, force_terminal=True).print(picture(views[-1]))
    drawn = "".join(line.rstrip() + "\n" for line in screen.getvalue().splitlines())
    assert max(map(len, drawn.splitlines())) <= columns
    assert drawn == (SCREENS / f"{columns}.txt").read_text(encoding="utf-8")


async def test_events_tell_programs_all_that_is_seen(watched):
    told = io.StringIO()
    await watched(Events(told), seconds=20)
    events = [json.loads(line) for line in told.getvalue().splitlines()]
    assert len(events) in {20, 21}
    last = events[-1]
    assert (last["event"], last["total"], last["failed"], last["status_429"]) == ("progress", 600, 0, 0)
    assert last["answered"] == last["done"] > 20
    assert {one["name"] for one in last["limits"]} == {"requests", "tokens"}
    least, most = last["left"]
    assert 500 < least <= most


@pytest.mark.parametrize("kind", [Plain, Rich])
async def test_a_terminal_that_is_gone_does_not_end_the_run(watched, kind):
    run = await watched(kind(Closed()), seconds=30)
    assert run.counts.answered > 25


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (
            429,
            r"penstock: 0 of 5, 0 in flight, 5 waiting, 5 × 429; paused for 1:0\d:\d\d h; .* 1:0\d:\d\d h left",
        ),
        (503, r"penstock: 0 of 5, \d in flight, [0-5] waiting, 0 × 429, [1-9]\d* sent again; "),
    ],
    ids=["told to wait for hours", "out of order"],
)
async def test_a_log_says_so_where_nothing_gets_through(watched, status, shown):
    """Else it would say nothing until the end, and the run would seem to hang."""
    log = io.StringIO()
    await watched(Plain(log), rows=5, answer=(status, {"retry-after": "7000"} if status == 429 else {}))
    lines = log.getvalue().splitlines()
    assert 5 <= len(lines) <= 6
    assert re.match(shown, lines[1]), lines[1]


async def test_a_pause_is_shown(watched, monkeypatch):
    terminal = Terminal()

    async def pause(run, lines, display):
        await anyio.sleep(5)
        run.groups[""].endpoint.limiter.pause(30)
        await progress_follow(run, lines, display)

    progress_follow = follow
    monkeypatch.setitem(globals(), "follow", pause)
    with Rich(terminal) as display:
        await watched(display, seconds=20)
    assert re.search(r"paused for \d+ s", terminal.getvalue())


@pytest.mark.parametrize(("content", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\nb", 2), (b"\n\n", 2)])
def test_lines_are_counted_without_reading_them(tmp_path, content, lines):
    (tmp_path / "f").write_bytes(content)
    with (tmp_path / "f").open("rb") as file:
        assert count_rows(Lines(file.fileno())) == lines


TABLE = b"id,text\n" + b"".join(b'%d,"two\nlines"\n' % number for number in range(7))


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("in.jsonl.gz", gzip.compress(ROW * 300), 300),
        ("in.json", b"[" + b",".join([ROW.strip()] * 5) + b"]", 5),
        ("in.jsonl", (ROW.decode() * 3).encode("utf-16"), 3),
        ("in.csv", TABLE, 7),
        ("cut.jsonl.gz", gzip.compress(ROW * 300)[:-20], None),
    ],
)
def test_rows_are_counted_where_lines_are_no_rows(tmp_path, name, content, rows):
    """Ends of lines in compressed bytes, in a table's head and its values say nothing of how much is still to do."""
    (tmp_path / name).write_bytes(content)
    prompt = Prompt("say {text}") if name.endswith("csv") else None
    with (tmp_path / name).open("rb") as file:
        assert count_rows(Lines(file.fileno(), name=name, prompt=prompt)) == rows


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 10), ({"rows": 4}, 4), ({"rows": 40}, 10), ({"shard": (2, 4)}, 3), ({"shard": (4, 4), "rows": 3}, 0)],
)
def test_what_is_to_do_is_what_was_asked_for(options, rows):
    assert Settings(by_bytes, **options).of(10) == rows
    assert (
        sum(Settings(by_bytes, **options).has(line) for line in range(1, min(10, options.get("rows", 10)) + 1)) == rows
    )


async def test_how_long_it_takes_is_not_said_before_anything_is_done(watched):
    """The first answer takes two seconds; a second before, all that is known is that five are under way."""
    screen = io.StringIO()
    shown = Plain(screen)
    shown.every = 1.0
    await watched(shown, seconds=4)
    first, *later = screen.getvalue().splitlines()
    assert "0 of 600" in first
    assert "left" not in first
    assert "left" in later[-1]


def test_lines_of_a_pipe_are_not_counted():
    reading, writing = os.pipe()
    assert count_rows(Lines(reading)) is None
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (59, "59 s"), (61, "1:01 min"), (3_599, "59:59 min"), (7_384, "2:03:04 h")]
)
def test_times_are_short(seconds, shown):
    assert progress.span_words(seconds) == shown


@pytest.mark.parametrize(("kind", "answer"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_can_only_print_gets_lines(monkeypatch, kind, answer):
    """Rich draws nothing in it, so nothing at all would be seen."""
    monkeypatch.setenv("TERM", kind)
    assert redraws(Terminal()) is answer
    assert not redraws(io.StringIO())
