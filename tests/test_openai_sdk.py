"""The real openai SDK, of both generations, under limits, against the simulator over a real socket.

Each version runs `openai_scenarios.py` in an interpreter of its own. What the servers saw is what counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.simulator import Latency, Simulation, serve

ROOT = Path(__file__).parent.parent

# A machine with other things to do delays the server as well, by more than any headroom; that is forgiven here, and it
# does not add up. What holds to the nanosecond is in llm/test_transport.py, in virtual time.
BUSY = {"latency": Latency(0.05, 0.5), "tolerance": 0.5}

SERVERS = {
    "keeps": Simulation(requests="1200/min burst 20", tokens="600k/min", **BUSY),
    "auto": Simulation(requests="600/min", tokens="60k/min", **BUSY),
    "pauses": Simulation(requests="6000/min"),
    "quota": Simulation(),
    "streams": Simulation(concurrency=1, output_tokens=64),
    "too_large": Simulation(),
    "max_wait": Simulation(),
    "retries": Simulation(),
    "nobody_there": Simulation(),
    "published": Simulation(),
    "collected": Simulation(latency=Latency(0.5)),
    "in_threads": Simulation(),
    "other_http_clients": Simulation(),
    "azure": Simulation(),
}


def openai_2():
    """The interpreter with the SDK's second generation; `make test` sets it up."""
    there = ROOT / ".venv-openai2" / "bin" / "python"
    path = os.environ.get("PENSTOCK_OPENAI2_PYTHON") or (str(there) if there.exists() else "")
    if not path:
        pytest.fail("no interpreter with openai 2: run `make test`, or set PENSTOCK_OPENAI2_PYTHON to one")
    return path


@pytest.fixture(scope="module", params=["openai 3", "openai 2"])
def run(request):
    """What the program told, and what the servers saw."""
    python = sys.executable if request.param == "openai 3" else openai_2()
    with ExitStack() as stack:
        servers = {name: stack.enter_context(serve(simulation)) for name, simulation in SERVERS.items()}
        servers["quota"].inject("insufficient_quota", 9)
        servers["retries"].inject("server_error")
        urls = json.dumps({name: server.base_url for name, server in servers.items()})
        program = subprocess.run(
            [python, str(ROOT / "tests" / "openai_scenarios.py"), urls],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert program.returncode == 0, program.stderr
        told = json.loads(program.stdout)
        assert told["version"].startswith(request.param.removeprefix("openai ") + ".")
        return SimpleNamespace(told=told, saw={name: server.statistics() for name, server in servers.items()})


def test_the_right_limits_are_used_up_without_one_429(run):
    """Forty requests to three endpoints, twenty at once and twenty a second: one second, and what the machine takes."""
    saw = run.saw["keeps"]
    assert (saw.admitted, saw.answered, saw.refused) == (3 + 40, 3 + 40, {})
    span = (saw.admissions[-1].at_ns - saw.admissions[3].at_ns) / 1e9
    assert 1.0 - 0.5 <= span < 10


def test_the_client_is_as_it_was_and_the_given_one_is_not_limited(run):
    told = run.told["keeps"]
    assert told["same type"]
    assert told["kept"]
    assert told["granted after the original's"] == told["granted"] == 40


def test_limits_that_nobody_gave_are_learned_without_one_429(run):
    assert (run.saw["auto"].answered, run.saw["auto"].refused) == (25, {})


def test_one_429_stops_everybody_once(run):
    """The eleventh request is refused for a second: one 429, and one gap before all that had not left by then."""
    saw = run.saw["pauses"]
    assert (saw.refused, saw.answered) == ({"slow_down": 1}, 20)
    times = [admission.at_ns / 1e9 for admission in saw.admissions]
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    assert gaps[-1] >= 0.5  # less than a second by as much as the 429 took to reach us


def test_an_empty_account_reaches_the_caller_at_once_with_one_request_sent(run):
    assert run.told["quota"] == {"code": "insufficient_quota", "retry_on": False}
    assert run.saw["quota"].refused == {"insufficient_quota": 1}


def test_a_stream_gives_its_place_back_when_it_is_read_and_when_it_is_left(run):
    assert run.told["streams"] == {"during": 1, "after": 0, "text": True}


def test_a_request_that_can_never_fit_is_not_sent_and_says_why(run):
    told = run.told["too_large"]
    assert (told["code"], told["retry_on"]) == ("request_too_large", False)
    assert "6 tokens can never be granted" in told["message"]
    assert run.saw["too_large"].admitted == 0


def test_a_wait_that_is_too_long_fails_at_once_and_a_retry_may_wait_for_it(run):
    told = run.told["max_wait"]
    assert told["code"] == "rate_limited"
    assert told["seconds"] < 15 < told["retry_on"] <= 30.3
    assert run.saw["max_wait"].answered == 3


def test_every_retry_of_the_sdk_is_charged(run):
    assert run.told["retries"] == {"granted": 2}
    assert run.saw["retries"].admitted == 2


def test_a_request_that_never_left_costs_nothing(run):
    """All is back but the headroom: a quarter of a second's worth."""
    told = run.told["nobody_there"]
    assert told["retry_on"] is True
    assert told["levels"]["requests"] >= 600 - 2.5 - 0.01
    assert told["levels"]["tokens"] >= 60_000 - 250 - 1


def test_published_limits_are_per_model_and_unknown_models_are_not_sent(run):
    assert run.told["published"] == {"code": "no_limits_known", "answered": True}
    assert run.saw["published"].admitted == 1


def test_a_limited_client_that_is_dropped_leaves_the_connections_of_the_given_one_alone(run):
    assert run.told["collected"] == {"answered": True}


def test_the_sync_client_is_limited_in_its_threads(run):
    assert run.told["in_threads"] == {"answers": [True] * 6, "in_flight": 0}
    assert run.saw["in_threads"].peak_in_flight <= 2


def test_azures_client_is_limited_too(run):
    assert run.told["azure"] == {"same type": True, "granted": 1, "same path": True}


def test_a_copy_with_another_http_client_keeps_the_limits_and_is_charged_once(run):
    assert run.told["other_http_clients"] == {"AsyncOpenAI": 4, "OpenAI": 4}
    assert run.saw["other_http_clients"].answered == 8
