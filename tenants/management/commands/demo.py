"""`demo`: a loss and a recovery on made-up tenants."""

from collections.abc import Mapping
from typing import Any, ClassVar

from core.cli import Answer, Call, Verb, argument
from core.errors import Exit
from tenants.commanding import DefaultVerbCommand


def _run(call: Call) -> Answer:
    from django.core.management import call_command

    from tenants.demo.scenario import Demo
    from tenants.demo.shared_tables import shared_tables

    call_command("migrate", verbosity=0, skip_checks=True)
    demo = Demo(say=call.terminal.line, shared=shared_tables())
    equal = demo.run()
    call.terminal.line("Everything is equal to what was backed up." if equal else "DIFFERENT: " + demo.differences[0])
    if equal and not (call.options.no_serve or call.options.json):
        return _serve(call, demo.password)
    return Answer(
        {"equal": equal, "steps": demo.steps, "differences": demo.differences[:100]},
        [],
        exit=Exit.OK if equal else Exit.FAILED,
    )


def _serve(call: Call, password: str) -> Answer:
    from tenants.demo.scenario import MASTER
    from tenants.demo.serving import HOST, port_choose, serve

    port = port_choose(call.options.port)

    def ready() -> None:
        call.terminal.line(
            f"\nThe page is at http://{HOST}:{port}/   name: {MASTER}   password (shown once): {password}"
        )
        call.terminal.line("Ctrl-C stops page and worker; `demo remove` takes away what this added.")

    return Answer({}, [], exit=serve(port, ready=ready))


def _remove(call: Call) -> Mapping[str, Any]:
    from tenants.demo.ledger import demo_remove
    from tenants.demo.shared_tables import shared_tables

    shared = shared_tables()
    if shared is not None:
        shared.remove()
    return {"removed": demo_remove(actor=call.actor)}


class Command(DefaultVerbCommand):
    help = "Protect three made-up tenants, break one, bring it back, compare, then serve the page."
    default_verb = "run"
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "run",
            _run,
            "run it from the start; what an earlier run added goes first",
            (
                argument("--no-serve", action="store_true", help="stop after the comparison"),
                argument("--port", type=int, help="serve on this port"),
            ),
        ),
        Verb("remove", _remove, "take away exactly what the demo added"),
    )
