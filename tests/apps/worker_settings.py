"""The settings of the programs that the tests of operations start: no tenants, but an app of made-up work."""

from tests.settings import *  # noqa: F403

INSTALLED_APPS = [app for app in INSTALLED_APPS if app not in ("tenants", "releases", "api", "panel")]  # noqa: F405
INSTALLED_APPS.append("tests.apps.work")
