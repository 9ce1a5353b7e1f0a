"""Install what `scripts/dist.py` built into clean environments and use it there.

``try_packages.py DIST`` takes this Python and the newest dependencies; ``--all`` also Python 3.11
to 3.13, as far as this machine has them, and the oldest dependencies that the packages admit.
Dependencies come from the package index that pip and uv are set up for; ours from DIST alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[1]
UV = Path(sys.prefix) / "bin" / "uv"
PYTHONS = ("3.11", "3.12", "3.13")
# What is installed, and what of the tests is run with it: they need no service of the checkout.
EXTRAS = {"quiver_kernels": "cpu", "quiver_service": "otel", "quiver_client": "local"}
TESTS = (
    "tests/wire/test_golden.py",
    "tests/wire/test_framing.py",
    "tests/kernels/test_errors.py",
    "tests/service/test_settings.py",
)
TEST_TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hypothesis", "httpx2", "msgpack")
# Everything a first user does, from an empty folder, with the installed packages alone.
SMOKE = """
import importlib.metadata, json, subprocess, sys, urllib.request
from pathlib import Path
import numpy as np
import quiver_client, quiver_kernels as qk, quiver_service

for package in (qk, quiver_client, quiver_service):
    assert Path(package.__file__).is_relative_to(sys.prefix), package.__file__
    name = package.__name__.replace("_", "-")
    assert importlib.metadata.version(name) == package.__version__
x = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
for bits, method in ((4, "exact"), (8, "approx"), (2, "uniform")):
    q = qk.quantize(x, bits=bits, method=method, seed=7)
    y = qk.dequantize(qk.QuantizedVector.from_bytes(q.to_bytes()))
    error = np.square(y - x, dtype=np.float64).sum() / np.square(x, dtype=np.float64).sum()
    assert abs(error / q.vnmse - 1) < 0.1, (method, error, q.vnmse)
serve = Path(sys.executable).with_name("quiver-serve")
assert subprocess.check_output([serve, "--version"], text=True).strip() == qk.__version__
server = subprocess.Popen([serve, "--port", "0"], stdout=subprocess.PIPE, text=True)
try:
    for line in server.stdout:
        if line.startswith("QUIVER is ready at "):
            break
    url = line.split()[-1]
    with quiver_client.Client(url) as client:
        remote = client.quantize(x, bits=4, seed=7)
    assert np.array_equal(remote.codes, qk.quantize(x, bits=4, seed=7).codes)
    for path in ("/docs", "/openapi.json", "/metrics", "/info"):
        assert urllib.request.urlopen(url + path).status == 200
finally:
    server.terminate()
    assert server.wait(60) == 0
print(json.dumps({n: importlib.metadata.version(n) for n in sys.argv[1:]}))
"""
# The client where there is no compiler: it imports, decodes, and says what is missing.
BASE = """
import importlib.util, sys
import numpy as np
import quiver_client, quiver_kernels as qk

assert not [n for n in ("numba", "fastapi", "quiver_service") if importlib.util.find_spec(n)]
q = qk.QuantizedVector.from_bytes(open(sys.argv[1], "rb").read())
assert qk.dequantize(q).shape == (1000,)
try:
    qk.quantize(np.ones(3))
except qk.BackendUnavailable as error:
    assert "quiver-kernels[cpu]" in str(error)
else:
    raise AssertionError("quantized without a compiler")
