"""`work ask KIND`: queue made-up work."""

import json

from core.cli import Answer, Call, NounCommand, Verb, argument
from operations.following import operation_exit, operation_follow
from operations.presentation import operation_json
from operations.services import operation_enqueue


def ask(call: Call) -> Answer:
    options = call.options
    operation = operation_enqueue(
        kind=options.kind,
        tenant=options.tenant,
        params=json.loads(options.params),
        actor=call.actor,
        here=options.here,
    )
    operation = operation_follow(call, operation)
    return Answer(operation_json(operation), exit=operation_exit(operation))


def burst(call: Call) -> None:
    raise ValueError("password=hunter2 is odd")


def remove(call: Call) -> dict:
    call.confirm("aurora", what="remove aurora")
    return {"removed": True}


class Command(NounCommand):
    help = "Made-up work."
    verbs = (
        Verb(
            "ask",
            ask,
            "queue it",
            (argument("kind"), argument("--tenant", default="aurora"), argument("--params", default="{}")),
            long=True,
        ),
        Verb("burst", burst, "fail in a way that nobody foresaw"),
        Verb("remove", remove, "needs to be confirmed", confirm=True),
    )
