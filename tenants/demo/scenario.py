"""The demo: protect three tenants, break one, bring it back, and prove it without the engine's help."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from access.models import Account
from access.services import master_add
from core import clock
from core.cli_output import size_text
from core.errors import Conflict
from engine.errors import LastroError
from operations.models import Operation, OperationState
from operations.services import operation_run
from tenants.demo import comparing, content
from tenants.demo.content import DemoTenant, demo_tenants
from tenants.demo.ledger import Ledger, demo_folder, demo_remove
from tenants.demo.shared_tables import SharedTables
from tenants.models import Backup, Source, Tenant
from tenants.selectors import backup_get, restore_get
from tenants.services.backups import BackupWish, backup_start, backup_verify_start
from tenants.services.restore_recording import report_of
from tenants.services.restores import RestoreWish, restore_start
from tenants.services.sources import source_add
from tenants.services.tenants import tenant_add

ACTOR = "cli:demo"
MASTER = "demo"
DAMAGED = "cobre"


class DemoFailed(LastroError):
    """A step of the demo did not end as it must."""

    code = "demo.failed"


@dataclass
class Demo:
    """One run: what was done so far."""

    say: Callable[[str], None]
    shared: SharedTables | None
    steps: list[dict[str, Any]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    password: str = ""

    def step(self, name: str, work: Callable[[], Mapping[str, Any] | None], *, said: str = "") -> Mapping[str, Any]:
        """Do one step, time it, say what it did."""
        began = time.monotonic()
        result = dict(work() or {})
        duration_ms = round((time.monotonic() - began) * 1000)
        self.steps.append({"name": name, "duration_ms": duration_ms, **result})
        figures = said.format(**{key: _figure(key, value) for key, value in result.items()}) if said else ""
        self.say(f"{duration_ms / 1000:7.2f} s  {name}{': ' + figures if figures else ''}")
        return result

    def run(self) -> bool:
        """Run all of it; True when everything came back equal."""
        demo_remove(actor=ACTOR)
        tenants = demo_tenants(demo_folder())
        _refuse_others(tenants)
        for tenant in tenants:
            self.step(f"make up {tenant.name}", partial(content.make, tenant))
        if self.shared is not None:
            self.step("fill shared PostgreSQL tables", self.shared.make)
        self._protect(tenants)
        self._back_up(tenants, "full")
        for tenant in tenants:
            content.change(tenant)
        if self.shared is not None:
            self.shared.change()
        self._back_up(tenants, "incremental")
        return self._lose_and_restore(tenants)

    def _protect(self, tenants: tuple[DemoTenant, ...]) -> None:
        Ledger(clock.now().isoformat(), [tenant.slug for tenant in tenants], MASTER).write()
        _, self.password = master_add(MASTER, actor=ACTOR)
        for tenant in tenants:
            self.step(f"add {tenant.slug} and its sources", partial(self._add, tenant))

    def _add(self, tenant: DemoTenant) -> dict[str, Any]:
        row = tenant_add(tenant.slug, name=tenant.name, criticality=tenant.criticality, actor=ACTOR)
        wanted = [
            ("hotel", "sqlite", "database", {"path": str(tenant.database)}),
            ("assets", "files", "assets", {"path": str(tenant.assets)}),
            ("configurations", "files", "configurations", {"path": str(tenant.configurations)}),
        ]
        if self.shared is not None:
            wanted.append(("bookings", "postgresql", "database", self.shared.settings(tenant.slug)))
        for name, kind, category, values in wanted:
            source_add(row, name, kind=kind, category=category, values=values, actor=ACTOR)
        return {"sources": [name for name, *_ in wanted]}

    def _back_up(self, tenants: tuple[DemoTenant, ...], kind: str) -> None:
        said = "{size_bytes}, stored {stored_bytes}"
        for tenant in tenants:
            self.step(f"{kind} backup of {tenant.slug}", partial(_backup, tenant.slug, kind), said=said)

    def _lose_and_restore(self, tenants: tuple[DemoTenant, ...]) -> bool:
        before = {tenant.slug: comparing.fingerprint(tenant) for tenant in tenants}
        shared_before = self.shared.fingerprint() if self.shared is not None else {}
        damaged = next(tenant for tenant in tenants if tenant.slug == DAMAGED)
        self.step(
            f"damage {DAMAGED}", lambda: self._damage(damaged, before[DAMAGED]), said="{differences} things differ"
        )
        self.step(f"restore {DAMAGED} in place", lambda: _restore(DAMAGED), said="{changed} changes, checks passed")
        self.step("compare byte by byte and row by row", lambda: self._compare(tenants, before, shared_before))
        self.step("read every stored byte again", lambda: _verify_all(tenants))
        return not self.differences

    def _damage(self, tenant: DemoTenant, before: comparing.Fingerprint) -> dict[str, Any]:
        done = content.damage(tenant)
        if self.shared is not None:
            done["shared_rows"] = self.shared.damage(tenant.slug)
        found = len(comparing.differences(before, comparing.fingerprint(tenant)))
        if not found:
            raise DemoFailed("the damage cannot be seen, so the comparison would prove nothing")
        return {**done, "differences": found}

    def _compare(
        self,
        tenants: tuple[DemoTenant, ...],
        before: Mapping[str, comparing.Fingerprint],
        shared_before: comparing.Fingerprint,
    ) -> dict[str, Any]:
        compared = len(shared_before)
        for tenant in tenants:
            found = comparing.differences(before[tenant.slug], comparing.fingerprint(tenant))
            self.differences += [f"{tenant.slug}: {name}" for name in found]
            compared += len(before[tenant.slug])
        if self.shared is not None:
            self.differences += comparing.differences(shared_before, self.shared.fingerprint())
        return {"compared": compared, "differences": len(self.differences)}


def _refuse_others(tenants: tuple[DemoTenant, ...]) -> None:
    """Whatever has one of our names now is not the demo's; afterwards everything that gets one is."""
    slugs = [tenant.slug for tenant in tenants]
    taken = [f"tenant {slug}" for slug in Tenant.objects.filter(slug__in=slugs).values_list("slug", flat=True)]
    taken += [f"master {name}" for name in Account.objects.filter(username=MASTER).values_list("username", flat=True)]
    if taken:
        raise Conflict(
            f"{taken[0]} exists and is not the demo's",
            hint="run the demo in a data folder of its own: LASTRO_DATA=…",
        )


