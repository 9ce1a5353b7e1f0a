"""docs/operations.md names every setting, metric, path and error code, and none that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from quiver_service.errors import ERROR_KINDS
from quiver_service.health import describe
from quiver_service.openapi import document
from quiver_service.services import Services
from quiver_service.settings import PREFIX, Settings, known_names

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
# Of the client, and of the compose file.
OTHER_NAMES = {"QUIVER_URL", "QUIVER_API_KEY"}


def registry() -> CollectorRegistry:
    return Services.create(Settings()).metrics.registry


def own_metrics() -> set[str]:
    """The names as scraped, less the suffixes of histograms."""
    names = set()
    for family in registry().collect():
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        names.add(family.name + suffix)
    return {name for name in names if name.startswith("quiver_")}


def rows() -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("|")
    ]


def table_rows(key: re.Pattern[str]) -> dict[str, list[str]]:
    """Rows whose first cell is a name in backquotes that matches, by that name."""
    found = {}
    for row in rows():
        name = row[0].strip("`")
        if key.fullmatch(name):
            assert name not in found, f"{name} has two rows"
            found[name] = row
    return found


def test_every_setting_has_a_row_and_every_row_is_a_setting():
    assert set(table_rows(re.compile(rf"{PREFIX}\w+"))) == set(known_names())


def test_no_other_setting_is_mentioned():
    assert set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", TEXT)) == {*known_names(), *OTHER_NAMES}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, field in Settings.model_fields.items()
        if field.default_factory is None
        and isinstance(field.default, (int, float, str))
        and field.default < (1 << 20 if not isinstance(field.default, str) else "~")
    ],
)
def test_plain_defaults_are_as_the_table_says(name: str):
    default = Settings.model_fields[name].default
    shown = f"{default:.15g}" if isinstance(default, float) else str(default)
    shown = shown.lower() if isinstance(default, bool) else shown

    assert table_rows(re.compile(rf"{PREFIX}\w+"))[f"{PREFIX}{name.upper()}"][1] == shown


def test_every_metric_has_a_row_and_every_row_is_a_metric():
    assert set(table_rows(re.compile(r"quiver_\w+"))) == own_metrics()


def test_every_limit_of_info_is_a_setting_or_named():
    [sentence] = re.findall(r"^The `limits` of `/info`.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`(max_\w+)`", sentence))

    assert (
        set(describe(Services.create(Settings()))["limits"]) - set(Settings.model_fields) == named
    )


def test_every_alert_has_a_row_and_every_row_is_an_alert():
    file = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
    groups = yaml.safe_load(file.read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}

    assert set(table_rows(re.compile(r"Quiver\w+"))) == alerts


def test_every_exit_code_has_a_row():
    codes = [row[0] for row in rows() if re.fullmatch(r"\d", row[0])]

    # tests/service/test_settings.py and test_live.py make each of them happen.
    assert codes == ["0", "1", "2"]


def test_every_reason_is_named():
    reasons = {kind.reason for kind in ERROR_KINDS.values()}
    row = table_rows(re.compile("quiver_requests_total"))["quiver_requests_total"]

    assert reasons | {"ok", "client_disconnect"} == set(
        re.findall(r"`(\w+)`", row[2].partition("`reason`")[2])
    )


def test_every_error_code_stands_beside_its_status():
    documented = {
        (code, int(row[0]))
        for row in rows()
        if re.fullmatch(r"\d{3}", row[0])
        for code in re.findall(r"`(\w+)`", row[1])
    }

    assert documented == {(code, kind.status) for code, kind in ERROR_KINDS.items()}


def test_every_path_is_named():
    missing = [path for path in document.PATHS if not re.search(rf"`(\w+ )?{path}`", TEXT)]

    assert missing == []
