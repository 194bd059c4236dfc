"""Break each promise of the design on purpose, and see that a test of it fails, on every loop.

    python tools/break_promises.py

Works in a copy of the tree. Prints a table; ends with 1 if a promise can be broken without a test that says so. A line
that is to be broken and is not found, or found twice, is an error: the source has changed, and this file must follow.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
LOOPS = ("asyncio", "uvloop", "trio")
PATIENCE = 30  # seconds until tests that hang have failed


class Break(NamedTuple):
    """One way to break one promise."""

    promise: int
    what: str
    lines: tuple[tuple[str, str, str], ...]  # file, what stands there, what it becomes
    tests: tuple[str, ...]  # with {loop} in their ids


RANDOM = "test_promises.py::test_no_interval_ever_holds_more_than_its_burst_and_its_rate[{loop}]"
GIVING_UP = "test_promises.py::test_a_grant_to_one_that_was_just_cancelled_is_undone[{loop}]"

BREAKS = (
    Break(
        1,
        "a bucket grants one unit more than its burst",
        (("_core/bucket.py", "    ceiling = burst + min(", "    ceiling = burst + 1 + min("),),
        (RANDOM, "limiter/test_charging.py::test_a_full_bucket_of_ten_grants_exactly_ten[{loop}]"),
    ),
    Break(
        2,
        "what was charged before a limit that is not ready stays charged",
        (("_core/charging.py", "        receipt = None\n        _take_back(charges, receipts, now)\n", "        receipt = None\n"),),
        ("test_promises.py::test_a_call_that_waits_for_one_limit_has_taken_nothing_of_another[{loop}]",),
    ),
    Break(
        3,
        "the timekeeper wakes up half a second late",
        (("_backends/queue.py", "return until - now if until > now else 0.0", "return max(until - now, 0.0) + 0.5"),),
        ("limiter/test_machine.py::test_with_demand_waiting_no_capacity_is_lost[{loop}]",),
    ),
    Break(
        4,
        "no waiter is protected from those that could go before it",
        (("_core/turns.py", "if after > horizon + _SAME_MOMENT:", "if False:"),),
        (
            "limiter/test_order.py::test_a_whale_is_served_at_its_projected_time_and_free_minnows_pass_it[{loop}]",
            "limiter/test_order.py::test_backfill_stops_where_it_would_delay_the_head[{loop}]",
        ),
    ),
    Break(
        5,
        "a grant is not undone when its owner is cancelled",
        (("_backends/queue.py", "            request.receipts = None\n            undo(request.charges, receipts, now)\n            if", "            request.receipts = None\n            if"),),
        (GIVING_UP,),
    ),
    Break(
        5,
        "a waiter that gives up keeps its place in the queue",
        (("_backends/queue.py", "        receipts = request.receipts\n        self.waiters.leave(request)\n", "        receipts = request.receipts\n"),),
        ("limiter/test_order.py::test_giving_up_spends_nothing[{loop}]",),
    ),
    Break(
        6,
        "a refund is cut off at the capacity, and nothing else",
        (("_core/refunds.py", "back = amount if receipt - refill >= amount else ", "back = max(0.0, min(amount, tat - refill)) or "),),
        (RANDOM, "limiter/test_permits.py::test_a_refund_after_an_overflow_gives_nothing[{loop}]"),
    ),
    Break(
        7,
        "a wait is named a thousandth too short",
        (("_core/bucket.py", "- refill) / self.rate\n", "- refill) / self.rate * 0.999\n"),),
        ("limiter/test_charging.py::test_retry_after_is_the_first_moment_that_succeeds[{loop}]",),
    ),
    Break(
        7,
        "a wait is named a thousandth too long",
        (("_core/bucket.py", "- refill) / self.rate\n", "- refill) / self.rate * 1.001\n"),),
        ("test_promises.py::test_a_wait_ends_at_the_first_moment_at_which_it_can[{loop}-7]",),
    ),
    Break(
        8,
        "a call that ends is given back",
        (
            ("_backends/fast_path.py", '    held = "p" in shape\n', "    held = True\n"),
            ("_call.py", "            permit._end()\n", "            permit.cancel()\n"),
        ),
        ("limiter/test_charging.py::test_failed_calls_stay_charged[{loop}]",),
    ),
    Break(
        9,
        "a shorter pause takes the place of a longer one",
        (("_backends/local.py", "state.paused_until = max(state.paused_until, until)", "state.paused_until = until"),),
        (
            "limiter/test_pauses.py::test_a_pause_holds_everybody_and_is_never_shortened[{loop}]",
            "test_promises.py::test_one_refusal_of_the_server_stops_everybody_once[{loop}]",
        ),
    ),
    Break(
        9,
        "a call that comes during a pause is not told of it",
        (("_backends/queue.py", "        self._paused.append(state)\n", "        pass\n"),),
        ("limiter/test_pauses.py::test_a_pause_outlives_those_that_give_up_in_it[{loop}]",
         "test_promises.py::test_one_refusal_of_the_server_stops_everybody_once[{loop}]"),
    ),
    Break(
        10,
        "a thread wakes a loop as if it were its own",
        (
            ("_concurrency/parking.py", "        if here is self.home or _task_running_in(self.home):\n            future", "        if True:\n            future"),
            ("_concurrency/parking.py", "        if here is self.home or (in_trio_task() and trio.lowlevel.current_trio_token() is self.home):", "        if True:"),
        ),
        (
            "test_promises.py::test_a_place_given_back_by_a_thread_wakes_a_waiter_in_a_loop[{loop}-close]",
            "test_promises.py::test_a_place_given_back_by_a_thread_wakes_a_waiter_in_a_loop[{loop}-cancel]",
        ),
    ),
)  # fmt: skip


def pytest(tree: Path, tests: tuple[str, ...], loop: str) -> bool:
    """Whether the tests pass on that loop, in that tree."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={PATIENCE}"]
    done = subprocess.run(
        [*command, *(f"tests/{test.format(loop=loop)}" for test in tests)],
        cwd=tree,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree / "src"), "HYPOTHESIS_PROFILE": "same"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 4:  # there is no such test
        raise SystemExit(f"{tests} on {loop}: {done.stdout}{done.stderr}")
    return done.returncode == 0


