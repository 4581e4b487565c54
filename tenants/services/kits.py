"""The recovery kit: what a clean host needs, besides a store, to read everything."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from access.approvals import Action, approval_use
from access.models import Approval
from audit.services import record
from core import clock
from core.models import Fact
from core.rootkey import FORMER_FACT, ROOT_KEY_FACT, ROOT_KEY_FILE, root_key, root_key_put
from engine.adapters import secret_fields
from engine.errors import ObjectDamaged
from engine.keys import RootKey
from engine.kit import kit_export, kit_known, kit_open, passphrase_checked
from engine.kit_text import has_kit_lines, kit_lines, kit_open_lines
from tenants import wiring
from tenants.catalogue.evidence import KitKnown
from tenants.models import CatalogueStore, RecoveryKit, StoreConfig, Tenant
from tenants.owning import catalogue_keyring, installation_get
from tenants.tenant_sealing import keyring_of


@dataclass
class KitChecked:
    """What a kit turned out to be good for."""

    root_key_id: str
    current: bool
    """It holds the root key by which this installation works now; None cannot be known without a catalogue."""
    newest: bool
    """No kit was made here after it."""
    made_at: str = ""
    printable: bool = False
    repositories: int = 0
    named: list[str] = field(default_factory=list)
    """Tenants that it names, by slug where they are known here."""
    unnamed: list[str] = field(default_factory=list)
    """Tenants made after it: it serves them, too."""

    def answer(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def kit_action(path: str, *, printable: bool) -> Action:
    """What a second master has to agree to: a kit and its passphrase are the root key."""
    return Action("keys", "kit.export", details={"output": path, "printable": printable})


def kit_make(passphrase: str, *, actor: str, action: Action | None = None, approval: Approval | None = None) -> bytes:
    """The kit as a file's content: the root key under the passphrase, and all repositories' public keys.

    Raises ApprovalNeeded where four eyes have to see that the root key leaves, and none of two have agreed to `action`.
    """
    root = root_key()
    tenants = Tenant.objects.filter(shredded_at=None).exclude(keyring=b"").order_by("slug")
    rows = [
        {
            "repository_id": tenant.repository_id,
            "tenant_id": tenant.pk,
            "tenant_name": tenant.name,
            "public_key": keyring_of(tenant).public_key.hex(),
        }
        for tenant in tenants.iterator()
    ]
    kit = kit_export(root, passphrase, rows, known=_known())
    agreed = action or kit_action("", printable=False), approval
    kit_made(kit, root, repositories=len(rows), printable=False, actor=actor, agreed=agreed)
    return kit


def _known() -> dict[str, Any]:
    """What an adoption by this kit compares a store with (catalogue.evidence)."""
    installation = installation_get()
    newest = CatalogueStore.objects.exclude(taken_at=None).order_by("-taken_at").first()
    return {
        "made_at": clock.now().isoformat(),
        "catalogue": installation.repository_id,
        "epoch": _epoch_kept(newest),
        "generation": installation.generation,
        "kept_at": newest.taken_at.isoformat() if newest is not None and newest.taken_at is not None else None,
    }


def _epoch_kept(newest: CatalogueStore | None) -> int:
    """The epoch that seals backups of the catalogue; 1 as long as there are none, which promises nothing."""
    return catalogue_keyring(installation_get()).epoch if newest is not None else 1


def kit_knows(kit: bytes, passphrase: str) -> KitKnown | None:
    """What a kit knows of the installation it was made by; None for one on paper. Raises WrongKey, ObjectDamaged."""
    if has_kit_lines(kit.decode(errors="replace")):
        return None
    return KitKnown.of(kit_known(kit, passphrase))


def kit_made(
    kit: bytes,
    root: RootKey,
    *,
    repositories: int,
    printable: bool,
    actor: str,
    agreed: tuple[Action, Approval | None],
) -> RecoveryKit:
    """Remember that a kit was made: `doctor` misses one that is older than the root key. Uses up the agreement to it."""
    digest = hashlib.sha256(kit).hexdigest()
    with transaction.atomic():
        approval_use(agreed[1], agreed[0], actor=actor)
        row = RecoveryKit.objects.create(
            sha256=digest,
            root_key_id=root.key_id,
            printable=printable,
            repositories=repositories,
            created_by=actor,
        )
        record(
            "kit.exported",
            message=f"recovery kit for {repositories} repositories",
            actor=actor,
            level="warning",
            data={"kit": row.pk, "sha256": digest, "root_key": root.key_id, "printable": printable},
        )
    return row


def kit_printed(
    passphrase: str, *, actor: str, html: bool, action: Action | None = None, approval: Approval | None = None
) -> bytes:
    """The kit as a page: what to do, where the stores are, and the root key in lines that can be typed by hand."""
    from django.template.loader import render_to_string

    root = root_key()
    passphrase_checked(passphrase)
    page = {
        "root_key_id": root.key_id,
        "lines": kit_lines(root, passphrase),
        "made_at": clock.now(),
        "installation": installation_get(),
        "stores": [_address(row) for row in StoreConfig.objects.order_by("name")],
        "tenants": Tenant.objects.filter(archived_at=None).count(),
    }
    kit = render_to_string(f"kits/kit.{'html' if html else 'txt'}", page).encode()
    agreed, count = (
        (action or kit_action("", printable=True), approval),
        Tenant.objects.filter(archived_at=None).count(),
    )
    kit_made(kit, root, repositories=count, printable=True, actor=actor, agreed=agreed)
    return kit


def _address(row: StoreConfig) -> dict[str, Any]:
    """Where a store is, as `--set` takes it; what is secret stays out and is named."""
    adapter: Any = wiring.store_kind(row.kind)
    secrets = secret_fields(adapter.Config)
    plain = [f"{name}={value}" for name, value in sorted(row.config.items()) if name not in secrets]
    return {"name": row.name, "kind": row.kind, "plain": plain, "secret": sorted(row.sealed)}


# ---------------------------------------------------------------- taking and checking


def kit_take(kit: bytes, passphrase: str, *, actor: str, replace_unused: bool = False) -> tuple[str, bool]:
    """Put the kit's root key in its place; its id, and False when it was there already.

    `replace_unused` sets a root key aside that was made here and has sealed no tenant's keys. Raises WrongKey for another
    passphrase, ObjectDamaged, RootKeyMismatch for the kit of another installation.
    """
    root, _ = kit_opened(kit, passphrase)
    if replace_unused:
        _unused_key_aside(root)
    put = root_key_put(root)
    if replace_unused:
        Fact.objects.get_or_create(pk=ROOT_KEY_FACT, defaults={"value": root.key_id})
    record("kit.imported", message=f"root key {root.key_id} taken from a recovery kit", actor=actor, level="warning")
    return root.key_id, put


def kit_opened(kit: bytes, passphrase: str) -> tuple[RootKey, Sequence[dict[str, Any]]]:
    """Root key and repositories of a kit, be it the file, the printed page, or lines typed from it."""
    try:
        text = kit.decode()
    except UnicodeDecodeError:
        raise ObjectDamaged("this is no recovery kit", hint="name the file that kit export wrote") from None
    return (kit_open_lines(text, passphrase), []) if has_kit_lines(text) else kit_open(kit, passphrase)


def _unused_key_aside(root: RootKey) -> None:
    """A clean installation makes a root key as soon as it needs one; nothing that anybody keeps is sealed by that."""
    known = Fact.objects.filter(pk=ROOT_KEY_FACT).values_list("value", flat=True).first()
    if Tenant.objects.exists() or known in (None, root.key_id):
        return
    path = Path(settings.LASTRO_DATA) / "keys" / ROOT_KEY_FILE
    # The file first: with the catalogue alone changed a killed run would find a key that is not the known one.
    if path.exists():
        os.replace(path, path.with_name(f"{ROOT_KEY_FILE}.unused-{known}"))
    Fact.objects.filter(pk=ROOT_KEY_FACT).delete()
    root_key.cache_clear()


def kit_list(*, limit: int) -> list[dict[str, Any]]:
    """Kits that were made, newest first; an outdated one holds a root key that opens nothing here any more."""
    facts = dict(Fact.objects.filter(pk__in=(ROOT_KEY_FACT, FORMER_FACT)).values_list("name", "value"))
    return [
        {
            "id": row.pk,
            "made_at": row.created_at,
            "root_key_id": row.root_key_id,
            "outdated": row.root_key_id not in facts.values(),
            "printable": row.printable,
            "repositories": row.repositories,
            "made_by": row.created_by,
        }
        for row in RecoveryKit.objects.order_by("-id")[:limit]
    ]


def kit_check(kit: bytes, passphrase: str) -> KitChecked:
    """Open a kit and say what it covers; changes nothing. Raises WrongKey, ObjectDamaged."""
    root, rows = kit_opened(kit, passphrase)
    known = Fact.objects.filter(pk=ROOT_KEY_FACT).values_list("value", flat=True).first()
    made = RecoveryKit.objects.filter(sha256=hashlib.sha256(kit).hexdigest()).first()
    newest = RecoveryKit.objects.order_by("-id").first()
    named = {str(row.get("repository_id")) for row in rows}
    tenants = Tenant.objects.filter(archived_at=None).order_by("slug").values_list("slug", "repository_id")
    return KitChecked(
        root.key_id,
        current=known == root.key_id,
        newest=made is not None and newest is not None and made.pk == newest.pk,
        made_at=made.created_at.isoformat() if made else "",
        printable=made.printable if made else not rows,
        repositories=len(rows),
        named=[slug for slug, repository_id in tenants if repository_id in named],
        unnamed=[slug for slug, repository_id in tenants if repository_id not in named],
    )