def _run(operation: Operation) -> Operation:
    ended = operation_run(operation.pk, here=True)
    if ended.state != OperationState.SUCCEEDED:
        told = (ended.error or {}).get("detail") or "; ".join(each["message"] for each in ended.warnings)
        raise DemoFailed(f"{ended.kind} of {ended.tenant} {ended.state}: {told}")
    return ended


def _backup(slug: str, kind: str) -> dict[str, Any]:
    tenant = Tenant.objects.select_related("store").get(slug=slug)
    backup, operation = backup_start(tenant, BackupWish(type=kind, tags=("demo",)), actor=ACTOR, here=True)
    _run(operation)
    backup = backup_get(backup.pk)
    return {"backup": backup.pk, "size_bytes": backup.size_bytes, "stored_bytes": backup.stored_bytes}


def _newest(slug: str) -> Backup:
    backup = Backup.objects.filter(tenant__slug=slug, trigger="manual").order_by("-number").first()
    assert backup is not None, "the demo has just made one"
    return backup_get(backup.pk)


def _restore(slug: str) -> dict[str, Any]:
    wish = RestoreWish(confirmed=slug)
    restore, operation = restore_start(_newest(slug), wish, actor=ACTOR, reason="demo", here=True)
    _run(operation)
    restore = restore_get(restore.pk)
    return {
        "restore": restore.pk,
        "safety_backup": restore.safety_backup_id,
        "changed": _changed(restore.sources.all()),
    }


def _changed(rows: Any) -> int:
    changed = 0
    for row in rows:
        report = report_of(row)
        for table in report.get("tables") or ():
            changed += table["insert"] + table["update"] + table["delete"]
        files = report.get("files")
        if files:
            changed += files["created"] + files["replaced"] + files["removed"]
    return changed


def _verify_all(tenants: tuple[DemoTenant, ...]) -> dict[str, Any]:
    for tenant in tenants:
        ended = _run(backup_verify_start(_newest(tenant.slug), deep=True, actor=ACTOR, here=True))
        if ended.result["findings"]:
            raise DemoFailed(f"the backup of {tenant.slug} is damaged: {ended.result['findings'][0]['message']}")
    return {
        "backups": len(tenants),
        "sources": Source.objects.filter(tenant__slug__in=[t.slug for t in tenants]).count(),
    }


def _figure(key: str, value: Any) -> Any:
    return size_text(value) if key.endswith("_bytes") else value
