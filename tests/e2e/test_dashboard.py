"""The dashboard and the alerts ask for what a running service exports, and leave nothing out unsaid."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client import generate_latest

from jobs_service.telemetry.job_gauges import JobFigures, JobGauges, Unread
from jobs_service.telemetry.metrics import Metrics
from tests.e2e.demo import ALICE, Demo
from tests.support.client import Client
from tests.support.promql import Asked, asked
from tests.support.scrape import Scrape, parsed, scrape

SCRIPTS = Path(__file__).parents[2] / "scripts"
OF_PROMETHEUS = {"job", "instance", "le"}
"""Labels that Prometheus adds, and that of histograms."""
OF_THE_DATABASE = {family.name for family in JobGauges().describe()} - {"jobs_counts_age_seconds"}
NOT_SHOWN: set[str] = set()
"""Families that the dashboard leaves out."""
SAMPLES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((SCRIPTS / "grafana-dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((SCRIPTS / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


EXPRESSIONS = [*dashboard_expressions(), *(alert["expr"] for alert in alerts())]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """What a service tells after a few calls."""
    with Demo(tmp_path_factory.mktemp("exported"), JOBS_METRICS_LISTEN="127.0.0.1:0") as demo:
        with grpc.insecure_channel(demo.target) as channel:
            Client(channel, demo.token(ALICE)).create()
        yield scrape(demo.service)


@pytest.fixture(scope="module")
def labels() -> dict[str, set[str]]:
    """The labels of every series that there can be."""
    metrics = Metrics()
    metrics.calls.begun("/s/M")
    metrics.calls.ended("/s/M", "OK", "", 1)
    with metrics.batches("create").running([0.1]):
        pass
    metrics.database.pool_is(used=int, idle=int, size=int)
    metrics.database.failed("unavailable")
    metrics.duties.ran("count_jobs", 1, failed=True)
    metrics.jobs.set(
        JobFigures(
            jobs={("IMPORT", "PENDING"): 1},
            queue={("IMPORT", "ready"): 1},
            oldest_ready_seconds={"IMPORT": 1.0},
            oldest_pending_seconds=1.0,
            untold=Unread(1, 1.0),
            lease_overdue_seconds=1.0,
            unread={"job_counts": Unread(1, 1.0)},
        ),
        fresh_seconds=60,
    )
    metrics.keys.ask(lambda: {"the keys of tokens": True}, lambda: 1.0)
    metrics.build_is("0", "0")
    metrics.add_process()
    samples = parsed(generate_latest(metrics.registry).decode()).samples
    return {name: {label for have, _ in found for label in have} for name, found in samples.items()}


def series_of(families: dict[str, str]) -> set[str]:
    return {name + suffix for name, kind in families.items() for suffix in SAMPLES[kind]}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_asked_for_is_exported(
    exported: Scrape, labels: dict[str, set[str]], expression: str
) -> None:
    wanted = asked(expression)
    assert wanted.metrics
    assert wanted.metrics <= series_of(exported.kinds)
    known = OF_PROMETHEUS.union(*(labels[name] for name in wanted.metrics))
    assert wanted.labels <= known


def test_every_metric_of_the_service_is_on_the_dashboard(exported: Scrape) -> None:
    shown = {name for expression in dashboard_expressions() for name in asked(expression).metrics}
    missing = {
        name
        for name, kind in exported.kinds.items()
        if name.startswith("jobs_") and not shown & {name + suffix for suffix in SAMPLES[kind]}
    }
    assert missing == NOT_SHOWN


def test_what_describes_the_whole_database_is_never_added_up_over_replicas() -> None:
    for expression in EXPRESSIONS:
        if asked(expression).metrics & OF_THE_DATABASE:
            assert "max" in expression.split("jobs_")[0], expression


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    names = [alert["alert"] for alert in alerts()]
    assert len(set(names)) == len(names) > 5
    for alert in alerts():
        assert alert["annotations"]["summary"].endswith(".")
        assert alert["annotations"]["action"].endswith(".")
        assert alert["labels"]["severity"] in {"page", "ticket"}


def test_an_expression_is_read_like_prometheus_does() -> None:
    expression = """sum by (a, b) (rate(m_total{c=~"x{y}", d!='by (z)'}[5m])) / on (a) group_left (e)
                    label:m offset 5m > bool 1e3 and absent(other{}) unless up"""
    assert asked(expression) == Asked(frozenset({"m_total", "label:m", "other", "up"}), frozenset("abcde"))


def test_prometheus_takes_the_expressions(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    rules = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(dashboard_expressions())
    ]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for file in (panels, SCRIPTS / "alerts.yaml"):
        done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_prometheus_takes_the_exposition(exported: Scrape) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    done = subprocess.run(
        [promtool, "check", "metrics", "--extended"], input=exported.text, capture_output=True, text=True
    )
    # 3: advice on names. There is none but for what the library itself exports.
    advice = [line for line in done.stderr.splitlines() if line.startswith("jobs_")]
    assert (done.returncode in {0, 3}, advice) == (True, []), done.stderr
