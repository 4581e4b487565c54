"""A wish for a restore, looked at before anything is queued: what it means, and whether it can be right at all."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.errors import ConfirmationNeeded
from core.rootkey import root_key
from engine.errors import NameUnknown, UsageError
from tenants import reading, wiring
from tenants.models import Backup, BackupSource, Source, Tenant
from tenants.selection import Selection, Wish, selection_of, wish_checked
from tenants.selectors import backup_usable, source_get
from tenants.shredded import keys_present
from tenants.targets import Targets, targets_parse


@dataclass(frozen=True)
class RestoreWish(Wish):
    """What was asked for. `confirmed` is what the operator typed, compared with the tenant's slug here."""

    targets: tuple[str, ...] = ()
    confirmed: str | None = None
    validate: bool = True
    safety_backup: bool = True
    prove: bool = False


@dataclass(frozen=True)
class Resolved:
    """What the wish means for this backup."""

    backup: Backup
    selection: Selection
    sources: Mapping[str, Source]
    targets: Targets
    base: Backup | None

    @property
    def tenant(self) -> Tenant:
        return self.backup.tenant


def wish_resolve(backup: Backup, wish: Wish, targets: Sequence[str]) -> Resolved:
    """Look everything up that was named. Reads the manifest, unless all of the backup is wanted.

    Raises UsageError, NameUnknown and NotFound for what there is not, StoreError when the manifest cannot be read.
    """
    keys_present(backup.tenant)
    wish_checked(wish)
    named = _kept(backup, wish.sources)
    if wish.mode == "full":
        selection = Selection(sources=tuple(named))
    else:
        with reading.backups_open(backup.tenant, [backup]) as repository:
            selection = selection_of(wish, wiring.manifest_of(repository, backup), named)
    sources = {name: source_get(backup.tenant, name) for name in selection.sources}
    base = _base(backup, wish.base, selection) if wish.base else None
    spread = targets_parse(targets, sources)
    for name, source in sources.items():
        if spread:
            wiring.connector_open(source).at(spread.of(name))
    return Resolved(backup, selection, sources, spread, base)


def _kept(backup: Backup, names: Sequence[str]) -> list[str]:
    kept = list(
        BackupSource.objects.filter(backup=backup, state=BackupSource.State.KEPT)
        .order_by("name")
        .values_list("name", flat=True)
    )
    unknown = [name for name in names if name not in kept]
    if unknown:
        raise NameUnknown(
            f"backup {backup.pk} does not hold source {unknown[0]!r}", hint=f"it holds: {', '.join(kept) or 'nothing'}"
        )
    return [name for name in kept if not names or name in names]


def _base(backup: Backup, base_id: str, selection: Selection) -> Backup:
    """Older or newer than the backup does not matter: where both sides went apart is for the operator to know."""
    base = backup_usable(base_id)
    if base.tenant_id != backup.tenant_id:
        raise UsageError(
            f"{base.pk} is a backup of another tenant", hint=f"backup list {backup.tenant.slug} shows those that fit"
        )
    held = set(BackupSource.objects.filter(backup=base, state=BackupSource.State.KEPT).values_list("name", flat=True))
    lacking = [name for name in selection.sources if name not in held]
    if lacking:
        raise UsageError(
            f"the base {base.pk} does not hold source {lacking[0]!r}",
            hint="choose another base, or name the sources that it holds with --source",
        )
    return base


def confirmation_checked(tenant: Tenant, confirmed: str | None, *, in_place: bool) -> None:
    """Raise ConfirmationNeeded unless the slug stands behind what would be overwritten."""
    if confirmed is None and in_place:
        raise ConfirmationNeeded(
            f"this would change the data of {tenant.slug} in place", hint=f"confirm with --confirm {tenant.slug}"
        )
    if confirmed is not None and confirmed != tenant.slug:
        raise ConfirmationNeeded(
            f"{confirmed[:60]!r} does not confirm {tenant.slug!r}; nothing was done", hint=f"--confirm {tenant.slug}"
        )


def targets_seal(owner_id: str, targets: Targets) -> dict[str, dict[str, str]]:
    """The secret settings of the targets under `restore:<owner>:<source>:<key>`, base64."""
    root = root_key()
    return {
        name: {
            key: base64.b64encode(root.seal(value.encode(), f"restore:{owner_id}:{name}:{key}")).decode()
            for key, value in settings.items()
        }
        for name, settings in targets.secret.items()
    }
