"""Kill `penstock run` at random instants, again and again: nothing is lost, nothing is paid for twice unknowingly.

    python tools/kill_runs.py [--rows 20000] [--seed 1]

A simulated server answers; the run is killed by SIGKILL, begun again by the same command, and so on until it ends by
itself. Three rounds: 100 kills without limits, 30 under limits that bind, and 15 with results in the order of the
input. Of each round it is shown that

- every row has one answer, and it is the answer to that row;
- a row reached the server a second time only if the run that sent it again had said that it may have been billed;
- the limits were kept over all restarts: by the server's ledger, and by what it refused, of which the table has the
  number. A busy machine lets requests arrive in bunches, so one in a hundred may be refused. The ledger alone would
  prove nothing: it is the server that keeps it.

It takes about ten minutes, prints a table, and ends with 1 if any of this is not so. Instants are drawn from the seed;
processes are not, so no two rounds are the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from penstock import simulator
from penstock.runner.source import named_key
from penstock.simulator import Latency, Simulation, charge, excess, fingerprint

PATIENCE = 1200.0
"""Seconds after which a run that was not killed should have ended."""


REFUSED = 0.01
"""The share of its requests that a server may refuse to runs that keep its limits.

Runs that forgot what was used before a kill would be refused a burst after each: 30 × 50 of 20,000.
"""


class Round(NamedTuple):
    """Runs of one command that are killed."""

    name: str
    kills: int
    share: float  # of the rows
    rate: float  # rows a second that it does at least, or it would end before its last kill
    limits: str | None  # those of the server, which the command is given
    options: tuple[str, ...] = ()


ROUNDS = (
    Round("no limits", 100, 1.0, 150.0, None),
    Round("limits that bind", 30, 1.0, 45.0, "requests=3000/min burst 50,tokens=60k/min burst 2000"),
    Round("results in the order of the input", 15, 0.5, 150.0, None, ("--order", "input")),
)


class Server:
    """A simulated server that knows which rows have reached it, and how often."""

    def __init__(self, limits: str | None, seed: int) -> None:
        """Serve from entering to leaving."""
        pairs = dict(pair.split("=") for pair in limits.split(",")) if limits else {}
        latency = Latency(median=0.15, sigma=0.4)
        self.arrived: Counter[str] = Counter()
        self.simulation = Simulation(**pairs, latency=latency, seed=seed, charge=self._charge)
        self.served = simulator.serve(self.simulation)

    @property
    def refused(self) -> int:
        """Requests that were refused until now."""
        return sum(self.served.statistics().refused.values())

    def _charge(self, path: str, body: Mapping[str, Any]) -> int:
        self.arrived[body["messages"][-1]["content"]] += 1
        return charge(path, body)


class Killed:
    """The life of one command, through all its kills."""

    def __init__(self, folder: Path, rows: list[str], kind: Round, server: Server) -> None:
        """Nothing runs yet."""
        self.folder, self.rows, self.kind, self.server = folder, rows, kind, server
        lines = [line_of(number, text) for number, text in enumerate(rows)]
        self.text_of = {named_key(line): text for line, text in zip(lines, rows, strict=True)}
        self.out, self.journal = folder / "out.jsonl", folder / "out.jsonl.journal"
        (folder / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        limits = ("--limits", kind.limits) if kind.limits else ()
        url = ("--base-url", server.served.base_url)
        self.command = [
            sys.executable,
            "-m",
            "penstock",
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            *url,
            *limits,
            *kind.options,
        ]
        self.told = self.again = 0
        self.wrong: list[str] = []

    def live(self, seconds: float, *, from_start: bool) -> bool:
        """Run for so long, and be killed; whether it ended by itself before.

        Args:
            seconds: Until the kill.
            from_start: Count them from the start of the process; else from its first request.
        """
        before, open_, refused = self.server.arrived.copy(), self.open_rows(), self.server.refused
        environment = {**os.environ, "OPENAI_API_KEY": "sk-none"}
        with (self.folder / "err").open("wb") as err:
            process = subprocess.Popen(self.command, cwd=self.folder, stdout=err, stderr=err, env=environment)
        # By their totals, which are summed in one step: the server's thread may add a row while the rows are compared.
        while not from_start and process.poll() is None and self.server.arrived.total() == before.total():
            time.sleep(0.005)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        self.look_at(before, open_, self.server.refused - refused, (self.folder / "err").read_text())
        if code not in {None, 0}:
            self.wrong.append(f"exit code {code}: {(self.folder / 'err').read_text()[-300:]}")
        return code is not None

    def open_rows(self) -> set[str]:
        """The rows of which the journal knows that they were sent, and nothing more."""
        records = self.journal.read_bytes().split(b"\n")[1:-1] if self.journal.exists() else []
        latest = {record[9:25]: record[2:6] for record in records}
        return {
            self.text_of[int.from_bytes(bytes.fromhex(key.decode()), "little")]
            for key, kind in latest.items()
            if kind == b"sent"
        }

    def look_at(self, before: Counter[str], open_: set[str], refused: int, said: str) -> None:
        """What reached the server again in one life must have been open before it, and the run must have said so."""
        again = {text for text, times in (self.server.arrived - before).items() if before[text] or times > 1}
        found = re.search(r"([\d,]+) rows? (?:was|were) under way", said)
        told = int(found[1].replace(",", "")) if found else 0
        self.told, self.again = self.told + told, self.again + len(again)
        if len(again - open_) > refused:  # what was refused is sent again
            self.wrong.append(
                f"{len(again - open_)} rows were sent again that were not open, such as {min(again - open_)!r}"
            )
        if told < len(open_) and "penstock: " in said:
            self.wrong.append(f"{len(open_)} rows were open, and {told} were told")

    def check(self) -> None:
        """At the end: every row has one answer, its own."""
        results = [json.loads(line) for line in self.out.read_bytes().splitlines()]
        answers = {
            result["custom_id"]: result["response"]["body"]["choices"][0]["message"]["content"] for result in results
        }
        if len(results) != len(self.rows) or len(answers) != len(self.rows):
            self.wrong.append(f"{len(self.rows)} rows, {len(results)} answers, to {len(answers)} of them")
        for number, text in enumerate(self.rows):
            if not answers.get(f"row-{number}", "").startswith(fingerprint(text)):
                self.wrong.append(f"row-{number} has another row's answer")
                break
        if self.kind.options and [result["custom_id"] for result in results] != [
            f"row-{n}" for n in range(len(self.rows))
        ]:
            self.wrong.append("the results are not in the order of the input")


def line_of(number: int, text: str) -> bytes:
    """A row in the format of OpenAI's batches."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    return json.dumps(
        {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    ).encode()


