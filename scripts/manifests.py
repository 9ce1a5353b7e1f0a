"""Render the chart into deploy/kubernetes, or with --check say whether it is rendered already."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helm_python import Chart

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "quiver"
FOLDER = ROOT / "deploy" / "kubernetes"
RELEASE = "quiver"
HEAD = "# Rendered from deploy/helm/quiver by `make manifests`; change it there.\n"
# By file: what differs from the chart's defaults.
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "quiver.yaml": {},
    "quiver-gpu.yaml": {
        "image": {"tag": "gpu"},
        "gpu": {"count": 1},
        "cpus": 4,
        "memory": "16Gi",
        "autoscaling": {"inflightBytes": "4Gi"},
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        ],
    },
}


def render(values: Mapping[str, Any]) -> str:
    """All objects of the chart as one text, in the order of their templates' names."""
    with Chart.load(CHART) as chart:
        parts = chart.render(dict(values), name=RELEASE, namespace="default")
    objects = [parts[name].strip() for name in sorted(parts) if parts[name].strip()]
    return HEAD + "".join(f"---\n{text}\n" for text in objects)


def main() -> int:
    """Write the files, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    differing = []
    for name, values in VARIANTS.items():
        text = render(values)
        file = FOLDER / name
        if file.exists() and file.read_text() == text:
            continue
        differing.append(name)
        if not check:
            file.write_text(text)
    if check and differing:
        print(f"{', '.join(differing)}: not what the chart renders; run `make manifests`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
