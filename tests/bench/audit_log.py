"""Fill and measure an audit log and a catalogue of backups: run as `python -m tests.bench.audit_log VERB …` in its environment.

Prints one JSON object. Nothing is faked but the backups, whose rows are inserted as they would stand there.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.bench.programs import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "platform")]
BATCH = 5_000
TENANTS = 10_000
KINDS = (
    "backup.created",
    "operation.requested",
    "operation.succeeded",
    "restore.finished",
    "copy.ran",
    "tenant.changed",
)


def main(verb: str, *words: str) -> None:
    """`fill COUNT`, `one COUNT`, `tens COUNT`, `bare COUNT`, `append COUNT PROCESSES`, `pages`, `verify`, `proof`, `backups COUNT`, `overview`."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    import django

    django.setup()
    verbs: dict[str, Callable[..., Any]] = {
        "fill": fill, "append": append, "one": one, "tens": tens, "bare": bare, "pages": pages, "verify": verify, "proof": proof, "backups": backups,
        "overview": overview_seconds,
    }  # fmt: skip
    sys.stdout.write(json.dumps(verbs[verb](*map(int, words))) + "\n")


def _events(begin: int, end: int) -> Iterator[Any]:
    from audit.services import Event

    for n in range(begin, end):
        kind = KINDS[n % len(KINDS)]
        yield Event(
            kind, f"{kind} number {n} of tenant t{n % TENANTS}", f"cli:user{n % 7}", f"t{n % TENANTS}",
            "error" if n % 1_000 == 0 else "info", {"operation": f"opr_{n:026d}", "kind": kind, "number": n},
        )  # fmt: skip


def fill(count: int) -> dict[str, float]:
    """As many entries, thousands in one transaction."""
    from audit.services import record_many

    begun = time.monotonic()
    for begin in range(0, count, BATCH):
        record_many(_events(begin, min(begin + BATCH, count)))
    return {"seconds": time.monotonic() - begun}


def one(count: int) -> dict[str, float]:
    """Entries that each commit."""
    from audit.services import record

    events = list(_events(0, count))
    begun = time.monotonic()
    for event in events:
        record(event.type, message=event.message, actor=event.actor, tenant=event.tenant, data=event.data)
    return {"seconds": time.monotonic() - begun}


def tens(count: int) -> dict[str, float]:
    """Entries of which ten commit together, as a service that changes ten things writes them."""
    from audit.services import record_many

    events = list(_events(0, count))
    begun = time.monotonic()
    for at in range(0, count, 10):
        record_many(events[at : at + 10])
    return {"seconds": time.monotonic() - begun}


def bare(count: int) -> dict[str, float]:
    """Rows of the same size, each committed, by the driver alone: what the database and its disk take for that."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS bench_bare (number integer PRIMARY KEY, said text)")
        cursor.execute("DELETE FROM bench_bare")
        begun = time.monotonic()
        for n in range(count):
            cursor.execute("INSERT INTO bench_bare VALUES (%s, %s)", [n, "x" * 700])
        took = time.monotonic() - begun
        cursor.execute("DROP TABLE bench_bare")
    return {"seconds": took}


def append(count: int, processes: int) -> dict[str, float]:
    """Entries that each commit, from several processes at once; the time of the slowest."""
    argv = [sys.executable, "-m", "tests.bench.audit_log", "one", str(count)]
    running = [subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    said = [json.loads(process.communicate()[0]) for process in running]
    return {"seconds": max(each["seconds"] for each in said)}


def pages() -> dict[str, float]:
    """The slowest of several pages of 100, each asked for three times; the median of each."""
    import datetime

    from audit.models import Entry
    from audit.selectors import Filter, entry_page

    newest = Entry.objects.order_by("-sequence").values_list("timestamp", flat=True)[0]
    wishes = {
        "all": Filter(),
        "tenant": Filter(tenant="t4711"),
        "type": Filter(type="backup"),
        "types": Filter(type="operation"),
        "level": Filter(level="error"),
        "user": Filter(user="cli:user3"),
        "tenant and type": Filter(tenant="t4711", type="restore"),
        "user, never of this type": Filter(user="cli:user3", type="nothing"),
        "rare text": Filter(text="number 77 of"),
        "text of a user": Filter(text="number 77 of", user="cli:user3"),
        "time": Filter(until=newest - datetime.timedelta(seconds=5)),
        "deep": Filter(before=1_000),
    }
    took = {}
    for name, wish in wishes.items():
        times = []
        for _ in range(3):
            begun = time.monotonic()
            entry_page(wish, limit=100)
            times.append(time.monotonic() - begun)
        took[name] = sorted(times)[1]
    return took


def verify() -> dict[str, float]:
    """The whole log."""
    from audit.verification import audit_verify

    begun, busy = time.monotonic(), time.process_time()
    verdict = audit_verify(witnessed=False)
    assert verdict.intact, verdict.findings
    return {"seconds": time.monotonic() - begun, "cpu": time.process_time() - busy, "entries": verdict.size}


def proof() -> dict[str, float]:
    """Tiles first; then the largest and the slowest of a hundred proofs."""
    from audit.checkpoints import checkpoint_make
    from audit.models import Entry
    from audit.proofs import inclusion_prove, tiles_fill

    size = checkpoint_make().size
    while tiles_fill():
        pass
    times, largest = [], 0
    for n in range(100):
        entry = Entry.objects.get(sequence=size * n // 100)
        begun = time.monotonic()
        said = inclusion_prove(entry, size=size).output()
        times.append(time.monotonic() - begun)
        largest = max(largest, len(json.dumps(said)))
    return {"seconds": sorted(times)[50], "bytes": largest}


def backups(count: int) -> dict[str, float]:
    """As many rows of backups of many tenants, counted by the triggers as they come."""
    from core import clock
    from tenants.figures.counting import changes_fold
    from tenants.models import Backup, StoreConfig, Tenant

    store = StoreConfig.objects.get_or_create(name="bench", defaults={"kind": "local"})[0]
    tenants = [Tenant(slug=f"t{n}", name="t", repository_id=f"rep_t{n}", store=store) for n in range(1_000)]
    Tenant.objects.bulk_create(tenants)
    now, begun = clock.now(), time.monotonic()
    for begin in range(0, count, BATCH):
        Backup.objects.bulk_create(
            Backup(
                tenant=tenants[n % 1_000], number=n, state="failed" if n % 50 == 0 else "succeeded", type="full",
                requested_type="full", manifest_sha256="0" * 64, size_bytes=n, duration_ms=n % 9_999, finished_at=now,
            )
            for n in range(begin + 1, min(begin + BATCH, count) + 1)
        )  # fmt: skip
        changes_fold()
    return {"seconds": time.monotonic() - begun}


def overview_seconds() -> dict[str, float]:
    """The overview, the first time and afterwards; and whether it is right."""
    from operations.overview import overview
    from tenants.figures.counting import counts_check

    times = []
    for _ in range(5):
        begun = time.monotonic()
        overview()
        times.append(time.monotonic() - begun)
    assert not counts_check()
    return {"seconds": sorted(times)[2], "first": times[0]}


if __name__ == "__main__":
    main(*sys.argv[1:])
