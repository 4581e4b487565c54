"""Whether a file system has the room that a restore will need."""

import os
from dataclasses import dataclass

from engine.tree_format import show_path
from engine.tree_tally import Comparison


@dataclass(frozen=True, slots=True)
class Room:
    """What is free at a place for this process; `entries` is None where the file system does not count them."""

    place: bytes
    bytes: int
    entries: int | None

    def lack(self, comparison: Comparison) -> str:
        """What is missing, for people; "" when there is enough."""
        needed, shown = comparison.staged_bytes, show_path(self.place)
        if needed > self.bytes:
            return f"{shown} has {self.bytes} bytes free, and staging the restore there needs {needed}"
        if self.entries is not None and comparison.staged_entries > self.entries:
            return f"{shown} has room for {self.entries} more files, and the restore makes {comparison.staged_entries}"
        return ""


def room_at(place: bytes) -> Room:
    """Free room of the file system that holds, or will hold, the path. Raises OSError."""
    while not os.path.lexists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    found = os.statvfs(place)
    blocks = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return Room(place, blocks * found.f_frsize, found.f_favail if found.f_files else None)
