"""Each metric and label of the dashboard is one that the exporter of Prometheus tells, and every metric of ours is
shown."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import CollectorRegistry

from penstock import Limiter, RateLimited, Retry, events, in_flight, per_minute
from penstock.otel import Telemetry
from tests.docs_examples import ROOT, text_of

DASHBOARD = json.loads((ROOT / "examples/grafana-dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
ALERTS = re.findall(r"expr: (.*)", text_of("docs/prometheus-grafana.md"))
METRIC = re.compile(r"\b(?:penstock|gen_ai)_\w+(?=[{\[]|\s|$)")


@pytest.fixture(scope="module")
def exported():
    """The labels of each metric, after all has happened that is told of."""
    registry = CollectorRegistry()
    provider = MeterProvider([PrometheusMetricReader(scope_info_enabled=False, registry=registry)])
    telemetry = Telemetry(meter_provider=provider)
    limiter = Limiter(tokens=per_minute(600), calls=in_flight(5), name="a limiter of the dashboard", on_event=telemetry)
    telemetry.watch(limiter)
    with limiter(tokens=60):
        pass
    limiter.acquire_nowait(tokens=5).cancel()
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(tokens=600)
    limiter.pause(1)

    @Retry(on=ConnectionError, attempts=1, on_event=telemetry)
    def fail():
        raise ConnectionError

    with pytest.raises(ConnectionError):
        fail()
    telemetry(events.StoreLost("redis", "no answer", "raise"))
    usage = SimpleNamespace(prompt_tokens=7, completion_tokens=3)
    telemetry.gen_ai("openai")(lambda *, model: SimpleNamespace(model=model, usage=usage))(model="gpt-4o")
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    provider.shutdown()
    return found


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *ALERTS])
def test_a_panel_asks_for_metrics_and_labels_that_there_are(expression, exported):
    metrics = METRIC.findall(expression)
    assert metrics
    assert [name for name in metrics if name not in exported] == []
    asked = set(re.findall(r"(\w+)=~?\"|(\w+)!=\"", expression)) | set(re.findall(r"by \(([^)]*)\)", expression))
    names = {
        name for each in asked for part in ([each] if isinstance(each, str) else each) for name in part.split(", ")
    }
    assert names - {""} <= set.union(*(exported[name] for name in metrics))


def test_legends_and_variables_ask_for_labels_that_there_are(exported):
    labels = set.union(*exported.values())
    legends = [target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert {name for legend in legends for name in re.findall(r"\{\{(\w+)\}\}", legend)} <= labels
    (query,) = [each["query"] for each in DASHBOARD["templating"]["list"] if each["name"] == "limiter"]
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()
    assert label in exported[metric]


def test_every_metric_of_ours_is_on_the_dashboard(exported):
    shown = {name for expression in EXPRESSIONS for name in METRIC.findall(expression)}
    ours = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in exported if name != "target_info"}
    assert {name for name in ours if not any(each.startswith(name) for each in shown)} == set()


def test_panels_do_not_lie_over_each_other():
    cells = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(cells)) == len(cells)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(cells)
