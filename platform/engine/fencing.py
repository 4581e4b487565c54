"""What a writer asks before it changes a store: is this catalogue still the owner, and does it know what is there?

The engine asks through a Guard that the caller gives to its Repository; services make one from rows (tenants.owning).
"""

from typing import Protocol


class Guard(Protocol):
    """Stands before the writes of one repository."""

    def check(self) -> None:
        """Raise TakenOver when the store has another owner by now: one look-up by name, never a listing.

        Asked when a session begins, before a manifest is created, before backups are ended and before each batch of
        packs is deleted.
        """

    def claiming(self, domain: str, generation: int) -> None:
        """A generation of the index of this domain (`sealed`, `plain`) is about to be claimed."""

    def claimed_elsewhere(self, domain: str, generation: int) -> None:
        """That generation turned out to be taken: by somebody whom this catalogue knows nothing of, or by a lost run."""


class NoGuard:
    """For readers, tests and tools that own what they write to."""

    def check(self) -> None:
        """Always the owner."""

    def claiming(self, domain: str, generation: int) -> None:
        """Nobody keeps count."""

    def claimed_elsewhere(self, domain: str, generation: int) -> None:
        """Nobody keeps count."""
