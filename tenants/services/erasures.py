"""Erasures: subjects that no later restore of the tenant brings back."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from django.db import transaction
from django.db.models.functions import Greatest

from audit.services import record
from core.errors import NotFound
from engine.erasures import Erasure, ErasureLedger, erase, erasure_subject
from engine.errors import UsageError
from engine.ports import TableView
from tenants import reading, wiring
from tenants.models import Backup, BackupSource, Source, Tenant
from tenants.models.backup import GOOD_STATES
from tenants.services.copies import copies_queue_after

LOOKED_AT_MAX = 1_000
"""In how many of the newest backups the subject is looked for, so that the operator sees that the key was right."""


@dataclass(frozen=True)
class Erased:
    """What was recorded; `found_in` are ids of backups that hold the subject, at most LOOKED_AT_MAX were asked.

    Of one that was recorded before (`is_new` is false) no backup shows anything any more.
    """

    table: str
    number: int
    found_in: tuple[str, ...]
    is_new: bool


def erasure_add(source: Source, table: str, key: Sequence[str], *, actor: str, reason: str = "") -> Erased:
    """Record one subject by the values of its key; the reason must not say who it was.

    Raises NotFound when no backup of the source has the table (close names are suggested), UsageError for a
    key that cannot be.
    """
    tenant = source.tenant
    backups = _backups(source)
    if not backups:
        raise NotFound(f"no backup holds source {source.name}", hint="there is nothing that could bring anybody back")
    with wiring.repository_open(tenant) as repository:
        view = _view(_tables(repository, backups[0], source), table)
        subject = erasure_subject(view, key, wiring.connector_kind(source.kind).key_field)
        found = tuple(
            backup.pk for backup in backups if _holds(_tables(repository, backup, source), view.name, subject)
        )
        before = ErasureLedger.load(repository, at_least=tenant.erasures_number)
        ledger = erase(repository, [(source.name, view.name, subject)])
    with transaction.atomic():
        Tenant.objects.filter(pk=tenant.pk).update(erasures_number=Greatest("erasures_number", ledger.number))
        record(
            "erasure.recorded",
            message=f"a subject of {source.name}.{view.name} of {tenant.slug} comes back no more",
            actor=actor,
            tenant=tenant.slug,
            level="warning",
            data={
                "source": source.name,
                "table": view.name,
                "record": ledger.number,
                "reason": reason,
                "held_by": len(found),
            },
        )
    copies_queue_after(tenant)  # Whoever has nothing but a copy must not bring anybody back either.
    return Erased(view.name, ledger.number, found, is_new=ledger.number > before.number)


def erasure_list(tenant: Tenant) -> tuple[Erasure, ...]:
    """Every erasure, by hashes; names and keys are nowhere kept."""
    with wiring.repository_open(tenant) as repository:
        return ErasureLedger.load(repository, at_least=tenant.erasures_number).entries


def _backups(source: Source) -> list[Backup]:
    kept = BackupSource.objects.filter(source=source, state=BackupSource.State.KEPT, backup__state__in=GOOD_STATES)
    rows = Backup.objects.filter(pk__in=kept.values("backup_id")).select_related("tenant__store")
    return list(rows.order_by("-number")[:LOOKED_AT_MAX])


def _tables(repository: Any, backup: Backup, source: Source) -> Sequence[TableView]:
    return cast(Sequence[TableView], reading.views_of(repository, backup)[source.name].tables)


def _view(tables: Sequence[TableView], name: str) -> TableView:
    found = [view for view in tables if name in (view.name, view.name.rpartition(".")[2])]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{name!r} could be {' or '.join(view.name for view in found)}", hint="give the whole name")
    known = [view.name for view in tables]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise NotFound(
        f"the newest backup has no table {name[:60]!r}",
        hint=f"did you mean {', '.join(close)}?" if close else f"it has: {', '.join(known[:20]) or 'none'}",
    )


def _holds(tables: Sequence[TableView], name: str, subject: bytes) -> bool:
    view = next((each for each in tables if each.name == name), None)
    return view is not None and any(rows for rows in view.rows_for([subject]))
