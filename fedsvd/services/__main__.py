"""Start one of Flower's services: ``python -m fedsvd.services flower-supernode …``, with the arguments of the service.

It is Flower's own command, in this process, with `fedsvd.services.reconnects`.
"""

from __future__ import annotations

import sys
from importlib.metadata import entry_points

from fedsvd.services.reconnects import log_reconnects_once

SERVICES = ("flower-superexec", "flower-superlink", "flower-supernode")


def main() -> None:
    """Start the service that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in SERVICES:
        sys.exit(f"error: unknown service {name!r}. Usage: python -m fedsvd.services {'|'.join(SERVICES)} [ARGUMENT …]")
    [command] = entry_points(group="console_scripts", name=name)
    sys.argv = sys.argv[1:]
    log_reconnects_once()
    command.load()()


if __name__ == "__main__":
    main()
