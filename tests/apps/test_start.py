"""What a command loads before it does anything: only what it is about to use."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNUSED = ("croniter", "prometheus_client", "django.contrib.staticfiles.handlers", "tenants.retention.decide")

SCRIPT = """
import sys
sys.path[:0] = ["platform", "."]
import django
django.setup()
from operations.handlers import handler_get
handler_get("backup")
print(*sys.modules)
import croniter
"""


def test_a_backup_loads_no_more_than_it_uses(tmp_path: Path) -> None:
    """Goal: a start without detours. Method: what a backup's handler brings along; who asks for a library gets it."""
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "config.settings", "LASTRO_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "tenants.handlers.backup" in loaded
    assert not loaded.intersection(UNUSED)
