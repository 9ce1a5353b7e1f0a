"""The chart, rendered by Helm, and the manifests, against the schemas of Kubernetes."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmValuesError, lint

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "quiver"
FOLDER = ROOT / "deploy" / "kubernetes"
# The oldest that the manifests are meant for, and the newest whose schemas there are.
VERSIONS = ("1.29", "1.37")
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
# By value: another one, and something that it brings into the rendered text.
OTHER: Mapping[str, tuple[Any, str]] = {
    "image.repository": ("registry.example/q", "registry.example/q:cpu"),
    "image.tag": ("0.1", "quiver:0.1"),
    "image.pullPolicy": ("Always", "imagePullPolicy: Always"),
    "replicas": (3, "replicas: 3"),
    "cpus": (7, "cpu: 7"),
    "memory": ("9Gi", "memory: 9Gi"),
    "tmpSize": ("64Mi", "sizeLimit: 64Mi"),
    "gpu.count": (2, "nvidia.com/gpu: 2"),
    "gpu.runtimeClassName": ("nvidia", "runtimeClassName: nvidia"),
    "apiKeys.secret": ("other", "secretName: other"),
    "apiKeys.key": ("tokens", "value: /etc/quiver/keys/tokens"),
    "drainSeconds": (20, "terminationGracePeriodSeconds: 55"),
    "graceSeconds": (40, "terminationGracePeriodSeconds: 60"),
    "settings": ({"QUIVER_THREADS": "3"}, 'name: QUIVER_THREADS\n              value: "3"'),
    "service.type": ("LoadBalancer", "type: LoadBalancer"),
    "service.port": (80, "port: 80\n"),
    "autoscaling.enabled": (False, "replicas: 2"),
    "autoscaling.minReplicas": (3, "minReplicas: 3"),
    "autoscaling.maxReplicas": (30, "maxReplicas: 30"),
    "autoscaling.inflightBytes": ("3Gi", "averageValue: 3Gi"),
    "autoscaling.queueDepth": (9, 'averageValue: "9"'),
    "podDisruptionBudget.maxUnavailable": (2, "maxUnavailable: 2"),
    "networkPolicy.enabled": (False, ""),
    "networkPolicy.from": ([{"namespaceSelector": {}}], "- namespaceSelector: {}"),
    "networkPolicy.metricsFrom": ([], ""),
    "nodeSelector": ({"disk": "fast"}, "disk: fast"),
    "tolerations": ([{"key": "spare", "operator": "Exists"}], "key: spare"),
}


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path; what a user fills in as a whole is one."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def changed(path: str, value: Any) -> dict[str, Any]:
    """Values with one set, and with autoscaling off where only that lets it be seen."""
    values: dict[str, Any] = {"autoscaling": {"enabled": False}} if path == "replicas" else {}
    *folders, name = path.split(".")
    place = values
    for folder in folders:
        place = place.setdefault(folder, {})
    place[name] = value
    return values


def render(values: dict[str, Any]) -> str:
    with Chart.load(CHART) as chart:
        parts = chart.render(values, name="quiver", namespace="default")
    return "\n---\n".join(parts[name] for name in sorted(parts))


def objects(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]


def validate(one: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(one, version, strict=True)


def of_kind(text: str, kind: str) -> dict[str, Any]:
    [found] = [one for one in objects(text) if one["kind"] == kind]
    return found


def test_helm_has_nothing_to_say_against_it():
    said = lint(CHART, strict=True)

    assert said["errors"] == []
    assert [one for one in said["messages"] if one["severity"] > 1] == []


def test_what_it_renders_holds_for_kubernetes():
    found = objects(render({}))

    assert {one["kind"] for one in found} == {
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
    }
    for one in found:
        validate(one)


@pytest.mark.parametrize("path", OTHER)
def test_each_value_does_something_that_holds(path: str):
    value, brings = OTHER[path]
    text = render(changed(path, value))

    base = render(changed("replicas", 2) if path == "replicas" else {})
    assert text != base
    assert brings in text
    assert brings == "" or brings not in base
    for one in objects(text):
        validate(one)


def test_without_a_secret_nobody_is_asked_and_nothing_is_mounted():
    text = render(changed("apiKeys.secret", ""))
    [container] = of_kind(text, "Deployment")["spec"]["template"]["spec"]["containers"]

    assert {"name": "QUIVER_ALLOW_INSECURE", "value": "true"} in container["env"]
    assert [mount["name"] for mount in container["volumeMounts"]] == ["tmp"]
    assert "QUIVER_API_KEYS_FILE" not in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.replicass", 2),
        ("spec.template.spec.containers", {}),
        ("spec.template.spec.terminationGracePeriodSeconds", "soon"),
        ("spec.strategy.rollingUpdat", {}),
    ],
)
def test_a_planted_fault_does_not_hold(path: str, value: Any):
    broken = copy.deepcopy(of_kind(render({}), "Deployment"))
    *folders, name = path.split(".")
    place = broken
    for folder in folders:
        place = place[folder]
    place[name] = value

    with pytest.raises(kubernetes_validate.ValidationError):
        validate(broken)


@pytest.mark.parametrize(
    "values",
    [
        {"memroy": "1Gi"},
        {"memory": "much"},
        {"image": {"pullPolicy": "Sometimes"}},
        {"cpus": 0},
        {"service": {"port": 70000}},
        {"settings": {"QUIVER_THREADS": 3}},
        {"settings": {"THREADS": "3"}},
        {"settings": {"QUIVER_ALLOW_INSECURE": "true"}},
        {"settings": {"QUIVER_PORT": "9000"}},
        {"autoscaling": {"maxReplicas": "8"}},
        {"networkPolicy": {"from": [{}]}},
    ],
    ids=str,
)
def test_helm_refuses_values_that_cannot_be(values: dict[str, Any]):
    with pytest.raises(HelmValuesError):
        render(values)


def documented() -> dict[str, str]:
    rows = re.findall(
        r"^\| `([\w.]+)` \| (.*?) \|", (CHART / "README.md").read_text(), re.MULTILINE
    )
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_every_value_is_documented_with_its_default_and_tested():
    values = dict(leaves(DEFAULTS))
    rows = documented()

    assert set(rows) == set(values) == set(OTHER)
    for path, value in values.items():
        if not isinstance(value, list) or not value:  # the two lists of peers are described
            shown = json.dumps(value) if not isinstance(value, str) or not value else value
            assert rows[path] == f"`{shown}`", path


def test_the_schema_knows_exactly_these_values():
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)

    def paths(of: Mapping[str, Any], above: str = "") -> Iterator[str]:
        for name, one in of["properties"].items():
            if "properties" in one:
                yield from paths(one, f"{above}{name}.")
            else:
                yield above + name

    # Helm gives every chart `global`.
    assert set(paths(schema)) - {"global"} == {path for path, _ in leaves(DEFAULTS)}


def manifests() -> Any:
    spec = importlib.util.spec_from_file_location("manifests", ROOT / "scripts" / "manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manifests_are_what_the_chart_renders():
    script = manifests()

    for name, values in script.VARIANTS.items():
        assert (FOLDER / name).read_text() == script.render(values), "run `make manifests`"
    assert script.render({"cpus": 3}) != (FOLDER / "quiver.yaml").read_text()


def test_the_gpu_manifest_asks_for_one():
    pod = of_kind((FOLDER / "quiver-gpu.yaml").read_text(), "Deployment")["spec"]["template"]
    [container] = pod["spec"]["containers"]

    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["image"].endswith(":gpu")


def test_the_pods_of_the_ray_service_hold_for_kubernetes():
    [service] = objects((FOLDER / "rayservice.yaml").read_text())
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]

    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert len(groups) == 2
    for group in groups:
        validate(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "pod", **group["template"].get("metadata", {})},
                "spec": group["template"]["spec"],
            }
        )
