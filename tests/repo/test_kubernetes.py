"""The manifests, in step with the service (`make test-deploy` has the schemas of Kubernetes)."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from quiver_service.services import Services
from quiver_service.settings import Settings, known_names

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OURS = ("quiver.yaml", "quiver-gpu.yaml")
GIB = 1 << 30
BUDGET_SHARE = 0.6


@pytest.fixture(params=OURS)
def objects(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The objects of a file by kind."""
    text = (FOLDER / request.param).read_text()
    return {one["kind"]: one for one in yaml.safe_load_all(text) if one}


@pytest.fixture
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["spec"]["containers"]
    return only


def default(setting: str) -> float:
    return Settings.model_fields[setting].default


def test_the_settings_are_settings(container: dict[str, Any]):
    given = {one["name"] for one in container["env"]}

    assert given <= set(known_names())
    assert "QUIVER_API_KEYS_FILE" in given
    assert "QUIVER_ALLOW_INSECURE" not in given


def test_a_stop_is_noticed_and_leaves_time_to_finish(
    pod: dict[str, Any], container: dict[str, Any]
):
    settings = {one["name"]: one["value"] for one in container["env"]}
    drain, grace = (float(settings[f"QUIVER_{name}_SECONDS"]) for name in ("DRAIN", "GRACE"))
    probe = container["readinessProbe"]
    noticed = probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])

    assert drain > noticed
    assert grace == default("grace_seconds")
    assert pod["spec"]["terminationGracePeriodSeconds"] > drain + grace + 1


def test_each_probe_asks_what_it_is_for(container: dict[str, Any]):
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in PROBES}

    assert paths == PROBES
    # A replica that is slow under load shall not be killed for it.
    assert (
        container["livenessProbe"]["failureThreshold"] * container["livenessProbe"]["periodSeconds"]
        >= 60
    )


PROBES = {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}


def test_a_pod_is_confined(pod: dict[str, Any], container: dict[str, Any]):
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    user = re.search(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    assert pod["spec"]["securityContext"]["runAsUser"] == int(user)
    assert container["resources"]["requests"].items() <= container["resources"]["limits"].items()
    assert {
        mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
    } == {"/tmp"}


def test_the_autoscaler_asks_for_gauges_of_the_service(objects: dict[str, Any]):
    asked = {
        one["pods"]["metric"]["name"]: one["pods"]["target"]["averageValue"]
        for one in objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    }
    registry = Services.create(Settings()).metrics.registry
    gauges = {family.name for family in registry.collect() if family.type == "gauge"}

    assert set(asked) == {"quiver_inflight_bytes", "quiver_queue_depth"}
    assert set(asked) <= gauges
    assert float(asked["quiver_queue_depth"]) < default("queue_size")


def test_the_autoscaler_acts_before_the_budget_refuses(
    objects: dict[str, Any], container: dict[str, Any]
):
    [target] = [
        one["pods"]["target"]["averageValue"]
        for one in objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
        if one["pods"]["metric"]["name"] == "quiver_inflight_bytes"
    ]
    memory, wanted = (
        int(text.removesuffix("Gi")) * GIB
        for text in (container["resources"]["limits"]["memory"], target)
    )

    assert 0.2 < wanted / (BUDGET_SHARE * memory) < 0.6


def test_the_network_policy_lets_nobody_out_and_not_everybody_in(objects: dict[str, Any]):
    policy = objects["NetworkPolicy"]["spec"]

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    assert len(policy["ingress"]) == 2
    assert all(one["from"] for one in policy["ingress"])


def test_what_is_selected_is_the_pods(objects: dict[str, Any], pod: dict[str, Any]):
    labels = pod["metadata"]["labels"].items()

    for selector in (
        objects["Service"]["spec"]["selector"],
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels
    scaled = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == (
        "Deployment",
        objects["Deployment"]["metadata"]["name"],
    )


def test_the_chart_has_the_packages_version():
    chart = yaml.safe_load((ROOT / "deploy/helm/quiver/Chart.yaml").read_text())
    text = (ROOT / "kernels/quiver_kernels/_version.py").read_text()

    assert chart["appVersion"] == chart["version"] == re.search(r'"(\d[^"]*)"', text)[1]


def test_the_ray_service_serves_what_serve_deploy_does():
    service = yaml.safe_load((FOLDER / "rayservice.yaml").read_text())["spec"]
    [here] = yaml.safe_load(service["serveConfigV2"])["applications"]
    [there] = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())["applications"]
    [worker] = service["rayClusterConfig"]["workerGroupSpecs"]
    [container] = worker["template"]["spec"]["containers"]
    [mount] = container["volumeMounts"]

    assert {key: here[key] for key in ("name", "route_prefix", "import_path")} == {
        key: there[key] for key in ("name", "route_prefix", "import_path")
    }
    assert here["args"].keys() <= there["args"].keys()
    assert here["args"]["settings"].keys() <= set(known_names())
    assert here["args"]["settings"]["QUIVER_API_KEYS_FILE"].startswith(mount["mountPath"])
    assert container["resources"]["limits"]["cpu"] >= here["args"]["num_cpus"]
    assert worker["maxReplicas"] == here["args"]["max_replicas"]


def test_make_test_leaves_the_schemas_out_and_says_so():
    makefile = (ROOT / "Makefile").read_text()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]

    assert "tests/deploy" in settings["ini_options"]["norecursedirs"]
    assert re.search(r"^\t@echo .*make test-deploy", makefile, re.MULTILINE)
    assert re.search(r"^test-deploy:.*\n\t.* tests/deploy ", makefile, re.MULTILINE)
    assert re.search(r"^ *part test-deploy \d+$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "`make test-deploy`" in (ROOT / "README.md").read_text()
