"""Look the pins of locks up in a database of known vulnerabilities: ``audit.py LOCK...``.

Exit codes: 0 nothing is known against any pin; 1 something is; 3 not all could be looked up, so
nothing is proven. PyPI's own database is asked, then OSV's (AUDIT_OSV_URL names another one, and
then only that is asked). Every run also asks for an old release that is known to be vulnerable: a
database that knows nothing against it answers nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLEAN, VULNERABLE, UNKNOWN = 0, 1, 3
KNOWN_BAD = ("jinja2", "2.4.1")
OSV_URL = "https://api.osv.dev/v1/query"


@dataclass(frozen=True)
class Report:
    """What one database said."""

    findings: dict[tuple[str, str], list[str]]
    skipped: dict[str, str]


def ask(database: Sequence[str], locks: Sequence[Path]) -> Report | str:
    """The report of pip-audit on `locks` and the known bad pin, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        control = Path(folder) / "control.txt"
        # The hash is not looked at: nothing is downloaded.
        control.write_text(f"{'=='.join(KNOWN_BAD)} --hash=sha256:{'0' * 64}\n")
        files = [argument for lock in (control, *locks) for argument in ("-r", str(lock))]
        options = ["--disable-pip", "--require-hashes", "--progress-spinner=off", "--format=json"]
        cache = ["--cache-dir", folder]
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *database, *options, *cache, *files],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    report = read(found)
    if KNOWN_BAD not in report.findings:
        return f"it knows nothing against {'=='.join(KNOWN_BAD)}"
    del report.findings[KNOWN_BAD]
    return report


def read(dependencies: Sequence[dict[str, Any]]) -> Report:
    """pip-audit's list, sorted out."""
    return Report(
        {
            (one["name"], one["version"]): [vuln["id"] for vuln in one["vulns"]]
            for one in dependencies
            if one.get("vulns")
        },
        {one["name"]: one["skip_reason"] for one in dependencies if "skip_reason" in one},
    )


def databases() -> dict[str, list[str]]:
    """Arguments for pip-audit, by the name of the database, in the order of asking."""
    elsewhere = os.environ.get("AUDIT_OSV_URL")
    osv = ["--vulnerability-service=osv", f"--osv-url={elsewhere or OSV_URL}"]
    return {"OSV": osv} if elsewhere else {"PyPI": ["--vulnerability-service=pypi"], "OSV": osv}


def main(locks: Sequence[Path]) -> int:
    """Audit `locks`; prints what was found and returns the exit code."""
    for name, arguments in databases().items():
        report = ask(arguments, locks)
        if isinstance(report, str):
            print(f"the database of {name} cannot be used: {report}")
            continue
        for (package, version), known in report.findings.items():
            print(f"{package}=={version} is vulnerable: {', '.join(known)}")
        for package, reason in report.skipped.items():
            print(f"{package} was not looked up: {reason}")
        if report.findings:
            return VULNERABLE
        if not report.skipped:
            print(f"{name} knows nothing against any pin of {', '.join(map(str, locks))}")
            return CLEAN
    print("NOT AUDITED: no database of known vulnerabilities answered for every pin")
    return UNKNOWN


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
