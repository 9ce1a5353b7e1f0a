"""Dashboard and alerts ask for metrics that exist, with labels they have; and all that matter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from quiver_service.context import RequestContext
from quiver_service.errors import ERROR_KINDS
from quiver_service.openapi import document
from quiver_service.services import Services
from quiver_service.settings import Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "quiver.json"
# What Prometheus adds to what it scrapes.
ITS_OWN = {"up": {"job", "instance"}}
ITS_LABELS = {"job", "instance"}
KEYWORDS = {"and", "or", "unless", "offset", "bool", "inf", "nan"}
PHASES = {"receive", "queue", "decode", "kernel", "encode", "send"}
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?\s*(\()?")
MATCHER = re.compile(r"(\w+)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"")


@dataclass(frozen=True)
class Use:
    """One metric in an expression, with its matchers and the labels it is grouped by."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    groups: frozenset[str]


def uses(expression: str) -> Iterator[Use]:
    """Every metric of a PromQL expression."""
    without_ranges = re.sub(r"\[[^\]]*\]", " ", expression)
    groups = {
        label.strip()
        for labels in GROUPING.findall(without_ranges)
        for label in labels.split(",")
        if label.strip()
    }
    for name, braces, call in SELECTOR.findall(GROUPING.sub(" ", without_ranges)):
        if call or name.lower() in KEYWORDS:
            continue
        yield Use(name, tuple(MATCHER.findall(braces)), frozenset(groups))


def known() -> dict[str, set[str]]:
    """Every series of a service that has seen one request, and its labels."""
    services = Services.create(Settings())
    context = RequestContext("id", "POST", "/quantize", {}, body_done=True, declared_bytes=1)
    context.status = 200
    context.phases |= dict.fromkeys([*PHASES, "total"], 0.1)
    context.notes |= {"kind": "exact", "device": "cpu", "n": 1}
    services.metrics.record(context)
    services.engine.devices._available["gpu"] = True
    services.engine.devices._fallbacks["gpu", "out_of_memory"] += 1
    found: dict[str, set[str]] = {name: set(labels) for name, labels in ITS_OWN.items()}
    for family in services.metrics.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels, ITS_LABELS)
    return found


def allowed_values() -> dict[str, set[str]]:
    reasons = {kind.reason for kind in ERROR_KINDS.values()}
    return {
        "reason": reasons | {"ok", "client_disconnect"},
        "phase": PHASES,
        "route": set(document.PATHS) | {"other"},
        "job": {"quiver"},
    }


def complaints(expression: str, series: dict[str, set[str]]) -> list[str]:
    """What of `expression` does not exist."""
    found = []
    for use in uses(expression):
        if use.metric not in series:
            found.append(f"no metric {use.metric}")
            continue
        labels = {label for label, _, _ in use.matchers} | use.groups
        found += [f"{use.metric} has no label {label}" for label in labels - series[use.metric]]
        for label, operator, value in use.matchers:
            if label in allowed_values() and "$" not in value:
                values = set(value.split("|") if "~" in operator else [value])
                found += [f"{label} is never {one}" for one in values - allowed_values()[label]]
    return found


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    return known()


def test_the_dashboard_asks_for_what_exists(series: dict[str, set[str]]):
    expressions = dashboard_expressions()

    assert len(expressions) > 20
    assert [one for each in expressions for one in complaints(each, series)] == []


def test_the_alerts_ask_for_what_exists(series: dict[str, set[str]]):
    assert len(alerts()) > 5
    assert [one for rule in alerts() for one in complaints(rule["expr"], series)] == []


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("rate(quiver_request_total[5m])", "no metric quiver_request_total"),
        ("quiver_queue_depths > 1", "no metric quiver_queue_depths"),
        ("histogram_quantile(0.9, rate(quiver_phase_duration_seconds[5m]))", "no metric"),
        ('quiver_requests_total{status="200"}', "has no label status"),
        ("sum by (device) (quiver_requests_total)", "has no label device"),
        ('quiver_requests_total{reason="crashed"}', "reason is never crashed"),
        ('quiver_requests_total{route=~"/quantize|/quantise"}', "route is never /quantise"),
    ],
)
def test_a_planted_mistake_is_found(expression: str, complaint: str, series: dict[str, set[str]]):
    assert any(complaint in one for one in complaints(expression, series))


def test_the_dashboard_shows_every_metric_of_ours(series: dict[str, set[str]]):
    shown = {use.metric for expression in dashboard_expressions() for use in uses(expression)}
    # The moments of creation say nothing; a histogram's parts are one thing.
    ours = {name for name in series if re.match(r"quiver_.*(?<!_created)$", name)}
    parts = re.compile(r"_(bucket|sum|count)$")

    assert {parts.sub("", name) for name in ours} == {
        parts.sub("", name) for name in shown if name.startswith("quiver_")
    }


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_panels_have_ids_titles_and_the_source_that_is_chosen():
    assert len({panel["id"] for panel in panels()}) == len(panels())
    for panel in panels():
        assert panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert {one["name"] for one in dashboard()["templating"]["list"]} == {"datasource", "instance"}


def test_alerts_say_what_happened_and_what_to_do():
    names = [rule["alert"] for rule in alerts()]

    assert len(set(names)) == len(names)
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "action"} <= set(rule["annotations"])


def test_the_summary_of_an_alert_uses_labels_it_has():
    for rule in alerts():
        found = {label for use in uses(rule["expr"]) for label in use.groups}
        # Without an aggregation the labels are the metric's own.
        has = found or ITS_LABELS
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= has, rule["alert"]


def test_prometheus_and_grafana_find_their_files():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    source = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"][0]
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/quiver.yml").read_text())[
        "providers"
    ][0]
    mounts = {
        mount.split(":")[1]: ROOT / mount.split(":")[0]
        for name in ("prometheus", "grafana")
        for mount in compose[name]["volumes"]
        if mount.startswith("./")
    }

    assert all(folder.is_dir() for folder in mounts.values())
    assert (mounts["/etc/prometheus"] / "alerts.yml").exists()
    assert prometheus["rule_files"] == ["/etc/prometheus/alerts.yml"]
    assert prometheus["scrape_configs"][0]["job_name"] == "quiver"
    assert set(prometheus["scrape_configs"][0]["dns_sd_configs"][0]["names"]) < set(compose)
    assert (mounts[provider["options"]["path"]] / "quiver.json").exists()
    assert source["url"] == "http://prometheus:9090"
    assert source["uid"] == dashboard()["templating"]["list"][0]["current"]["value"]


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_watches_is_confined_as_well(name: str):
    service = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"][name]

    assert service["profiles"] == ["obs"]
    assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert all(mount.endswith(":ro") for mount in service["volumes"] if mount.startswith("./"))
