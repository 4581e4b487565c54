"""What the nouns of this app share: settings and times from the command line, the end of long work."""

import argparse
import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from django.core.management.base import CommandParser

from core.cli import Answer, Call, NounCommand, moment
from engine.errors import UsageError
from operations.following import operation_complain, operation_exit, operation_follow
from operations.models import Operation


def settings_of(given: Sequence[str] | None) -> dict[str, str]:
    """`KEY=VALUE` arguments as a mapping; a key given again adds a line (lists such as `exclude`)."""
    values: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, not {key[:40]!r}", hint="for example --set path=/srv/data")
        values[key] = f"{values[key]}\n{value}" if key in values else value
    return values


def time_of(text: str | None) -> datetime.datetime | None:
    """A time in RFC 3339, or a date; without an offset it is UTC."""
    if text is None:
        return None
    try:
        return moment(text)
    except argparse.ArgumentTypeError:
        raise UsageError(f"{text[:40]!r} is no time", hint="for example 2026-11-22T08:00:00Z or 2026-11-22") from None


def followed(
    call: Call,
    operation: Operation,
    *,
    data: Callable[[Operation], Mapping[str, Any]],
    text: Callable[[Mapping[str, Any]], Sequence[str]],
    exit: Callable[[Operation], int] = operation_exit,
) -> Answer:
    """See the operation to its end as the options say; `data` gives the answer, also of one that failed."""
    operation = operation_follow(call, operation)
    if not operation.is_final:
        left = {"operation": operation.pk, "state": operation.state, "subject": operation.subject_id}
        return Answer(left, [f"{operation.pk} is {operation.state}; operation show {operation.pk}"])
    operation_complain(call, operation)
    answer = dict(data(operation))
    answer.setdefault("operation", operation.pk)
    if operation.error and not answer.get("error"):
        answer["error"] = {key: operation.error.get(key, "") for key in ("code", "detail", "hint")}
    return Answer(answer, [] if operation.error else text(answer), exit=exit(operation))


def result_of(operation: Operation) -> Mapping[str, Any]:
    """The operation's own result."""
    return operation.result or {}


def kinds_answer(rows: Sequence[Mapping[str, Any]]) -> Answer:
    """The kinds of sources or stores with the settings that each takes."""
    lines = []
    for row in rows:
        lines += [f"{row['kind']}: {row['label']}", *(_setting(*each) for each in row["settings"].items()), ""]
    return Answer({"data": list(rows)}, lines[:-1] or ["none"])


def _setting(name: str, about: Mapping[str, Any]) -> str:
    remarks = [word for word in ("required", "secret") if about[word]]
    if about["choices"]:
        remarks.append(" | ".join(about["choices"]))
    said = f"{about['label']}. {about['help']}" if about["help"] else about["label"]
    return f"  {name:<26} {said}" + (f" ({'; '.join(remarks)})" if remarks else "")


class DefaultVerbCommand(NounCommand):
    """A noun that can do with no verb: `doctor` is `doctor run`."""

    default_verb: ClassVar[str]

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Say in the noun's help which verb is meant when none is named."""
        parser = super().create_parser(prog_name, subcommand, **kwargs)
        parser.epilog = f"Without a verb: {self.default_verb}."
        return parser

    def run(self, argv: Sequence[str], *, prog: str = "manage.py", noun: str = "") -> int:
        """Run one verb, the default one when none is named."""
        names = {name for verb in self.verbs for name in (verb.name, *verb.aliases)}
        if argv and argv[0] in ("-h", "--help"):
            return super().run(argv, prog=prog, noun=noun)
        if not argv or argv[0] not in names:
            argv = [self.default_verb, *argv]
        return super().run(argv, prog=prog, noun=noun)
