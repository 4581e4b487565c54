"""Errors of the catalogue and the services, and what each error means outside the process.

LastroError (engine.errors)
└── CatalogueError
    ├── NotFound             no such tenant, backup, operation …
    ├── Conflict             the request does not fit the present state
    │   ├── StateConflict    a transition lost its race or is not allowed
    │   ├── Unreconciled     the store knows more than this catalogue; nothing is deleted
    │   ├── Busy             (retryable) another operation holds the resource
    │   └── NoWorker         (retryable) nobody is there who would do it
    ├── NotAllowed           the actor may not do this
    ├── ConfirmationNeeded   the command destroys and was not confirmed
    ├── CatalogueUnready     (retryable) the database is not migrated or not reachable
    └── InternalError        our own bug; the log has the rest under its id
"""

import enum
from dataclasses import dataclass
from typing import Any

from engine import errors as engine_errors
from engine.errors import LastroError, UsageError


class Exit(enum.IntEnum):
    """Exit codes of the command line (API of the command line, README)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    WARNED = 3
    NOT_FOUND = 4
    BUSY = 5
    CONFIRM = 6
    INTEGRITY = 7
    NOT_ALLOWED = 8
    STORE_UNREACHABLE = 9
    STALE_PLAN = 10
    INTERRUPTED = 130


class CatalogueError(LastroError):
    code = "catalogue.failed"


class NotFound(CatalogueError):
    code = "catalogue.not_found"


class Conflict(CatalogueError):
    code = "catalogue.conflict"


class StateConflict(Conflict):
    code = "catalogue.state_conflict"


class Unreconciled(Conflict):
    code = "catalogue.unreconciled"


class Busy(Conflict):
    """Another operation works on the resource; `operation` is its id."""

    code = "operation.busy"
    retryable = True

    def __init__(self, message: str, *, hint: str = "", operation: str = "") -> None:
        super().__init__(message, hint=hint)
        self.operation = operation


class NoWorker(Conflict):
    """Work was asked for that only a worker does, and none gives a sign of life."""

    code = "operation.no_worker"
    retryable = True


class NotAllowed(CatalogueError):
    code = "access.not_allowed"


class ConfirmationNeeded(CatalogueError):
    code = "access.confirmation_needed"


class CatalogueUnready(CatalogueError):
    code = "catalogue.unready"
    retryable = True


class InternalError(CatalogueError):
    """An exception nobody foresaw, under the id by which the log has it."""

    code = "internal.error"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an error is to callers: the exit code of a command, the status and title of a problem."""

    exit: Exit
    status: int
    title: str


_MEANINGS: dict[type[LastroError], Meaning] = {
    UsageError: Meaning(Exit.USAGE, 422, "Invalid request"),
    engine_errors.NameUnknown: Meaning(Exit.NOT_FOUND, 422, "Unknown name"),
    engine_errors.CancelledError: Meaning(Exit.INTERRUPTED, 409, "Cancelled"),
    engine_errors.StoreUnreachable: Meaning(Exit.STORE_UNREACHABLE, 503, "Store unreachable"),
    engine_errors.StoreDenied: Meaning(Exit.NOT_ALLOWED, 502, "The store refused"),
    engine_errors.SourceDenied: Meaning(Exit.NOT_ALLOWED, 502, "The source refused"),
    engine_errors.SourceUnreachable: Meaning(Exit.FAILED, 503, "Source unreachable"),
    engine_errors.RepositoryMissing: Meaning(Exit.NOT_FOUND, 404, "Repository not found"),
    engine_errors.BackupMissing: Meaning(Exit.NOT_FOUND, 404, "Backup not found"),
    engine_errors.SessionFenced: Meaning(Exit.BUSY, 409, "Another session took over"),
    engine_errors.TakenOver: Meaning(Exit.NOT_ALLOWED, 409, "Another installation owns the store"),
    engine_errors.WrongKey: Meaning(Exit.INTEGRITY, 409, "Wrong key"),
    engine_errors.DamageError: Meaning(Exit.INTEGRITY, 500, "Stored data is damaged"),
    engine_errors.TargetOccupied: Meaning(Exit.CONFIRM, 409, "The target is not empty"),
    engine_errors.TargetDenied: Meaning(Exit.NOT_ALLOWED, 502, "The target refused"),
    NotFound: Meaning(Exit.NOT_FOUND, 404, "Not found"),
    Conflict: Meaning(Exit.FAILED, 409, "Conflict"),
    Busy: Meaning(Exit.BUSY, 409, "Busy"),
    NoWorker: Meaning(Exit.BUSY, 503, "No worker"),
    engine_errors.StalePlan: Meaning(Exit.STALE_PLAN, 409, "The plan is out of date"),
    NotAllowed: Meaning(Exit.NOT_ALLOWED, 403, "Not allowed"),
    ConfirmationNeeded: Meaning(Exit.CONFIRM, 409, "Confirmation needed"),
    CatalogueUnready: Meaning(Exit.FAILED, 503, "Catalogue not ready"),
    InternalError: Meaning(Exit.FAILED, 500, "Internal error"),
    LastroError: Meaning(Exit.FAILED, 500, "Failed"),
}


def meaning(error: LastroError | type[LastroError]) -> Meaning:
    """Find the meaning of the error's class or its nearest ancestor's."""
    kind = error if isinstance(error, type) else type(error)
    return next(_MEANINGS[ancestor] for ancestor in kind.__mro__ if ancestor in _MEANINGS)


def problem(error: LastroError) -> dict[str, Any]:
    """Describe an error as JSON for rows, commands and (with status and title) RFC 9457 answers."""
    meant = meaning(error)
    return {
        "code": error.code,
        "detail": error.message,
        "hint": error.hint,
        "retryable": error.retryable,
        "title": meant.title,
        "status": meant.status,
        "exit": int(meant.exit),
    }
