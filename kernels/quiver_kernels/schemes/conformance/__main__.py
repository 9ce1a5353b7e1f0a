"""``python -m quiver_kernels.schemes.conformance``: check schemes by name, or all of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quiver_kernels.schemes import registry
from quiver_kernels.schemes.conformance import golden
from quiver_kernels.schemes.conformance.runner import check


def main() -> int:
    """Print findings; 1 if there are any."""
    parser = argparse.ArgumentParser(
        prog="python -m quiver_kernels.schemes.conformance",
        description="Check that schemes hold what they declare, with every choice they take.",
    )
    parser.add_argument("names", nargs="*", help="schemes; all, unless told")
    parser.add_argument("--golden", type=Path, help="folder of messages that were written once")
    parser.add_argument("--write", action="store_true", help="first write those not there yet")
    options = parser.parse_args()
    if options.write and options.golden is None:
        parser.error("--write needs --golden")
    count = 0
    for name in options.names or registry.names():
        scheme = registry.find(name)
        if options.write and scheme is not None:
            written = golden.write(scheme, options.golden)
            sys.stdout.write(f"{name}: {written} messages written\n")
        findings = check(name, golden=options.golden)
        count += len(findings)
        sys.stdout.writelines(f"{finding}\n" for finding in findings)
        sys.stdout.write(f"{name}: {len(findings)} findings\n")
        sys.stdout.flush()
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
