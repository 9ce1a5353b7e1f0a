"""What Linux tells of a process: its memory now and at its highest, and how long it had to wait."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


def status(pid: int | str, name: str) -> int:
    """A size in /proc/<pid>/status, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {name} in the status of process {pid}")


@dataclass(frozen=True)
class Watch:
    """Memory of a process since a moment."""

    pid: int | str
    before: int

    @classmethod
    def start(cls, pid: int | str = "self") -> Watch:
        """Begin: the high-water mark is set back to what is resident now."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")
        return cls(pid, status(pid, "VmRSS"))

    def kept(self) -> int:
        """Bytes resident now beyond those before."""
        return status(self.pid, "VmRSS") - self.before

    def peak(self) -> int:
        """Bytes resident at the highest moment beyond those before."""
        return status(self.pid, "VmHWM") - self.before


def waited(pid: int | str = "self") -> float:
    """Seconds that the threads of a process were ready to run and had no processor."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[1])
    return total / 1e9
