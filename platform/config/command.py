"""The `lastro` console script and what manage.py calls: Django's, with our own way of refusing and of helping."""

import gc
import os
import sys
from typing import TYPE_CHECKING

from core.cli_output import Terminal
from core.logs import redact

if TYPE_CHECKING:
    from django.core.management import BaseCommand, ManagementUtility

_ASKS_FOR_HELP: tuple[list[str], ...] = ([], ["help"], ["--help"], ["-h"])
_USAGE_EXIT = 2
_INTERRUPTED_EXIT = 130
_FOREIGN = ("django", "django_q")


def main() -> None:
    """Run the management command named on the command line."""
    gc.disable()  # a fifth of the start is collecting among modules that stay; config.apps turns it on again
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(_refused("operation.interrupted", "interrupted", "", code=_INTERRUPTED_EXIT))


def _run() -> None:
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error as DatabaseError

    try:
        if sys.argv[1:] in _ASKS_FOR_HELP:
            Terminal().line("\n".join(_overview()))
            sys.stdout.flush()
        else:
            _program().execute()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ImproperlyConfigured as error:
        sys.exit(_refused("settings.invalid", str(error), "the settings are described in docs/settings.md"))
    except DatabaseError as error:  # Of Django's own commands; ours say so themselves (core.cli).
        detail = f"the catalogue cannot be used: {redact(str(error)).strip()[:300]}"
        sys.exit(
            _refused("catalogue.unready", detail, "is its database up and writable, and its disk not full?", code=1)
        )


def _program() -> "ManagementUtility":
    from django.conf import settings
    from django.core.management import ManagementUtility, get_commands

    class Program(ManagementUtility):
        def fetch_command(self, subcommand: str) -> "BaseCommand":
            # Read first: without settings get_commands() knows Django's own commands only, and keeps them in mind.
            if settings.INSTALLED_APPS and subcommand not in get_commands():
                sys.exit(_refused("usage.invalid", f"there is no command {subcommand!r}", "see: lastro help"))
            return super().fetch_command(subcommand)

    return Program(sys.argv)


def _overview() -> list[str]:
    """Our nouns with what they are for; Django's own commands stay out of the way."""
    import django
    from django.core.management import get_commands, load_command_class

    django.setup()
    ours = [(name, app) for name, app in sorted(get_commands().items()) if app.partition(".")[0] not in _FOREIGN]
    lines = [f"  {name:<11}{load_command_class(app, name).help}" for name, app in ours]
    return [
        "usage: lastro NOUN VERB …        (or: python manage.py NOUN VERB …)",
        "",
        *lines,
        "",
        "lastro NOUN --help lists a noun's verbs, lastro NOUN VERB --help what a verb takes.",
        "lastro migrate prepares or upgrades the catalogue; lastro help --commands lists Django's commands, too.",
    ]


def _refused(name: str, detail: str, hint: str, *, code: int = _USAGE_EXIT) -> int:
    """Say what is wrong as every command does (core.cli), without a catalogue or settings to rely on."""
    Terminal(json="--json" in sys.argv).error(name, detail, hint)
    return code
