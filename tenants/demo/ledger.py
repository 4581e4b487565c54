"""What the demo added, so that `demo remove` takes away exactly that."""

import datetime
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from django.db import transaction

from access.models import Account
from audit.services import record
from core.errors import Conflict
from core.models import StateChange
from operations.models import ACTIVE_STATES, Lease, Operation
from tenants import wiring
from tenants.models import Backup, Drill, Restore, RestorePlan, Source, Tenant, Validation

LEDGER_NAME = "added.json"


@dataclass
class Ledger:
    """The names the demo took at a time when nobody had them; written before the rows are."""

    begun_at: str
    slugs: list[str]
    master: str

    def write(self) -> None:
        path = demo_folder() / LEDGER_NAME
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(self), indent=1))
        os.replace(draft, path)


def demo_folder() -> Path:
    """Where the made-up data lies."""
    return wiring.data_folder() / "demo"


def ledger_read() -> Ledger | None:
    """What an earlier run wrote down, or None."""
    try:
        return Ledger(**json.loads((demo_folder() / LEDGER_NAME).read_text()))
    except FileNotFoundError:
        return None


def demo_remove(*, actor: str) -> dict[str, int]:
    """Take away what the demo added: rows, repositories, data, the demo's master. The audit log keeps its entries.

    Raises Conflict while an operation of a demo tenant runs. Removing twice is no error.
    """
    ledger = ledger_read()
    if ledger is None:
        return {"tenants": 0, "objects": 0}
    begun_at = datetime.datetime.fromisoformat(ledger.begun_at)
    tenants = list(Tenant.objects.select_related("store").filter(slug__in=ledger.slugs, created_at__gte=begun_at))
    slugs = [tenant.slug for tenant in tenants]
    if Operation.objects.filter(tenant__in=slugs, state__in=ACTIVE_STATES).exists():
        raise Conflict("an operation of a demo tenant is running", hint="wait for its end: operation list")
    objects = sum(_repository_remove(tenant) for tenant in tenants)
    with transaction.atomic():
        _rows_remove(tenants, slugs)
        Account.objects.filter(username=ledger.master, created_at__gte=begun_at).delete()
        record(
            "demo.removed", message=f"demo tenants removed: {', '.join(slugs)}", actor=actor, data={"objects": objects}
        )
    shutil.rmtree(demo_folder(), ignore_errors=True)
    return {"tenants": len(tenants), "objects": objects}


def _repository_remove(tenant: Tenant) -> int:
    """Delete every object of the demo tenant's own repository; its id is in the ledger's row, nobody else's."""
    count = 0
    with wiring.store_open(tenant.store) as store:
        prefix = f"r/{tenant.repository_id}/"
        for info in list(store.list(prefix)):
            store.delete(info.key)
            count += 1
        if tenant.store.kind == "local":
            shutil.rmtree(Path(tenant.store.config["path"]) / prefix, ignore_errors=True)
    for name in ("sealed", "plain"):
        shutil.rmtree(wiring.cache_folder() / f"{tenant.repository_id}-{name}", ignore_errors=True)
    return count


def _rows_remove(tenants: list[Tenant], slugs: list[str]) -> None:
    ids = [tenant.pk for tenant in tenants]
    operations = Operation.objects.filter(tenant__in=slugs)
    subjects = [
        *operations.values_list("pk", flat=True),
        *Backup.objects.filter(tenant__in=ids).values_list("pk", flat=True),
        *Restore.objects.filter(tenant__in=ids).values_list("pk", flat=True),
        *RestorePlan.objects.filter(tenant__in=ids).values_list("pk", flat=True),
        *Drill.objects.filter(tenant__in=ids).values_list("pk", flat=True),
    ]
    for start in range(0, len(subjects), 500):
        StateChange.objects.filter(subject_id__in=subjects[start : start + 500]).delete()
    Validation.objects.filter(tenant__in=ids).delete()
    Drill.objects.filter(tenant__in=ids).delete()
    # Restores and plans name each other, and a protected row may not even be deleted along with what protects it.
    Restore.objects.filter(tenant__in=ids).update(plan=None, undoes=None)
    RestorePlan.objects.filter(tenant__in=ids).delete()
    Restore.objects.filter(tenant__in=ids).delete()
    Source.objects.filter(tenant__in=ids).delete()
    Backup.objects.filter(tenant__in=ids).delete()
    Lease.objects.filter(
        resource__in=[f"{what}:{slug}" for what in ("tenant", "plan") for slug in slugs], holder=""
    ).delete()
    operations.delete()
    Tenant.objects.filter(pk__in=ids).delete()
