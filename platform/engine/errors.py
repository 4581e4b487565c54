"""The engine's error tree; connectors and stores raise from it too.

LastroError
├── UsageError            a setting or request that cannot be right
│   └── NameUnknown       it names what is not there: a source, a module, a table, a path
├── CancelledError        the operator asked to stop
├── SourceError           what we read from
│   ├── SourceUnreachable (retryable)
│   ├── SourceDenied
│   ├── SourceChanged     (retryable) changed under the read in a way that cannot be mended
│   └── SourceUnsupported
├── StoreError            where we keep objects
│   ├── StoreUnreachable  (retryable)
│   ├── StoreFull
│   ├── StoreDenied
│   │   └── ObjectLocked  kept from deletion until a date
│   ├── ObjectMissing
│   └── ObjectExists      a conditional create found the key taken
├── RepositoryError
│   ├── RepositoryMissing
│   ├── RepositoryNewer   written by a newer format than this reader knows
│   ├── WrongKey
│   │   └── ForeignKeyring another repository's keyring lies in the place of this one's
│   ├── SessionFenced     another session closed this session's number
│   ├── TakenOver         another installation has become the owner of the store
│   ├── RepositoryAhead   it holds backups that the catalogue knows nothing of
│   ├── ClockSkewed       the store's clock and this host's are far apart
│   └── BackupMissing
├── DamageError           stored bytes are not what was written
│   ├── ObjectDamaged
│   ├── ChunkMissing
│   └── ManifestDamaged
│       └── ManifestForged somebody with former keys signed it
└── TargetError           where a restore writes
    ├── TargetOccupied
    ├── TargetDenied
    ├── TargetFull
    ├── TargetUnreachable (retryable)
    ├── SchemaMismatch
    ├── StalePlan         what was previewed is no longer what would be done
    └── CommitUnknown     the last answer was lost, and nobody can tell yet how it ended
"""

import datetime


class LastroError(Exception):
    """An error of the world: a stable dotted `code`, a message without secrets, a hint with the next step."""

    code = "lastro.error"
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(LastroError):
    code = "usage.invalid"


class NameUnknown(UsageError):
    """The request is well-formed, but nothing has the name it gives; the hint says what there is."""

    code = "usage.unknown_name"


class CancelledError(LastroError):
    code = "operation.cancelled"


class SourceError(LastroError):
    code = "source.failed"


class SourceUnreachable(SourceError):
    code = "source.unreachable"
    retryable = True


class SourceDenied(SourceError):
    code = "source.denied"


class SourceChanged(SourceError):
    code = "source.changed"
    retryable = True


class SourceUnsupported(SourceError):
    code = "source.unsupported"


class StoreError(LastroError):
    code = "store.failed"


class StoreUnreachable(StoreError):
    code = "store.unreachable"
    retryable = True


class StoreFull(StoreError):
    code = "store.full"


class StoreDenied(StoreError):
    code = "store.denied"


class ObjectLocked(StoreDenied):
    """The store keeps the object from being deleted or replaced; `until` (UTC) says how long, None when it won't say."""

    code = "store.object_locked"

    def __init__(self, message: str, *, hint: str = "", until: datetime.datetime | None = None) -> None:
        super().__init__(message, hint=hint)
        self.until = until


class ObjectMissing(StoreError):
    code = "store.object_missing"


class ObjectExists(StoreError):
    code = "store.object_exists"


class RepositoryError(LastroError):
    code = "repository.failed"


class RepositoryMissing(RepositoryError):
    code = "repository.missing"


class RepositoryNewer(RepositoryError):
    code = "repository.newer"


class WrongKey(RepositoryError):
    code = "repository.wrong_key"


class ForeignKeyring(WrongKey):
    code = "repository.foreign_keyring"


class SessionFenced(RepositoryError):
    code = "repository.session_fenced"


class TakenOver(RepositoryError):
    code = "repository.taken_over"


class RepositoryAhead(RepositoryError):
    code = "repository.ahead"


class ClockSkewed(RepositoryError):
    """The store's clock is not ours; `seen` (UTC) is what it said at this moment."""

    code = "repository.clock_skewed"

    def __init__(self, message: str, *, hint: str = "", seen: datetime.datetime) -> None:
        super().__init__(message, hint=hint)
        self.seen = seen


class BackupMissing(RepositoryError):
    code = "repository.backup_missing"


class BackupKept(RepositoryError):
    """What was taken for lost is there."""

    code = "repository.backup_kept"


class DamageError(LastroError):
    code = "damage.found"


class ObjectDamaged(DamageError):
    code = "damage.object"


class ChunkMissing(DamageError):
    code = "damage.chunk_missing"


class ManifestDamaged(DamageError):
    code = "damage.manifest"


class ManifestForged(ManifestDamaged):
    """Signed by a former key, in a place where that signs nothing: no backup, and never one."""

    code = "damage.manifest_forged"


class TargetError(LastroError):
    code = "target.failed"


class TargetOccupied(TargetError):
    code = "target.occupied"


class TargetDenied(TargetError):
    code = "target.denied"


class TargetFull(TargetError):
    code = "target.full"


class TargetUnreachable(TargetError):
    code = "target.unreachable"
    retryable = True


class SchemaMismatch(TargetError):
    code = "target.schema_mismatch"


class StalePlan(TargetError):
    code = "plan.stale"


class CommitUnknown(TargetError):
    code = "target.commit_unknown"
