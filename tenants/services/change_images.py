"""Change images of restores: kept for the term of their undo, dropped after it, and when nobody names them any more."""

import datetime
from collections.abc import Iterator
from dataclasses import dataclass

from django.conf import settings

from audit.services import record
from core import clock
from engine.images import image_drop, images_list
from engine.repository import Repository
from operations.context import OperationContext
from tenants.models import RestoreSource, RestoreState, Tenant
from tenants.services.reconciling import images_kept

ORPHAN_AGE = datetime.timedelta(days=1)
"""A running restore writes its image before a row names it."""


@dataclass(frozen=True, slots=True)
class DroppedImages:
    """How many images left the store: of restores whose undo term is over (or that were undone), and of nobody."""

    expired: int = 0
    orphaned: int = 0


def change_images_prune(
    context: OperationContext, tenant: Tenant, repository: Repository, *, dry_run: bool
) -> DroppedImages:
    """Drop images that no undo can ask for any more; with `dry_run` only count them.

    The row forgets its image before the image goes: what a kill leaves between is an orphan.
    """
    wanted, over = _named(tenant)
    wanted |= images_kept(tenant)
    expired = orphaned = 0
    for name, newest in list(_stored(repository)):
        context.check()
        if name in wanted:
            continue
        if name in over:
            expired += 1
        elif newest < clock.now() - ORPHAN_AGE:
            orphaned += 1
        else:
            continue
        if not dry_run:
            RestoreSource.objects.filter(restore__tenant=tenant, image=name).update(image="")
            image_drop(repository, name)
    if (expired or orphaned) and not dry_run:
        record(
            "restore.images_dropped",
            message=f"{expired + orphaned} change images of {tenant.slug} dropped",
            actor=context.operation.actor,
            tenant=tenant.slug,
            data={"expired": expired, "orphaned": orphaned, "undo_days": settings.LASTRO_UNDO_DAYS},
        )
    return DroppedImages(expired, orphaned)


def images_wanted(tenant: Tenant) -> set[str]:
    """Names of the images that an undo, or the retry of an unfinished restore, may need."""
    return _named(tenant)[0]


def _stored(repository: Repository) -> Iterator[tuple[str, datetime.datetime]]:
    yield from images_list(repository)


def _named(tenant: Tenant) -> tuple[set[str], set[str]]:
    """Images that an undo, or the retry of an unfinished restore, may need; and those that none does."""
    rows = RestoreSource.objects.filter(restore__tenant=tenant).exclude(image="")
    begun = clock.now() - datetime.timedelta(days=settings.LASTRO_UNDO_DAYS)
    wanted, over = set[str](), set[str]()
    for name, state, finished in rows.values_list("image", "restore__state", "restore__finished_at"):
        is_over = state == RestoreState.UNDONE or (finished is not None and finished <= begun)
        (over if is_over else wanted).add(name)
    return wanted, over