def kill(kind: Round, count: int, seed: int) -> tuple[list[str], list[str]]:
    """One round: its line of the table, and what was wrong."""
    chance = random.Random(f"{seed} {kind.name}")  # noqa: S311
    rows = [f"question {number} {'word ' * chance.choice((1, 5, 40))}" for number in range(int(count * kind.share))]
    server = Server(kind.limits, seed)
    began, kills = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, server.served as served:
        killed = Killed(Path(folder), rows, kind, server)
        ended = False
        while not ended and kills < kind.kills:
            answered = served.statistics().answered
            life = (len(rows) - answered) / kind.rate / (kind.kills - kills)  # so that the last kill is near the end
            ended = killed.live(chance.uniform(0.0, 2 * life), from_start=chance.random() < 0.2)
            kills += not ended
        if not ended:
            killed.live(PATIENCE, from_start=True)
        killed.check()
        statistics = served.statistics()
    admitted, refused = statistics.admitted, sum(statistics.refused.values())
    if kills < kind.kills:
        killed.wrong.append(f"it ended after {kills} kills")
    if refused > REFUSED * admitted:
        killed.wrong.append(f"the server refused {refused} requests: {statistics.refused}")
    for limit in statistics.limits:
        charges = [(one.at_ns, 1 if limit.unit == "requests" else one.tokens) for one in statistics.admissions]
        if excess(charges, limit.limit) > 1:
            killed.wrong.append(f"{limit.unit}: {float(excess(charges, limit.limit)):.1f} over the limit")
    used = " ".join(f"{limit.share:.1%}" for limit in statistics.limits)
    numbers = (kills, len(rows), admitted, killed.again, killed.told, refused, used, f"{time.monotonic() - began:.0f}")
    return [kind.name, *map(str, numbers)], killed.wrong


def main() -> int:
    """Go through all rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--round", type=int, action="append", choices=range(len(ROUNDS)), help="of all, these alone")
    options = parser.parse_args()
    print("| | kills | rows | sent | of them again | told | refused | of the limits | seconds |")
    print("|---|" + "---:|" * 8, flush=True)
    faults = []
    for number in options.round or range(len(ROUNDS)):
        line, wrong = kill(ROUNDS[number], options.rows, options.seed)
        print(f"| {' | '.join(line)} |", flush=True)
        faults += [f"{line[0]}: {fault}" for fault in wrong]
    print(
        "\n".join(faults) or "\nEvery row was answered once; whatever was sent again had been told.",
        file=sys.stderr if faults else sys.stdout,
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
