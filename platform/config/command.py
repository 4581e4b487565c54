"""The `lastro` console script: the same as `manage.py`, for an installation without the source tree."""

import gc
import os
import sys


def main() -> None:
    """Run the management command named on the command line."""
    gc.disable()  # until config.apps is ready, as in manage.py
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
