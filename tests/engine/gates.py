"""A store that lets something else happen between two operations of a writer."""

from collections.abc import Callable
from typing import Any

from engine.ports import Store

BEFORE_REWRITE = -1
"""The operation that writes the index of the next generation: behind the tombstone, and behind every check."""


class Gate:
    """Any store; does something just before its `at`-th operation, and counts them."""

    kind = "gate"

    _entombed = False

    def __init__(self, inner: Store, at: int = 0, meanwhile: Callable[[], object] = lambda: None) -> None:
        self._inner, self._at, self._meanwhile, self.count = inner, at, meanwhile, 0
        self.rewrite_at = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._inner, name)

        def counted(key: str, *arguments: Any) -> Any:
            self.count += 1
            entombed, rewrites = self._entombed, False
            if name == "create" and "/tombstones/" in key:
                self._entombed = True
            if entombed and name == "put" and "/index/" in key and not self.rewrite_at:
                self.rewrite_at, rewrites = self.count, True
            if self.count == self._at or (rewrites and self._at == BEFORE_REWRITE):
                self._meanwhile()
            return real(key, *arguments)

        return counted
