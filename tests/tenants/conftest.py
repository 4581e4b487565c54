"""Tenants with real files, databases and stores, in a data folder of each test's own."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core import rootkey
from operations.models import Operation
from operations.services import operation_run
from tenants.models import Backup, Restore, RestorePlan, Source, Tenant
from tenants.plan_selectors import plan_get
from tenants.selection import Wish
from tenants.selectors import backup_get, restore_get
from tenants.services.backups import BackupWish, backup_start
from tenants.services.plans import plan_start
from tenants.services.restores import RestoreWish, restore_start, restore_start_planned
from tenants.services.sources import source_add
from tenants.services.tenants import tenant_add
from tenants.services.undos import undo_plan_start, undo_start

ACTOR = "test:operator"


class House:
    """One installation with its services at hand; what fails raises, unless `ok` is False."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def tenant(self, slug: str = "aurora") -> Tenant:
        return tenant_add(slug, name=slug.title(), actor=ACTOR)

    def files(self, tenant: Tenant, name: str = "assets", **content: str) -> Source:
        folder = self.data / tenant.slug / name
        folder.mkdir(parents=True)
        for file, text in (content or {"a": "one", "b": "two"}).items():
            (folder / file).write_text(text)
        source, _ = source_add(tenant, name, kind="files", category="assets", values={"path": str(folder)}, actor=ACTOR)
        return source

    def database(self, tenant: Tenant, name: str = "db", rows: int = 100) -> Source:
        path = self.data / tenant.slug / f"{name}.sqlite3"
        path.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
            connection.executemany("INSERT INTO users VALUES (?, ?)", [(n, f"u{n}") for n in range(rows)])
        source, _ = source_add(
            tenant, name, kind="sqlite", category="database", values={"path": str(path)}, actor=ACTOR
        )
        return source

    def folder(self, source: Source) -> Path:
        return Path(source.config["path"])

    def backup(self, tenant: Tenant, kind: str = "full", *, ok: bool = True, **wish: Any) -> Backup:
        backup, operation = backup_start(tenant, BackupWish(type=kind, **wish), actor=ACTOR, here=True)
        self.run(operation, ok=ok)
        return backup_get(backup.pk)

    def restore(self, backup: Backup, *, ok: bool = True, **wish: Any) -> Restore:
        wish.setdefault("confirmed", backup.tenant.slug)
        restore, operation = restore_start(backup, RestoreWish(**wish), actor=ACTOR, here=True)
        self.run(operation, ok=ok)
        return restore_get(restore.pk)

    def plan(self, backup: Backup, *, ok: bool = True, **wish: Any) -> RestorePlan:
        targets = wish.pop("targets", ())
        plan, operation = plan_start(backup, Wish(**wish), targets, actor=ACTOR, here=True)
        self.run(operation, ok=ok)
        return plan_get(plan.pk)

    def run_plan(self, plan: RestorePlan, *, ok: bool = True, **wish: Any) -> Restore:
        wish.setdefault("confirmed", plan.tenant.slug)
        wish.setdefault("mode", "")
        restore, operation = restore_start_planned(plan_get(plan.pk), RestoreWish(**wish), actor=ACTOR, here=True)
        self.run(operation, ok=ok)
        return restore_get(restore.pk)

    def undo(self, restore: Restore, *, ok: bool = True, **wish: Any) -> Restore:
        undo, operation = undo_start(restore, confirmed=restore.tenant.slug, actor=ACTOR, here=True, **wish)
        self.run(operation, ok=ok)
        return restore_get(undo.pk)

    def undo_plan(self, restore: Restore, *, ok: bool = True, **wish: Any) -> RestorePlan:
        plan, operation = undo_plan_start(restore, actor=ACTOR, here=True, **wish)
        self.run(operation, ok=ok)
        return plan_get(plan.pk)

    def run(self, operation: Operation, *, ok: bool = True) -> Operation:
        ended = operation_run(operation.pk, here=True)
        if ok:
            assert ended.state in ("succeeded", "warned"), ended.error
        return ended


@pytest.fixture
def house(transactional_db: None, settings: Any, tmp_path: Path) -> Iterator[House]:
    settings.LASTRO_DATA = tmp_path
    rootkey.root_key.cache_clear()
    yield House(tmp_path)
    rootkey.root_key.cache_clear()


@pytest.fixture
def content() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its bytes."""
    return lambda top: {str(p.relative_to(top)): p.read_bytes() for p in sorted(top.rglob("*")) if p.is_file()}
