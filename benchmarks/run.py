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
# Scripts that have longer runs to offer, or tiny ones, and scripts that draw.
WITH_FULL = ("kernels",)
WITH_QUICK = (
    "gpu",
    "homomorphic",
    "many_small",
    "mean_estimation",
    "model_file",
    "paper",
    "peers",
    "plan",
    "real",
    "scale_model",
    "targets",
    "two_way",
)
WITH_IMAGES = ("mean_estimation", "paper")
# Benchmarks with a page and figures of their own; the common page points there.
PAGES = {"mean_estimation": "mean-estimation", "scale_model": "scale"}
# Scripts that want an environment of their own, which `make bench-peers` makes. Without it they
# run in this one and say what is missing.
PYTHONS = {"peers": HERE.parent / ".venv" / "bench" / "bin" / "python"}
HELPERS = ("run",)
# Not among all: it fails where there is no GPU.
NEED_GPU = ("gpu",)
PACKAGES = ("quiver-kernels", "numpy", "numba")

Section = dict[str, Any]


def available() -> list[str]:
    """Names of the benchmarks, the default ones first."""
    found = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in HELPERS)
    return sorted(found, key=lambda name: name not in DEFAULT)


def run(name: str, *, full: bool, quick: bool, out: Path) -> Section:
    """Run one benchmark in a fresh process; its pictures go below `out`."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        python = PYTHONS.get(name, Path(sys.executable))
        environment = dict(os.environ)
        if not python.exists():
            python = Path(sys.executable)
        elif name in PYTHONS:
            # Our package is not installed there.
            environment["PYTHONPATH"] = str(HERE.parent / "kernels")
        command = [str(python), str(HERE / f"{name}.py"), "--json", str(results)]
        if full and name in WITH_FULL:
            command.append("--full")
        if quick and name in WITH_QUICK:
            command.append("--quick")
        if name in WITH_IMAGES:
            command += ["--images", str(out / "images")]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env=environment, check=True
        )
        return {
            "title": title(name),
            "about": about(name),
            "command": command_of(name, full=full),
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": machine(),
            "markdown": done.stdout.strip(),
            "results": json.loads(results.read_text()),
        }


def command_of(name: str, *, full: bool) -> str:
    """What one types to measure this again."""
    if name in PYTHONS:
        return f"make bench-{name}"
    return f"make bench ARGS={name}" if not full else f'make bench ARGS="{name} --full"'


def title(name: str) -> str:
    """First line of a benchmark's docstring."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or name
    return text.partition("\n")[0].rstrip(".")


def about(name: str) -> str:
    """The rest of that docstring, without how to run the script."""
    text = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    return text.partition("\n")[2].partition("\nRun ``")[0].strip().replace("``", "`")


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
    """The page of all sections, with what they are about, as far as a reader needs it."""
    parts = [
        "# Benchmarks",
        "Written by `make bench`; the figures are also in [benchmarks.json](benchmarks.json). They "
        "hold for the machine named above them. To measure again: `make bench-peers` once installs "
        "the other quantizers (PyTorch among them) into an environment of their own and measures "
        "them; `make bench ARGS=--all` measures everything, in about a quarter of an hour on two "
        'quiet cores; `make bench ARGS="targets paper"` measures some. What is not measured again '
        "stays, with its date. `make bench ARGS=gpu` needs a GPU ([gpu.md](gpu.md)).",
    ]
    for section in sections.values():
        found = section["machine"]
        versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
        parts += [
            f"## {section['title']}",
            f"`{section['command']}`, {section['date']}: {found['cpu']}, {found['cpus']} CPUs, "
            f"{found['system']}, Python {found['python']}, {versions}.",
            *([section["about"]] if section.get("about") else []),
            section["markdown"],
        ]
    return "\n\n".join(parts) + "\n"


def own_page(section: Section, page: str, out: Path) -> Section:
    """Write a section as a page and figures of its own; what the common page says instead."""
    text = as_markdown({page: section}).partition("\n## ")[2]
    (out / f"{page}.md").write_text(f"# {text}")
    (out / f"{page}.json").write_text(json.dumps(section["results"], indent=1) + "\n")
    link = f"See [{page}.md]({page}.md); the figures are in [{page}.json]({page}.json)."
    return {**section, "about": "", "markdown": link, "results": []}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and write both files; the exit code counts what failed."""
    names = available()
    parser = argparse.ArgumentParser(description="Run the benchmarks and write their results.")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(names)}; default: kernels")
    parser.add_argument("--all", action="store_true", help="every one that needs no GPU")
    parser.add_argument("--full", action="store_true", help="the largest sizes, too; minutes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes where a script has them")
    parser.add_argument("--out", type=Path, help="folder of the files; default: docs, or out")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(names))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    everywhere = [name for name in names if name not in NEED_GPU]
    chosen = [*everywhere, *options.names] if options.all else options.names or DEFAULT

    # Figures of tiny sizes are nothing to keep.
    out = options.out or (HERE.parent / "out" if options.quick else DOCS)
    out.mkdir(parents=True, exist_ok=True)
    store = out / "benchmarks.json"
    sections: dict[str, Section] = json.loads(store.read_text()) if store.exists() else {}
    failed = 0
    for name in chosen:
        print(f"== {name}", file=sys.stderr, flush=True)
        try:
            sections[name] = run(name, full=options.full, quick=options.quick, out=out)
        except subprocess.CalledProcessError as error:
            print(f"{name} failed with exit code {error.returncode}", file=sys.stderr)
            failed += 1
            continue
        if name in PAGES:
            sections[name] = own_page(sections[name], PAGES[name], out)
        print(sections[name]["markdown"] + "\n")
    ordered = {name: sections[name] for name in names if name in sections}
    store.write_text(json.dumps(ordered, indent=1) + "\n")
    (out / "benchmarks.md").write_text(as_markdown(ordered))
    return failed


if __name__ == "__main__":
    sys.exit(main())
