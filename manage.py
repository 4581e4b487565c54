#!/usr/bin/env python3
"""Put `platform/` on sys.path and run Django."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main() -> None:
    for folder in (str(ROOT), str(ROOT / "platform")):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    from config.command import main as run

    run()


if __name__ == "__main__":
    main()
