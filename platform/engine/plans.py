"""What a restore would do, said before it does it: modes, policies, previews, and the digest that binds them.

Pure values without a connector's knowledge; `engine.ports` uses them in its protocols.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from engine.ports import FileChange, TableChange

RestoreMode = Literal["full", "selective", "merge"]
MODES: tuple[RestoreMode, ...] = ("full", "selective", "merge")

Policy = Literal["only_missing", "newest_wins", "take_backup"]
"""How a merge decides about what both sides hold differently, module by module.

Without a base: `only_missing` changes nothing that exists, `newest_wins` takes the row whose clock column is
later (the tenant's when they are equal or cannot be compared), `take_backup` the backup's. Rows that only the tenant has stay.

With a base (three-way) what one side alone has changed, added or deleted is that side's. Where both
did different things (a conflict, always listed): `only_missing` leaves what exists, and a row that the tenant deleted
and the backup's side changed comes back; `newest_wins` compares clocks, and a deletion, which has none, loses; `take_backup` does
what the backup's side did, deletions too.
"""
POLICIES: tuple[Policy, ...] = ("only_missing", "newest_wins", "take_backup")

CLOCK_COLUMNS = (
    "updated_at",
    "modified_at",
    "changed_at",
    "last_modified",
    "updated",
    "modified",
    "mtime",
    "updated_on",
)
"""Names by which `newest_wins` finds a clock column of a date or time type, the first that a table has."""
BIRTH_COLUMNS = ("created_at", "created", "inserted_at", "created_on", "date_created", "inserted")
"""Names of columns that never change while a row is the same row: when they differ, a key was given out anew."""

SAMPLES_MAX = 20
"""Rows shown per table, the more telling first: conflicts, collisions, deletions, updates, insertions."""
SAMPLE_VALUE_CHARACTERS = 200

SampleChange = Literal["insert", "update", "delete", "kept", "conflict", "collision", "withheld", "stays"]


@dataclass(frozen=True, slots=True)
class RowSample:
    """One row that differs. Values are text as the source prints it, cut to SAMPLE_VALUE_CHARACTERS, None for null."""

    change: SampleChange
    key: Mapping[str, str | None]
    before: Mapping[str, str | None] | None
    """As the target has it; None where it has no such row."""
    after: Mapping[str, str | None] | None
    """As the backup has it."""
    fields: tuple[str, ...] = ()
    """Columns in which the two differ."""
    because: str = ""


@dataclass(frozen=True, slots=True)
class PathSample:
    """One file, link or device that differs; sizes in bytes, times in RFC 3339, None where it does not exist."""

    change: SampleChange
    path: str
    size_before: int | None = None
    size_after: int | None = None
    modified_before: str | None = None
    modified_after: str | None = None
    because: str = ""


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference between the schema then and now, and what the restore does about it."""

    where: str
    """Table, or table and column, as shown to people."""
    was: str | None
    now: str | None
    action: str


@dataclass(frozen=True, slots=True)
class Dependency:
    """Rows beyond the chosen modules that a restore must bring along, or rows that it must leave where they are.

    `along`: rows of `table` come back because restored rows refer to them; `stays`: rows of `table` stay because
    `other` refers to them; `withheld`: rows of `table` do not come back because what they refer to in `other` does not.
    """

    kind: Literal["along", "stays", "withheld"]
    table: str
    other: str
    rows: int
    module: str = ""
    """The module to add to the selection, so that nothing would have to be left out; "" when none helps."""

    @property
    def sentence(self) -> str:
        """For people."""
        one = self.rows == 1
        rows = f"{self.rows} row{'' if one else 's'} of {self.table}"
        if self.kind == "along":
            return f"{rows} {'comes' if one else 'come'} along, because restored rows of {self.other} refer to {'it' if one else 'them'}"
        if self.kind == "stays":
            return (
                f"{rows} {'stays' if one else 'stay'}, because rows of {self.other} refer to {'it' if one else 'them'}"
            )
        what = f"what {'it refers' if one else 'they refer'} to in {self.other} does not come back"
        return f"{rows} {'is' if one else 'are'} withheld, because {what}"


@dataclass(frozen=True, slots=True)
class Preview:
    """What a restore of one source would do.

    `tables` and `files` carry the counts that a restore's report would carry. `digest` is ChangeDigest over every change;
    `staged_bytes` is the room that staging takes at the target, besides what the changes themselves need.
    """

    digest: str
    tables: "tuple[TableChange, ...]" = ()
    files: "FileChange | None" = None
    samples: Mapping[str, tuple[RowSample, ...]] = field(default_factory=dict)
    """By table."""
    paths: tuple[PathSample, ...] = ()
    drift: tuple[Drift, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    warnings: tuple[str, ...] = ()
    staged_bytes: int = 0
    facts: Mapping[str, object] = field(default_factory=dict)
    """JSON of the kind's own: clock columns in use, segments of a log …"""


class ChangeDigest:
    """SHA-256 over a change set, taken at the preview and again inside the applying transaction.

    Tables (or one section for files) come in the manifest's order, changes in an order that the connector keeps
    the same on every run against the same data. Each is a line `change TAB before TAB after` in which before and after are
    row text (or a path's record) without newlines and with escaped tabs, or empty. What a row becomes may be told by its key
    instead, where the section's columns end with the digest of a stored table that holds it.
    """

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256(b"lastro change set v1\n")

    def section(self, name: str, columns: Sequence[str] = ()) -> None:
        """Begin a table."""
        text = "\0".join((name, *columns)).encode("utf-8", "surrogateescape")
        self._sha256.update(b"@%d:%s\n" % (len(text), text))

    def lines(self, lines: Iterable[bytes]) -> None:
        """Change lines without newlines."""
        block = b"\n".join(lines)
        if block:
            self._sha256.update(block + b"\n")

    def hexdigest(self) -> str:
        """Give the digest so far, as 64 hex digits."""
        return self._sha256.hexdigest()
