"""Loaded before Django (`-p tests.environment` in pyproject.toml): a test run has a data folder of its own.

Without it the settings would make their keys, logs and default store in the developer's ./var. Every
xdist worker is a process of its own and gets one too; tests that start programs give each its own again.
"""

import atexit
import os
import shutil
import tempfile

_folder = tempfile.mkdtemp(prefix="lastro-test-data-")
os.environ["LASTRO_DATA"] = _folder
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
for _name in ("LASTRO_DATABASE_URL", "LASTRO_ROOT_KEY", "LASTRO_SECRET_KEY", "LASTRO_KILL_AT"):
    os.environ.pop(_name, None)
    os.environ.pop(f"{_name}_FILE", None)
