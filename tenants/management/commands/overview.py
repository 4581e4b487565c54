"""`overview [show]|check|rebuild`: the figures of the first screen."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from core.cli import Answer, Call, NounCommand, Verb
from core.errors import Exit


def _show(call: Call) -> Mapping[str, Any]:
    from operations.overview import overview

    return overview()


def _check(call: Call) -> Answer:
    from tenants.figures.counting import counts_check

    wrong = counts_check()
    for subject, (kept, right) in wrong.items():
        call.terminal.note(f"{subject}: the counters say {kept}, the rows {right}; overview rebuild counts anew")
    return Answer({"wrong": sorted(wrong)}, exit=Exit.INTEGRITY if wrong else Exit.OK)


def _rebuild(call: Call) -> Mapping[str, Any]:
    from dataclasses import asdict

    from tenants.figures.counting import counts_rebuild

    return {subject: asdict(counts) for subject, counts in counts_rebuild(actor=call.actor).items()}


class Command(NounCommand):
    help = "How backups, restores and releases went, in a few figures."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb("show", _show, "the figures (also without a verb)"),
        Verb("check", _check, "compare the counters with the rows (exit 7 when they differ)"),
        Verb("rebuild", _rebuild, "count all rows anew"),
    )

    def run(self, argv: Sequence[str], *, prog: str = "manage.py", noun: str = "") -> int:
        """Take `overview --json` for `overview show --json`."""
        named = any(not word.startswith("-") for word in argv) or {"-h", "--help"} & set(argv)
        return super().run(argv if named else ["show", *argv], prog=prog, noun=noun)
