"""A store as a witness of the audit log: one object per checkpoint, written once."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import NotFound
from engine.ports import Store
from tenants import wiring
from tenants.models import StoreConfig

PREFIX = "audit-log"
SIZE_DIGITS = 15
NOTE_BYTES_MAX = 16 << 10
SIZES_MAX = 2_000_000


class StoreWitness:
    """audit.witness.Witness over an open store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, log_id: str, size: int, note: bytes) -> None:
        """Create the object; ObjectExists when there is another one under its name."""
        self._store.create(self._key(log_id, size), [note])

    def sizes(self, log_id: str) -> list[int]:
        """Taken from the names."""
        found: list[int] = []
        for info in self._store.list(f"{PREFIX}/{log_id}/"):
            name = info.key.rpartition("/")[2]
            if len(name) == SIZE_DIGITS and name.isascii() and name.isdigit() and len(found) < SIZES_MAX:
                found.append(int(name))
        return found

    def get(self, log_id: str, size: int) -> bytes:
        """The beginning of the object, longer than any note."""
        return self._store.get(self._key(log_id, size), 0, NOTE_BYTES_MAX)

    def _key(self, log_id: str, size: int) -> str:
        return f"{PREFIX}/{log_id}/{size:0{SIZE_DIGITS}d}"


@contextmanager
def store_witness(name: str) -> Iterator[StoreWitness]:
    """Open the store of this name as a witness. Raises NotFound, StoreError."""
    row = StoreConfig.objects.filter(name=name).first()
    if row is None:
        raise NotFound(f"there is no store {name[:60]!r} to be a witness", hint="LASTRO_AUDIT_WITNESS; store list")
    with wiring.store_open(row) as store:
        yield StoreWitness(store)
