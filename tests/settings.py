"""Django's settings for the test run: a data folder of its own, nothing of the developer's.

LASTRO_TEST_DATABASE_URL puts the catalogue of the tests into a PostgreSQL server. A program that a test starts
inherits the name of this module; it gets the plain settings from the environment that the test gives it.
"""

import atexit
import os
import shutil
import sys
import tempfile

if "pytest" in sys.modules:
    for _name in [
        name
        for name in os.environ
        if (name.startswith("LASTRO_") and not name.startswith("LASTRO_TEST_"))
        or name in ("AWS_S3_BUCKET", "GCS_BUCKET", "BACKUP_NOTIFY_EMAIL", "SLACK_WEBHOOK_URL")
    ]:
        del os.environ[_name]
    os.environ["LASTRO_DATA"] = tempfile.mkdtemp(prefix="lastro-tests-")
    atexit.register(shutil.rmtree, os.environ["LASTRO_DATA"], ignore_errors=True)
    if os.environ.get("LASTRO_TEST_DATABASE_URL"):
        os.environ["LASTRO_DATABASE_URL"] = os.environ["LASTRO_TEST_DATABASE_URL"]

from config.settings import *  # noqa: F403

if "pytest" in sys.modules:
    # Slow hashes are right for passwords and wrong for a thousand log-ins of tests.
    PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
