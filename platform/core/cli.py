"""`manage.py <noun> <verb>`: the frame of every command.

A noun is a management command whose class lists its verbs. Data goes to stdout, everything else to stderr;
with --json stdout holds exactly one object, for an error `{"error": {"code", "detail", "hint"}}`. The exit
code follows from the error (`core.errors`). Nothing heavy is imported before it is needed: these commands are
run by scripts, and starting up is most of what a small one costs.
"""

import argparse
import datetime
import errno
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, OperationalError, ProgrammingError, connections

from core.cli_output import Terminal
from core.errors import (
    CatalogueUnready,
    ConfirmationNeeded,
    Exit,
    InternalError,
    meaning,
)
from core.origin import acting
from engine.errors import LastroError, UsageError

ARGUMENT_CHARS_MAX = 32_768
"""A quarter of what Linux passes on; nothing that an operator types is longer."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a verb, as argparse's add_argument takes it."""

    flags: tuple[str, ...]
    options: Mapping[str, Any]


def argument(*flags: str, **options: Any) -> Argument:
    return Argument(flags, options)


def count(most: int) -> Callable[[str], int]:
    """The type of `--limit`: a whole number from 1 to `most`."""

    def parsed(text: str) -> int:
        if text.isascii() and text.isdigit() and 1 <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number from 1 to {most}")

    return parsed


def moment(text: str) -> datetime.datetime:
    """The type of a time: RFC 3339 or a date; UTC without an offset."""
    try:
        at = datetime.datetime.fromisoformat(text)
        return at.replace(tzinfo=datetime.UTC) if at.tzinfo is None else at.astimezone(datetime.UTC)
    except (ValueError, OverflowError):  # The latter at both ends of the calendar.
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no time; write 2026-11-22T08:00:00Z or 2026-11-22"
        ) from None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a verb gives back: the JSON object, its text for people (made from `data` when None), the exit code."""

    data: Mapping[str, Any]
    text: Sequence[str] | None = None
    exit: int = Exit.OK


READING = frozenset({
    "certificate", "checks", "check", "checkpoints", "deliveries", "diff", "generate", "kinds", "list", "metrics", "next",
    "plans", "proof", "report", "rules", "runs", "show", "simulate", "status", "upcoming", "works",
})  # fmt: skip
"""Names of verbs that look and change nothing; a test holds that every other one leaves an entry in the audit log."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: `run(call)` does it and returns an Answer, a JSON object, or None.

    `long` adds --here, --wait and --detach (see operations.following), `confirm` adds --confirm. `aliases`
    are other spellings. A verb whose name is not in READING changes something, and its refusal is recorded.
    """

    name: str
    run: "Callable[[Call], Answer | Mapping[str, Any] | None]"
    help: str
    arguments: tuple[Argument, ...] = ()
    long: bool = False
    confirm: bool = False
    aliases: tuple[str, ...] = ()


Refused = Callable[[str, argparse.Namespace, LastroError], None]
_refused_tell: list[Refused] = []


def refusals_told_to(tell: Refused) -> None:
    """Have every refusal of a verb that changes something told: `noun verb`, its options, the error."""
    _refused_tell[:] = [tell]


def actor_name() -> str:
    """Who is at the keyboard: `cli:<user>`, of sudo the one who called it."""
    import getpass

    try:
        return f"cli:{os.environ.get('SUDO_USER') or getpass.getuser()}"
    except (KeyError, OSError):
        return f"cli:{os.getuid()}"


class Call:
    """One use of a verb: its options and the terminal."""

    def __init__(self, options: argparse.Namespace, terminal: Terminal) -> None:
        self.options = options
        self.terminal = terminal

    @property
    def actor(self) -> str:
        """Who is at the keyboard, for rows and the audit log: `cli:<user>`."""
        return actor_name()

    @property
    def interactive(self) -> bool:
        """A person can be asked: no --no-input, no --json, and a terminal at both ends."""
        options = self.options
        return not (options.no_input or options.json) and sys.stdin.isatty() and self.terminal.is_terminal

    def confirm(self, slug: str, *, what: str) -> None:
        """Let a destructive step pass only with --confirm SLUG or the slug typed; ConfirmationNeeded otherwise.

        `what` completes "This will …".
        """
        given = getattr(self.options, "confirm", None)
        if given is None and self.interactive:
            self.terminal.note(f"This will {what}.")
            given = self.terminal.ask(f"Type {slug} to go on: ")
        if given is None:
            raise ConfirmationNeeded(f"this would {what}", hint=f"confirm with --confirm {slug}")
        if given != slug:
            raise ConfirmationNeeded(f"{given!r} does not confirm {slug!r}; nothing was done", hint=f"--confirm {slug}")


class _Parser(CommandParser):
    """Raises UsageError instead of ending the process, so that usage errors take the way of all others."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"see {self.prog} --help")


