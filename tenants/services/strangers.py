"""Objects that somebody put where numbers of a repository will be: named, and set aside, so that work can go on.

Whoever may write to a store can put rubbish under a number that this catalogue has not given out yet. It cannot pass for a
backup, and stops what comes upon it, loudly. Only what lies above every number that the catalogue knows, and does not open under the
repository's keys, is such a stranger: below that it is damage (copy repair), and what opens is ours (store reconcile). A
stranger is never just deleted: its bytes are kept in `damaged/`, should it have been a backup once.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import transaction

from audit.services import record
from engine.errors import DamageError, ManifestDamaged, ObjectMissing
from engine.fallback import check_object
from engine.manifest import DOCUMENT_BYTES_MAX
from engine.repository import Repository, delete_unlocked
from operations.context import OperationContext
from operations.models import Operation
from operations.services import operation_enqueue
from tenants.models import Copy, Tenant

STRANGERS_MAX = 1_000
KEPT_BYTES_MAX = 1 << 20
"""Of one that is longer than any manifest: enough to see what it is."""
_NUMBER = re.compile("[0-9]{10}")


@dataclass(frozen=True)
class Stranger:
    """One object that is none of the repository's; `key` without the repository's prefix."""

    key: str
    bytes: int
    why: str


def strangers_found(tenant: Tenant, repository: Repository) -> list[Stranger]:
    """What lies above the numbers that the catalogue knows and does not open; STRANGERS_MAX at the most."""
    found: list[Stranger] = []
    known = {
        "manifests": tenant.number_reserved, "forgets": tenant.number_reserved, "erasures": tenant.erasures_number,
    }  # fmt: skip
    for folder, number in known.items():
        prefix = f"{repository.prefix}{folder}/"
        for info in repository.store.list(prefix):
            name = info.key.removeprefix(prefix)
            if not _NUMBER.fullmatch(name) or int(name) <= number:
                continue
            why = _why_not_ours(repository, info.key)
            if why:
                found.append(Stranger(f"{folder}/{name}", info.size, why))
            if len(found) == STRANGERS_MAX:
                return found
    return found


def _why_not_ours(repository: Repository, key: str) -> str:
    try:
        check_object(repository.keyring, repository.prefix, key, repository.store.get(key, 0, DOCUMENT_BYTES_MAX))
    except DamageError as error:
        return error.message
    except ObjectMissing:
        return ""
    return ""


def strangers_refused(tenant: Tenant, repository: Repository) -> None:
    """Raise ManifestDamaged that names them when there are any."""
    found = strangers_found(tenant, repository)
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ManifestDamaged(
            f"store {tenant.store.name} holds r/{tenant.repository_id}/{found[0].key}{more}, which nobody with the keys of "
            f"{tenant.slug} wrote; nothing was deleted",
            hint=f"look who may write there; copy strangers {tenant.slug} lists and sets aside what is none of ours",
        )


def strangers_start(copy: Copy, *, actor: str, reason: str = "", here: bool = False) -> Operation:
    """Queue the setting aside of what is none of the repository's in this store."""
    with transaction.atomic():
        return operation_enqueue(
            kind="strangers",
            tenant=copy.tenant.slug,
            params={"store": copy.store.name},
            subject_id=copy.pk,
            actor=actor,
            reason=reason,
            here=here,
        )


def strangers_set_aside(
    context: OperationContext, tenant: Tenant, repository: Repository, *, store: str
) -> tuple[list[Stranger], list[str]]:
    """Keep each stranger's bytes in `damaged/` and free its place; what was set aside, and keys that the store keeps locked.

    A kill in between leaves it in both places; repeating it is safe.
    """
    repository.guard.check()
    done: list[Stranger] = []
    locked: list[str] = []
    for each in strangers_found(tenant, repository):
        context.check()
        key = repository.prefix + each.key
        kept = DOCUMENT_BYTES_MAX if each.bytes <= DOCUMENT_BYTES_MAX else KEPT_BYTES_MAX
        blob = repository.store.get(key, 0, kept)
        repository.store.put(f"{repository.prefix}damaged/{hashlib.sha256(blob).hexdigest()}", [blob])
        if delete_unlocked(repository.store, [key]):
            locked.append(each.key)
        else:
            done.append(each)
    _recorded(context, tenant, store, done)
    return done, locked


def _recorded(context: OperationContext, tenant: Tenant, store: str, done: Sequence[Stranger]) -> None:
    if not done:
        return
    with transaction.atomic():
        context.fence()
        record(
            "copy.strangers_set_aside",
            message=f"{len(done)} objects in store {store} were none of {tenant.slug}'s and are set aside",
            actor=context.operation.actor,
            tenant=tenant.slug,
            level="warning",
            data={"store": store, "objects": [each.key for each in done[:200]]},
        )
