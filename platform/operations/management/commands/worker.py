"""`worker`: run queued operations until told to stop."""

import argparse
import importlib.util
import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, ProgrammingError

from core import logs
from engine.errors import LastroError
from operations import schedules
from operations.supervision import Supervisor, command_line, run_cluster


class Command(BaseCommand):
    help = "Run queued operations (LASTRO_WORKERS at a time) until Ctrl-C or SIGTERM."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--quiet", action="store_true", help="log to the data folder only, not to stderr")
        parser.add_argument("--cluster", type=int, help=argparse.SUPPRESS)

    def handle(self, *args: Any, **options: Any) -> None:
        logs.configure(settings.LASTRO_DATA / "log", level=settings.LASTRO_LOG_LEVEL, stderr=not options["quiet"])
        if options["cluster"] is not None:
            run_cluster(options["cluster"])
            return
        if settings.LASTRO_REDIS_URL and importlib.util.find_spec("redis") is None:
            raise CommandError("LASTRO_REDIS_URL is set, and the client is missing; install the extra: lastro[redis]")
        try:
            schedules.ensure()
        except LastroError as error:
            raise CommandError(f"a schedule of the environment (BACKUP_SCHEDULE): {error}") from error
        except (OperationalError, ProgrammingError) as error:
            raise CommandError("the catalogue is not ready; run: manage.py migrate") from error
        if not options["quiet"]:
            self.stderr.write(f"{os.getpid()}: running operations; Ctrl-C stops")
        sys.exit(Supervisor(command_line()).run())
