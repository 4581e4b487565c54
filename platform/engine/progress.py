"""How long work tells its caller where it stands, and learns that it should stop."""

from typing import Protocol


class Progress(Protocol):
    """Implementations are thread-safe and cheap: the engine calls `advance` per batch, not per item."""

    def phase(self, name: str) -> None:
        """Begin a named phase; counters start again at zero."""

    def total(self, *, bytes: int | None = None, items: int | None = None) -> None:
        """Say how much this phase will take; None leaves it unknown."""

    def advance(self, *, bytes: int = 0, items: int = 0) -> None:
        """Count work done since the last call; plain bytes read or written, not stored bytes."""

    def warn(self, code: str, message: str) -> None:
        """Keep something the operator must read; the work goes on and ends as *warned*."""

    def check(self) -> None:
        """Raise CancelledError when the operator asked to stop, SessionFenced when the lease is lost."""


class NullProgress:
    """Counts nothing; keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[tuple[str, str]] = []

    def phase(self, name: str) -> None:
        pass

    def total(self, *, bytes: int | None = None, items: int | None = None) -> None:
        pass

    def advance(self, *, bytes: int = 0, items: int = 0) -> None:
        pass

    def warn(self, code: str, message: str) -> None:
        self.warnings.append((code, message))

    def check(self) -> None:
        pass
