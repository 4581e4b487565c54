"""Say which part of the installation is missing when a store's SDK is."""

from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import UsageError


@contextmanager
def sdk_of(kind: str, *, package: str) -> Iterator[None]:
    """Import a kind's SDK in the block. Raises UsageError with the extra that brings it."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"stores of kind {kind} need the package {package}, which is not installed here ({error})",
            hint=f"pip install 'lastro[{kind}]', then run it again",
        ) from error