def main() -> int:
    """Print the table; return the exit code."""
    kept = 0
    with tempfile.TemporaryDirectory(prefix="penstock-promises-") as folder:
        tree = Path(folder)
        for name in ("src", "tests", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        for loop in LOOPS:
            if not pytest(tree, tuple(dict.fromkeys(test for each in BREAKS for test in each.tests)), loop):
                raise SystemExit(f"the tests do not pass on {loop} before anything is broken")
        print("| promise | broken on purpose | held by | failed on |\n|---|---|---|---|")
        for each in BREAKS:
            files = {name: (tree / "src/penstock" / name).read_text() for name, _, _ in each.lines}
            broken = dict(files)
            for name, old, new in each.lines:
                if broken[name].count(old) != 1:
                    raise SystemExit(
                        f"promise {each.promise}: {old!r} stands {broken[name].count(old)} times in {name}"
                    )
                broken[name] = broken[name].replace(old, new)
            for name, text in broken.items():
                compile(text, name, "exec")  # what is broken is the promise, not the grammar
                (tree / "src/penstock" / name).write_text(text)
            failed = [loop for loop in LOOPS if not pytest(tree, each.tests, loop)]
            for name, text in files.items():
                (tree / "src/penstock" / name).write_text(text)
            kept += len(failed) < len(LOOPS)
            names = "<br>".join(dict.fromkeys(f"`{test.partition('::')[2].partition('[')[0]}`" for test in each.tests))
            print(f"| {each.promise} | {each.what} | {names} | {', '.join(failed) or '**nothing**'} |", flush=True)
    return 1 if kept else 0


if __name__ == "__main__":
    sys.exit(main())
