"""`doctor`: is Lastro itself healthy, and is everything protected?"""

from typing import Any, ClassVar

from core.cli import Answer, Call, Verb, argument
from core.errors import Exit
from tenants.commanding import DefaultVerbCommand

_EXITS = {"ok": Exit.OK, "warning": Exit.WARNED, "critical": Exit.FAILED}
_NAGIOS_EXITS = {"ok": 0, "warning": 1, "critical": 2}
_NAGIOS_UNKNOWN = 3


def _run(call: Call) -> Answer:
    if call.options.nagios:
        return _nagios()
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


def _nagios() -> Answer:
    """One line and an exit code as the Monitoring Plugins Development Guidelines want them."""
    from tenants.diagnosis import diagnose, worst

    try:
        signs = diagnose()
    except Exception as error:  # noqa: BLE001 - a plugin that cannot tell says UNKNOWN, whatever happened
        return Answer({"status": "unknown"}, [f"LASTRO UNKNOWN - {type(error).__name__}"], exit=_NAGIOS_UNKNOWN)
    status = worst(signs)
    bad = [f"{sign.name}: {sign.message}" for sign in signs if sign.status == status and status != "ok"]
    ages = next((sign.figures for sign in signs if sign.name == "backup ages"), {})
    figures = f" | sources={ages.get('sources', 0)} late={ages.get('late', 0)}"
    said = "; ".join(bad).replace("|", "/") or f"{len(signs)} checks"
    return Answer({"status": status}, [f"LASTRO {status.upper()} - {said}{figures}"], exit=_NAGIOS_EXITS[status])


class Command(DefaultVerbCommand):
    help = "Look at catalogue, keys, stores, tools, workers, ages and space; exit 0 ok, 3 warnings, 1 critical."
    default_verb = "run"
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "run",
            _run,
            "look at everything",
            (argument("--nagios", action="store_true", help="one line, exit 0, 1, 2 or 3 as a monitoring plugin"),),
        ),
    )
