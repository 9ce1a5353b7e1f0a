"""The service with careless faults: the controls of `aborts` run it.

Run ``python careless.py lease`` (what a request held is never given back), ``python
careless.py deaf`` (kernels never learn that they should stop), or name both.
"""

from __future__ import annotations

import sys
from typing import Any

from quiver_kernels import stopping
from quiver_service.__main__ import main
from quiver_service.budget import Lease


class _Deaf:
    """In the place of the variable that tells a computation when to stop."""

    def get(self) -> None: ...

    def set(self, value: Any) -> None: ...

    def reset(self, token: Any) -> None: ...


def plant(fault: str) -> None:
    """Break one thing in this process."""
    if fault == "lease":
        Lease.release = lambda self: None  # type: ignore[method-assign]  # noqa: ARG005
    elif fault == "deaf":
        stopping._should_stop = _Deaf()  # type: ignore[assignment]
    else:
        raise SystemExit(f"no such fault: {fault}; there are lease and deaf")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        plant(name)
    sys.exit(main([]))
