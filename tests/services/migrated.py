"""A migrated SQLite catalogue, made once per test process and copied: migrating takes longer than most tests."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CATALOGUE = "catalogue.sqlite3"


def catalogue_put(data: Path, environment: Mapping[str, str]) -> None:
    """Put a migrated catalogue into a data folder that has none, as `migrate` would with these settings module and environment."""
    template = _template(environment["DJANGO_SETTINGS_MODULE"])
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    shutil.copyfile(template / CATALOGUE, data / CATALOGUE)
    os.chmod(data / CATALOGUE, (template / CATALOGUE).stat().st_mode & 0o777)


@functools.cache
def _template(settings: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lastro-migrated-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LASTRO_")}
    command = [sys.executable, str(ROOT / "manage.py"), "migrate", "-v0", "--skip-checks"]
    environment = {**kept, "LASTRO_DATA": str(folder / "data"), "DJANGO_SETTINGS_MODULE": settings}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # A write-ahead log is merged into the file when the last connection closes; a copy of the file is then all of it.
    assert not (folder / "data" / f"{CATALOGUE}-wal").exists()
    return folder / "data"