class NounCommand(BaseCommand):
    """Base of all nouns; a subclass in management/commands/<noun>.py sets `help` and `verbs`."""

    verbs: ClassVar[tuple[Verb, ...]] = ()
    # The checks import every URL and view; `manage.py check`, `doctor` and the server run them.
    requires_system_checks = []

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        parser = _Parser(
            prog=f"{os.path.basename(prog_name)} {subcommand}", description=self.help or None, allow_abbrev=False
        )
        verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
        for verb in self.verbs:
            part = verbs.add_parser(
                verb.name, help=verb.help, description=verb.help, aliases=verb.aliases, allow_abbrev=False
            )
            part.set_defaults(_verb=verb)
            for each in verb.arguments:
                part.add_argument(*each.flags, **each.options)
            _add_common(part, verb)
        return parser

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command line and end the process with its exit code."""
        try:
            code = self.run(argv[2:], prog=argv[0], noun=argv[1])
        finally:
            connections.close_all()
        # Flushed here, so that a reader that went away (`| head`) is no traceback at exit.
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)

    def run(self, argv: Sequence[str], *, prog: str = "manage.py", noun: str = "") -> int:
        """Run one verb and return its exit code; everything it has to say is printed."""
        terminal = Terminal(json="--json" in argv)
        debug = "--traceback" in argv or bool(os.environ.get("LASTRO_DEBUG"))
        noun = noun or type(self).__module__.rpartition(".")[2]
        try:
            _refuse_unusable(argv)
            options = self.create_parser(prog, noun).parse_args(argv)
            with acting(command=f"{noun} {options._verb.name}", behalf=_behalf()):
                return _answered(f"{noun} {options._verb.name}", options, terminal)
        except LastroError as error:
            return _fail(terminal, error)
        except KeyboardInterrupt:
            return _interrupted(terminal)
        except BrokenPipeError:
            return Exit.FAILED
        except Exception as error:
            if debug:
                raise
            return _fail(terminal, _foreseen(error))

    def handle(self, *args: Any, **options: Any) -> str | None:
        """For call_command: the options have been parsed already."""
        options.setdefault("json", False)
        _answer(argparse.Namespace(**options), Terminal(json=options["json"]))
        return None


def _refuse_unusable(argv: Sequence[str]) -> None:
    """Refuse what neither a catalogue nor an audit log can hold, before anything is begun."""
    for number, text in enumerate(argv, 1):
        if len(text) > ARGUMENT_CHARS_MAX:
            raise UsageError(f"argument {number} is too long", hint=f"{ARGUMENT_CHARS_MAX} characters at the most")
        if "\0" in text:
            raise UsageError(f"argument {number} holds a NUL")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"argument {number} is not UTF-8: {text[:80]!r}",
                hint="what lies inside a folder may have any name; the paths that are typed are UTF-8",
            ) from None


def _add_common(parser: argparse.ArgumentParser, verb: Verb) -> None:
    common = parser.add_argument_group("common options")
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument("--no-input", action="store_true", help="never ask")
    common.add_argument("--traceback", action="store_true", help=argparse.SUPPRESS)
    common.add_argument("-v", "--verbosity", type=int, choices=range(4), default=1, help=argparse.SUPPRESS)
    # Django reads these two from the command line itself, before the command is known.
    common.add_argument("--settings", help=argparse.SUPPRESS)
    common.add_argument("--pythonpath", help=argparse.SUPPRESS)
    if verb.long:
        how = common.add_mutually_exclusive_group()
        how.add_argument("--here", action="store_true", help="do it in this process, without a worker")
        how.add_argument("--wait", action="store_true", help="follow it to its end, also while no worker is running")
        how.add_argument("--detach", action="store_true", help="leave it to a worker and return at once")
    if verb.confirm:
        common.add_argument("--confirm", metavar="SLUG", help="name what may be changed or destroyed")


def _behalf() -> str:
    """The account that the process runs as, where the one at the keyboard is another (sudo)."""
    return f"uid {os.getuid()}" if os.environ.get("SUDO_USER") else ""


def _answered(command: str, options: argparse.Namespace, terminal: Terminal) -> int:
    try:
        return _answer(options, terminal)
    except Exception as error:
        if options._verb.name not in READING and not isinstance(error, BrokenPipeError):
            for tell in _refused_tell:
                tell(command, options, error if isinstance(error, LastroError) else InternalError(type(error).__name__))
        raise


def _answer(options: argparse.Namespace, terminal: Terminal) -> int:
    answer = options._verb.run(Call(options, terminal))
    if answer is None:
        answer = Answer({})
    elif not isinstance(answer, Answer):
        answer = Answer(answer)
    terminal.answer(answer.data, answer.text)
    return int(answer.exit)


def _fail(terminal: Terminal, error: LastroError) -> int:
    terminal.error(error.code, error.message, error.hint)
    return int(meaning(error).exit)


def _interrupted(terminal: Terminal) -> int:
    terminal.error("operation.interrupted", "interrupted", "")
    return int(Exit.INTERRUPTED)


def _foreseen(error: Exception) -> LastroError:
    """Say what a foreign exception means, or log it under an id."""
    if isinstance(error, OperationalError | ProgrammingError):
        if _lacks_a_table(error):
            return CatalogueUnready("the catalogue is not migrated to this version", hint="run: manage.py migrate")
        if isinstance(error, OperationalError):
            return _logged(
                error,
                CatalogueUnready,
                "the catalogue cannot be used",
                "is its database up and writable, and its disk not full?",
            )
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError("a path, or a name in it, is too long", hint="a name has 255 bytes at the most, a path 4,095")
    if isinstance(error, DatabaseError):
        return _logged(error, InternalError, "the catalogue refused a statement", "")
    return _logged(error, InternalError, f"unforeseen {type(error).__name__}", "")


_UNDEFINED = ("42P01", "42703")  # SQLSTATE: undefined_table, undefined_column


def _lacks_a_table(error: Exception) -> bool:
    """A table or column of ours is not there. "does not exist" alone says nothing: so may a database or a role."""
    text = str(error)
    state = getattr(error.__cause__, "sqlstate", None)
    return state in _UNDEFINED or "no such table" in text or "no such column" in text


def _logged(error: Exception, kind: type[LastroError], message: str, hint: str) -> LastroError:
    import logging
    import uuid

    from core.logs import redact

    reference = uuid.uuid4().hex[:12]
    logging.getLogger("core.cli").error("command failed", exc_info=error, extra={"reference": reference})
    detail = f"{message}: {redact(str(error)).strip()[:300]}"
    return kind(detail, hint=f"{hint} The log has the rest under {reference}".strip())
