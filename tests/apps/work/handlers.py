"""Made-up work. It speaks with its test through files in the folder `params["folder"]`."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.db import transaction

from core.models import Fact
from engine.errors import StoreUnreachable
from operations.context import OperationContext
from operations.handlers import register
from operations.models import Operation

PATIENCE_SECONDS = 60.0


def _tenant(operation: Operation) -> str:
    return f"tenant:{operation.tenant}"


def _note(operation: Operation, word: str) -> None:
    Fact.objects.create(name=f"{word}:{operation.pk}", value=operation.state)


def _lost(operation: Operation) -> None:
    _note(operation, "lost")


def _dropped(operation: Operation) -> None:
    _note(operation, "dropped")


def _other_subject(operation: Operation) -> Mapping[str, Any]:
    return {"subject_id": f"{operation.subject_id}+"}


@register("test.work", resource=_tenant, phases=("read", "write"), on_lost=_lost, on_dropped=_dropped)
def work(context: OperationContext) -> Mapping[str, Any]:
    """Make `<id>.started`, hold `<tenant>.held` alone, go on when `go` is there, record the result under the lease."""
    folder = Path(context.params["folder"])
    held = folder / f"{context.operation.tenant}.held"
    context.phase("read")
    handle = os.open(held, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(handle, context.operation.pk.encode())
    os.close(handle)
    try:
        (folder / f"{context.operation.pk}.started").write_text(str(os.getpid()))
        _wait_for(folder / context.params.get("go", "go"), context)
        context.phase("write")
        context.advance(bytes=5, items=1)
        with transaction.atomic():
            context.fence()
            Fact.objects.create(name=f"done:{context.operation.pk}", value="1")
    finally:
        held.unlink(missing_ok=True)
    return {"pid": os.getpid()}


def _wait_for(path: Path, context: OperationContext) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        context.check()
        assert time.monotonic() < until, "the test forgot this operation"
        time.sleep(0.02)


@register("test.quick", resource=_tenant, phases=("all",), on_lost=_lost, on_dropped=_dropped, on_retry=_other_subject)
def quick(context: OperationContext) -> Mapping[str, Any] | None:
    """Do at once what the parameter `how` says."""
    how = context.params.get("how", "well")
    if how == "warn":
        context.warn("test.warned", "something is odd")
    elif how == "fail":
        raise StoreUnreachable("the store does not answer", hint="look at the network")
    elif how == "burst":
        raise ValueError("postgresql://me:hunter2@db/x is odd")
    elif how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "stop":
        context.cancel()
        context.check()
    elif how == "interrupt":
        raise KeyboardInterrupt
    elif how == "many":
        for number in range(1_500):
            context.warn("test.many", f"warning {number}")
    return {"how": how}


@register("test.stubborn", cancellable=False)
def stubborn(context: OperationContext) -> None:
    """Nothing, and it cannot be stopped."""


@register("test.hooked", resource=_tenant, hooks=True)
def hooked(context: OperationContext) -> Mapping[str, Any] | None:
    """The quick work, with hooks around it."""
    _note(context.operation, "worked")
    return quick(context)
