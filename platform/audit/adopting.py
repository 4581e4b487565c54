"""Taking over an audit log from a backup of the catalogue, and closing it again."""

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection

from audit import triggers
from audit.models import Head, Tile
from audit.rows import log_id_new
from audit.services import HEAD_ID, seal_context
from audit.verification import Verdict, audit_verify
from core.rootkey import root_key

LINEAGE_MAX = 50


@contextmanager
def audit_emptied() -> Iterator[None]:
    """Let entries be deleted and put in the block, which is part of one transaction; afterwards they are kept again.

    For an adoption alone: what a new installation had written so far gives way to the log that is taken over.
    """
    assert connection.in_atomic_block, "the triggers must come back with the rows"
    guarded = _guarded()
    triggers.drop(connection)
    yield
    if guarded:
        triggers.install(connection)


def _guarded() -> bool:
    """Whether the triggers are there: a test's catalogue has none."""
    query = {
        "sqlite": "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'audit_entry_%'",
        "postgresql": "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'audit_entry_%'",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(query)
        return bool(cursor.fetchone()[0])


def audit_sealed_again() -> Verdict:
    """Verify the log that was taken over and seal its head by the root key of today; what is wrong stays said.

    The seal of the backup may be that of a root key which was replaced since; size and root come from the head, and the
    entries are compared with them.
    """
    head = Head.objects.filter(pk=HEAD_ID).first()
    Tile.objects.all().delete()
    if head is not None:
        if head.log_id:
            # A log of another name: what witnesses have of the old one beyond this point was lost with the catalogue.
            grown = {"log": head.log_id, "size": head.size, "root": head.root_hash}
            head.lineage, head.log_id = [*head.lineage, grown][-LINEAGE_MAX:], log_id_new()
        head.seal = root_key().seal(b"", seal_context(head))
        head.save(force_update=True)
    return audit_verify()
