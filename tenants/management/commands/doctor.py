"""`doctor`: is Lastro itself healthy, and is everything protected?"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from core.cli import Answer, Call, Verb, argument, count
from core.cli_output import Terminal
from core.errors import Exit
from engine.errors import LastroError
from tenants.commanding import DefaultVerbCommand

_EXITS = {"ok": Exit.OK, "warning": Exit.WARNED, "critical": Exit.FAILED}
_NAGIOS_EXITS = {"ok": 0, "warning": 1, "critical": 2}
_NAGIOS_UNKNOWN = 3
_NAGIOS_CHARS_MAX = 1_000


def _run(call: Call) -> Answer:
    if call.options.nagios:
        return _nagios(call.options.timeout)
    from tenants.diagnosis import diagnose, worst

    signs = diagnose()
    status = worst(signs)
    return Answer(
        {"status": status, "checks": [vars(sign) for sign in signs]},
        [_line(sign) for sign in signs],
        exit=_EXITS[status],
    )


def _line(sign: Any) -> str:
    hint = f"\n          {sign.hint}" if sign.hint and sign.status != "ok" else ""
    return f"{sign.status:<9} {sign.name}: {sign.message}{hint}"


def _nagios(seconds: int) -> Answer:
    """One line and an exit code as the Monitoring Plugins Development Guidelines want them."""
    from tenants.diagnosis import diagnose, worst

    try:
        with _at_most(seconds):
            signs = diagnose(network=False)
    except Exception as error:  # noqa: BLE001 - a plugin that cannot tell says UNKNOWN, whatever happened
        said = f"no answer within {seconds} s" if isinstance(error, TimeoutError) else type(error).__name__
        return Answer({"status": "unknown"}, [f"LASTRO UNKNOWN - {said}"], exit=_NAGIOS_UNKNOWN)
    status = worst(signs)
    bad = [f"{sign.name}: {sign.message}" for sign in signs if sign.status == status and status != "ok"]
    figures = {name: sign.figures for sign in signs for name in ("backup ages", "watch") if sign.name == name}
    ages, watch = figures.get("backup ages", {}), figures.get("watch", {})
    counted = {
        "sources": ages.get("sources", 0),
        "late": ages.get("late", 0),
        "alerts_critical": watch.get("critical", 0),
        "alerts_other": watch.get("warning", 0),
        "watch_silence": f"{silence}s" if (silence := watch.get("silence_seconds")) is not None else "U",
    }
    said = " ".join("; ".join(bad).replace("|", "/").split())[:_NAGIOS_CHARS_MAX] or f"{len(signs)} checks"
    perfdata = " ".join(f"{name}={value}" for name, value in counted.items())
    return Answer(
        {"status": status, **counted},
        [f"LASTRO {status.upper()} - {said} | {perfdata}"],
        exit=_NAGIOS_EXITS[status],
    )


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds; a plugin must answer before its monitor gives it up."""

    def stop(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Command(DefaultVerbCommand):
    help = "Look at catalogue, keys, stores, tools, workers, ages and space; exit 0 ok, 3 warnings, 1 critical."
    default_verb = "run"
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "run",
            _run,
            "look at everything",
            (
                argument(
                    "--nagios",
                    action="store_true",
                    help="one line, exit 0, 1, 2 or 3 as a monitoring plugin; asks the catalogue only",
                ),
                argument("--timeout", type=count(600), default=30, metavar="SECONDS", help="of --nagios: 30"),
            ),
        ),
    )

    def run(self, argv: Sequence[str], *, prog: str = "manage.py", noun: str = "") -> int:
        """Run it; as a plugin a mistake on the command line is UNKNOWN, since 2 means CRITICAL there."""
        if "--nagios" in argv and not {"-h", "--help"} & set(argv):
            try:
                self.create_parser(prog, noun or "doctor").parse_args(
                    ["run", *(each for each in argv if each != "run")]
                )
            except LastroError as error:
                Terminal().line(f"LASTRO UNKNOWN - {error.message}")
                return _NAGIOS_UNKNOWN
        return super().run(argv, prog=prog, noun=noun)