"""


class Failed(Exception):
    """A step that did not work, with what it said."""


@dataclass(frozen=True)
class Case:
    """One environment: a Python, and the newest or the oldest dependencies."""

    python: str
    oldest: bool

    def __str__(self) -> str:
        return f"Python {self.python}, {'oldest' if self.oldest else 'newest'} dependencies"


def run(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    """Run a command without this checkout in sight; what it printed."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("QUIVER_", "PYTHON"))}
    done = subprocess.run(
        [str(part) for part in command],
        check=False,
        cwd=cwd,
        env=clean | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise Failed(
            f"{' '.join(map(str, command))[:300]}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        )
    return done.stdout


def interpreter(version: str) -> str | None:
    """A Python of that version on this machine: the running one, or one that is found."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    candidates = [shutil.which(f"python{version}")]
    candidates += sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"))
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            run(candidate, "-c", f"import sys; assert sys.version.startswith('{version}.')")
        except (Failed, OSError):
            continue
        return str(candidate)
    return None


def wheel(dist: Path, module: str) -> Path:
    """The one wheel of a package."""
    [found] = dist.glob(f"{module}-*.whl")
    return found


def wishes(dist: Path) -> list[str]:
    """What the packages ask of others, with the extras that are installed."""
    asked: list[str] = []
    for module, extra in EXTRAS.items():
        with zipfile.ZipFile(wheel(dist, module)) as file:
            [name] = [n for n in file.namelist() if n.endswith(".dist-info/METADATA")]
            head = Parser().parsestr(file.read(name).decode())
        for wish in head.get_all("Requires-Dist", []):
            requirement, _, marker = wish.partition(";")
            in_extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
            if in_extra and in_extra[1] != extra:
                continue
            if not requirement.startswith("quiver-"):
                asked.append(requirement.strip())
    return asked


def pinned(name: str) -> str:
    """A tool at the version of the lock."""
    lock = (ROOT / "requirements/dev.txt").read_text()
    [version] = re.findall(rf"^{re.escape(name)}==([^\s;]+)", lock, re.MULTILINE)
    return f"{name}=={version}"


def install(python: Path, *what: str, oldest: bool = False) -> None:
    """Install into the environment of `python`; only wheels, so that nothing is compiled."""
    resolution = "lowest-direct" if oldest else "highest"
    run(
        *(UV, "pip", "install", "--quiet", "--python", python, "--only-binary", ":all:"),
        *("--resolution", resolution, *what),
    )


def environment(folder: Path, interpreter_path: str) -> Path:
    """A clean environment; its Python."""
    run(UV, "venv", "--quiet", "--python", interpreter_path, folder)
    return folder / "bin" / "python"


def try_case(case: Case, dist: Path, found: str, place: Path) -> str:
    """Install, use and test in one environment; the versions it has."""
    python = environment(place / "env", found)
    ours = [
        f"{module}{f'[{extra}]' if extra else ''} @ {wheel(dist, module).as_uri()}"
        for module, extra in EXTRAS.items()
    ]
    asked = wishes(dist)
    install(python, *ours, *asked, oldest=case.oldest)
    run(UV, "pip", "check", "--quiet", "--python", python)
    empty = place / "empty"
    empty.mkdir()
    names = sorted({re.split(r"[^\w.-]", wish)[0] for wish in asked})
    told = json.loads(run(python, "-I", "-c", SMOKE, *names, cwd=empty).splitlines()[-1])

    install(python, *map(pinned, TEST_TOOLS))
    copied = place / "checkout"
    for name in ("tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copied / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copied)
    options = ["-q", "-p", "no:cacheprovider", "-W", "default"] if case.oldest else ["-q"]
    run(python, "-m", "pytest", *options, *TESTS, cwd=copied)
    return ", ".join(f"{name} {number}" for name, number in told.items())


def try_base(dist: Path, place: Path) -> None:
    """The client alone, without a compiler, decodes what another quantized."""
    full = place.parent / "case-0" / "env" / "bin" / "python"
    message = place / "message"
    code = "import sys, quiver_kernels as qk; x = [float(i % 7) for i in range(1000)]; "
    run(
        full, "-I", "-c", code + "open(sys.argv[1], 'wb').write(qk.quantize(x).to_bytes())", message
    )
    python = environment(place / "env", sys.executable)
    install(python, *(str(wheel(dist, name)) for name in ("quiver_kernels", "quiver_client")))
    run(python, "-I", "-c", BASE, message, cwd=place)


def main() -> None:
    """Try the cases; say what was and what could not be tried."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dist", type=Path)
    parser.add_argument("--all", action="store_true", help="every Python, oldest and newest")
    options = parser.parse_args()
    dist = options.dist.resolve()
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    cases = [Case(here, oldest=False)]
    if options.all:
        every = [Case(python, oldest) for python in PYTHONS for oldest in (False, True)]
        cases += [case for case in every if case not in cases]
    with tempfile.TemporaryDirectory() as temporary:
        for number, case in enumerate(cases):
            place = Path(temporary) / f"case-{number}"
            place.mkdir()
            found = interpreter(case.python)
            if found is None:
                print(f"NOT TRIED: {case}: this machine has no such Python.")
                continue
            began = time.monotonic()
            try:
                told = try_case(case, dist, found, place)
            except Failed as failure:
                sys.exit(f"{case}: {failure}")
            print(f"{case}: {time.monotonic() - began:.0f} s: {told}", flush=True)
        base = Path(temporary) / "base"
        base.mkdir()
        try_base(dist, base)
        print("the client without a compiler: decodes")


if __name__ == "__main__":
    main()
