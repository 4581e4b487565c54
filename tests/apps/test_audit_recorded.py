"""Every change and every refusal is in the audit log: a sweep over all commands and over the code behind them."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from django.core.management import get_commands, load_command_class

from audit.models import Entry
from audit.refusals import PER_MINUTE, _Allowance
from audit.services import record
from core.cli import READING, NounCommand, Verb, count, moment
from core.origin import acting
from engine.errors import UsageError
from tests.architecture.source import code, tree

SELDOM: dict[str, str] = {
    "demo run": "a history of its own, over minutes",
    "doctor run": "looks only",
    "hook test": "refuses nothing before it knows the hook; see test_hooks",
}
"""Commands that the sweep of refusals leaves out, and why."""
LOOKS: dict[str, str] = {
    "doctor run": "looks only",
    "audit checkpoint": "its checkpoint is the record",
    "audit verify": "looks only; what is wrong is recorded by the worker's look",
    "audit witness": "moves on what says how far others are; a failure is recorded",
    "audit forward": "moves on what says how far others are; a failure is recorded",
}
"""Verbs with a name that sounds like a change and that leave no entry when all is well."""


def _commands() -> Iterator[tuple[str, NounCommand]]:
    for noun, app in sorted(get_commands().items()):
        if not str(app).startswith("django"):
            command = load_command_class(app, noun) if isinstance(app, str) else app
            if isinstance(command, NounCommand):
                yield noun, command


def _changing() -> list[tuple[str, str]]:
    return [(noun, verb.name) for noun, command in _commands() for verb in command.verbs if verb.name not in READING]


def _arguments(verb: Verb, word: str) -> Iterator[str]:
    """Words that argparse takes and that mean nothing here."""
    for each in verb.arguments:
        options, flag = each.options, each.flags[0]
        wanted = options.get("required") if flag.startswith("-") else options.get("nargs") not in ("?", "*")
        if not wanted:
            continue
        if flag.startswith("-"):
            yield flag
        kind = options.get("type")
        if options.get("choices"):
            yield str(next(iter(options["choices"])))
        elif kind is moment:
            yield "2020-01-01"
        elif kind is int or getattr(kind, "__qualname__", "").startswith(count.__name__):
            yield "1"
        else:
            yield word


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("noun", [noun for noun, _ in _commands()])
def test_every_refused_change_is_recorded(
    noun: str, settings: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Goal: who tries is seen; give every verb that changes something names that nobody knows, look for the entry."""
    settings.LASTRO_DATA = tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("audit.refusals._allowance", _Allowance())  # That of the process may be used up by others.
    command = dict(_commands())[noun]
    for verb in command.verbs:
        said = f"{noun} {verb.name}"
        if verb.name in READING or said in SELDOM:
            continue
        words = _understood(command, noun, verb)
        before = Entry.objects.count()
        code_ = command.run(words, noun=noun)
        out = capsys.readouterr()
        entries = list(Entry.objects.order_by("sequence")[before:])
        if code_ not in (0, 3):
            assert any(entry.type == "command.refused" and said in entry.message for entry in entries), (said, out.err)
            assert all(entry.origin["command"] == said for entry in entries)


def _understood(command: NounCommand, noun: str, verb: Verb) -> list[str]:
    """A command line that the parser takes: what it refuses itself was no attempt at anything."""
    for word in ("nobody-knows-this", "1", "60s"):
        words = [verb.name, *_arguments(verb, word), "--no-input", "--json", *(["--here"] if verb.long else [])]
        try:
            command.create_parser("manage.py", noun).parse_args(words)
        except UsageError:
            continue
        return words
    raise AssertionError(f"no words are known that {noun} {verb.name} takes")


# ---------------------------------------------------------------- the code behind the verbs

_RECORDS = {"record", "record_many", "operation_enqueue"}


@cache
def _calls() -> dict[str, set[str]]:
    """Function name -> names of what it calls or hands on, over all our code; functions of one name count as one."""
    found: dict[str, set[str]] = {}
    for path in code():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
                names |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
                found.setdefault(node.name, set()).update(names)
    return found


def _reaches_a_record(start: str) -> bool:
    seen, waiting = set[str](), [start]
    while waiting:
        name = waiting.pop()
        if name in _RECORDS:
            return True
        if name not in seen:
            seen.add(name)
            waiting += _calls().get(name, ())
    return False


def test_every_change_can_be_recorded() -> None:
    """Goal: no verb was forgotten; follow what each calls until something writes an entry."""
    forgotten = [
        f"{noun} {verb.name}"
        for noun, command in _commands()
        for verb in command.verbs
        if verb.name not in READING and f"{noun} {verb.name}" not in LOOKS
        if not _reaches_a_record(getattr(verb.run, "__name__", getattr(verb.run, "func", verb.run)).__str__())
    ]
    assert not forgotten, f"no entry in the audit log is made by: {', '.join(forgotten)}"


def test_the_list_of_reading_verbs_names_verbs() -> None:
    """Goal: the list does not rot; every exception names a verb that there is."""
    known = {f"{noun} {verb.name}" for noun, command in _commands() for verb in command.verbs}
    assert set(LOOKS) | set(SELDOM) <= known
    assert len(_changing()) > 40


# ---------------------------------------------------------------- where it came from, and how often


@pytest.mark.django_db
def test_an_entry_says_where_it_came_from() -> None:
    """Goal: who, from where, on whose behalf; record inside and outside of a request."""
    with acting(address="192.0.2.7", token="lst123", behalf="ana", request="r-1", operation=""):
        inside = record("test.done", message="m", actor="token:lst123")
    outside = record("test.done", message="m", actor="system:test")
    assert {
        "address": "192.0.2.7",
        "token": "lst123",
        "behalf": "ana",
        "request": "r-1",
    }.items() <= inside.origin.items()
    assert "operation" not in inside.origin
    assert set(outside.origin) == {"host", "pid"}
    assert Entry.objects.get(pk=inside.pk).origin == inside.origin


def test_refusals_cannot_fill_the_log() -> None:
    """Goal: the log cannot be deleted, so strangers must not fill it; take more than the allowance."""
    allowance = _Allowance()
    taken = [allowance.take() for _ in range(PER_MINUTE * 3)]
    assert PER_MINUTE <= sum(each is not None for each in taken) <= PER_MINUTE + 5
    allowance._at -= 2
    assert (allowance.take() or 0) > PER_MINUTE
