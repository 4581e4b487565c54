"""The OpenAPI document as it is committed: `python -m tests.api.openapi` writes it anew."""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "api" / "openapi.json"


def text(document: Any) -> str:
    """The document as it is written."""
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True, default=str) + "\n"


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    os.environ.setdefault("LASTRO_DATA", tempfile.mkdtemp())
    import django

    django.setup()
    from api.resources.anything import schema

    COMMITTED.write_text(text(schema()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
