"""``quiver``, or ``python -m quiver_client.cli``."""

from __future__ import annotations

import gc
import importlib.util
import sys

NEEDED = ("click", "rich")


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit with its code."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"quiver: the command needs {' and '.join(missing)}: pip install 'quiver-client[cli]'"
        )
    from quiver_client.cli.app import run

    code = run(sys.argv[1:])
    # At its end the interpreter looks through all objects for cycles, of the compiler's too.
    gc.freeze()
    sys.exit(code)


if __name__ == "__main__":
    main()
