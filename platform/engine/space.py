"""What the bytes of a repository are needed for, before and after a prune."""

import datetime
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Space:
    """Stored bytes of all packs, each counted once but for `locked`, which is a part of `entombed`.

    A pack's bytes are shared out by what its chunks are needed for, so that live and garbage may lie in one pack.
    """

    total: int = 0
    live: int = 0
    """Needed by a kept backup."""
    trash: int = 0
    """Needed by nothing but backups in the trash."""
    garbage: int = 0
    """Needed by nothing: what a prune frees, or would have to rewrite a pack for that is still well used."""
    entombed: int = 0
    """In packs that were dropped and wait for their deletion."""
    locked: int = 0
    """Of these, what the store will not let go before `locked_until`."""
    packs: int = 0
    locked_packs: int = 0
    locked_until: datetime.datetime | None = None
    """When the last of the locked packs can be deleted, as far as the store says; UTC."""

    def __add__(self, other: "Space") -> "Space":
        until = max((at for at in (self.locked_until, other.locked_until) if at is not None), default=None)
        sums = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name != "locked_until"
        }
        return Space(**sums, locked_until=until)


NO_SPACE = Space()
