"""The files in docs: one section for each scenario, kept until it is run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Section = dict[str, Any]

VERSIONS = ("quiver-kernels", "numpy", "numba")
INTRODUCTION = """\
# Reliability

Written by `make soak`; the figures are also in [reliability.json](reliability.json). `make soak`
runs every scenario in its long form, one after the other; `make soak ARGS=overload` runs one, and
`make soak ARGS="kills --seconds 60"` one with options of its own. What is not run again stays, with
its date. `make test` runs the same code in short forms (`tests/load`).

How to read it. Each row is a promise, the bound that makes it a check, what was found, and whether
it holds. Every promise has a control: its main check, by the same code, on a server or client with
a fault planted on purpose. A control must *not* hold; if it did, the check would see nothing, and
the scenario counts as failed. Requests go into a ledger by their id when they are sent, answers by
the id that they carry: a request without an outcome is lost, one with two is doubled. Figures hold
for the machine named above them. Generator and servers share that machine's processors, so times
are worse than with the load coming from elsewhere.

| | promise | shown by |
| --- | --- | --- |
| R1 | large bodies at close to the cost of receiving them | here |
| R2 | memory stays within a body and the budget | here |
| R3 | probes and small requests are quick beside large ones | here |
| R4 | overload is answered, nothing hangs | here |
| R5 | a stop loses nothing | here |
| R6 | a lost replica is not seen through the SDK | here |
| R7 | where a device fails, the CPU gives the same bits | `tests/service/test_devices.py` |
| R8 | clients that leave leave nothing behind, kernels stop | here |
| R9 | slow clients hold nothing | here |
| R10 | hostile messages and requests break nothing | here, by `make fuzz` |
| R11 | memory, descriptors and threads stay flat | here |
| R12 | the same bits from any replica and thread count | here |
| R13 | a container is ready in 3 s | `make test-docker` (`test_container_start.py`) |
| R15 | wrong settings stop the start and are named | `tests/service/test_settings.py` |"""


def keep(folder: Path, name: str, section: Section, order: Sequence[str]) -> None:
    """Put one section into both files of `folder`; the others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    store = folder / "reliability.json"
    sections: dict[str, Section] = json.loads(store.read_text()) if store.exists() else {}
    sections[name] = section
    known = [key for key in order if key in sections]
    others = [key for key in sections if key not in order]
    ordered = {key: sections[key] for key in [*known, *others]}
    store.write_text(json.dumps(ordered, indent=1) + "\n")
    (folder / "reliability.md").write_text(as_markdown(ordered))


def as_markdown(sections: dict[str, Section]) -> str:
    """The page of all sections."""
    parts = [INTRODUCTION]
    for section in sections.values():
        found = section["machine"]
        versions = ", ".join(f"{name} {found[name]}" for name in VERSIONS)
        minutes = section["seconds"] / 60
        parts += [
            f"## {section['title']}",
            f"`{section['command']}`, {section['date']}, {minutes:.1f} minutes: {found['cpu']}, "
            f"{found['cpus']} CPUs, {found['system']}, Python {found['python']}, {versions}.",
            *([section["about"]] if section["about"] else []),
            section["markdown"],
        ]
    return "\n\n".join(parts) + "\n"
