#!/usr/bin/env python3
"""Put `platform/` on sys.path and run Django."""

import os
import sys

ROOT = os.path.dirname(os.path.realpath(__file__))


def main() -> None:
    for folder in (ROOT, os.path.join(ROOT, "platform")):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        from config.command import main as run

        run()
    except KeyboardInterrupt:  # While it was still starting; later ones are answered by config.command.
        sys.exit(130)


if __name__ == "__main__":
    main()
