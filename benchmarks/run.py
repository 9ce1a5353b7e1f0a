"""Run the benchmarks; write ``docs/benchmarks.json`` and ``docs/benchmarks.md``.

Run ``python benchmarks/run.py`` for the kernels, with ``--all`` for every benchmark, or with
names for some. Each benchmark is a script of this folder that prints Markdown and takes
``--json PATH``; it runs in a process of its own. What was measured before stays in the files
until it is measured again, with its own date and machine.
"""

from __future__ import annotations

import argparse
import ast
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
DEFAULT = ("kernels",)
# Scripts that have longer runs to offer.
WITH_FULL = ("kernels",)
HELPERS = ("run",)
PACKAGES = ("quiver-kernels", "numpy", "numba")

Section = dict[str, Any]


def available() -> list[str]:
    """Names of the benchmarks, the default ones first."""
    found = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)
    return sorted(found, key=lambda name: name not in DEFAULT)


def run(name: str, *, full: bool) -> Section:
    """Run one benchmark in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(results)]
        if full and name in WITH_FULL:
            command.append("--full")
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return {
            "title": title(name),
            "command": f"python benchmarks/{name}.py" + (" --full" if "--full" in command else ""),
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": machine(),
            "markdown": done.stdout.strip(),
            "results": json.loads(results.read_text()),
        }


def title(name: str) -> str:
    """First line of a benchmark's docstring."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or name
    return text.partition("\n")[0].rstrip(".")


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def cpu_model() -> str:
    """The processor's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def as_markdown(sections: dict[str, Section]) -> str:
    """The page of all sections."""
    parts = [
        "# Benchmarks",
        "Written by `make bench` (`make bench ARGS=--all` for every benchmark); the figures are "
        "also in [benchmarks.json](benchmarks.json). They hold for the machine named above them.",
    ]
    for section in sections.values():
        found = section["machine"]
        versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
        parts += [
            f"## {section['title']}",
            f"`{section['command']}`, {section['date']}: {found['cpu']}, {found['cpus']} CPUs, "
            f"{found['system']}, Python {found['python']}, {versions}.",
            section["markdown"],
        ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and write both files; the exit code counts what failed."""
    names = available()
    parser = argparse.ArgumentParser(description="Run the benchmarks and write their results.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)}; default: kernels")
    parser.add_argument("--all", action="store_true", help="every benchmark")
    parser.add_argument("--full", action="store_true", help="the largest sizes, too; minutes")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the two files")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = names if options.all else options.names or DEFAULT

    options.out.mkdir(parents=True, exist_ok=True)
    store = options.out / "benchmarks.json"
    sections: dict[str, Section] = json.loads(store.read_text()) if store.exists() else {}
    failed = 0
    for name in chosen:
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            sections[name] = run(name, full=options.full)
        except subprocess.CalledProcessError as error:
            print(f"{name} failed with exit code {error.returncode}", file=sys.stderr)
            failed += 1
            continue
        print(sections[name]["markdown"] + "\n")
    ordered = {name: sections[name] for name in names if name in sections}
    store.write_text(json.dumps(ordered, indent=1) + "\n")
    (options.out / "benchmarks.md").write_text(as_markdown(ordered))
    return failed


if __name__ == "__main__":
    sys.exit(main())
