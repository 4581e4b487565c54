"""A model of what a power cut leaves: which bytes and which names have reached the disk.

Written bytes are durable after an fsync of their file, names (link, rename, mkdir) after an fsync of
their folder. The model watches the real calls of one module and keeps what is still in danger.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest


class Disk:
    """Watches os.*; `in_danger()` is what a power cut now could lose."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes_in_danger: set[int] = set()
        self.names_in_danger: dict[int, set[str]] = {}
        self.removals_in_danger: dict[int, set[str]] = {}
        self._patch = monkeypatch
        for name in ("writev", "write", "fsync", "link", "rename", "replace", "mkdir", "unlink"):
            self._watch(name)

    def in_danger(self, *, ignore: str = "") -> list[str]:
        """Paths whose bytes or names are not durable, leaving out those below `ignore`."""
        names = [path for paths in self.names_in_danger.values() for path in paths if os.path.lexists(path)]
        kept = [path for path in names if not (ignore and path.startswith(ignore))]
        return kept + [f"inode {inode}" for inode in self.bytes_in_danger]

    def _watch(self, name: str) -> None:
        real: Callable[..., Any] = getattr(os, name)

        def watched(*args: Any, **options: Any) -> Any:
            getattr(self, f"_before_{name}", lambda *_: None)(*args)
            result = real(*args, **options)
            getattr(self, f"_after_{name}", lambda *_: None)(*args)
            return result

        self._patch.setattr(os, name, watched)

    def _after_writev(self, fd: int, *_: Any) -> None:
        self.bytes_in_danger.add(os.fstat(fd).st_ino)

    _after_write = _after_writev

    def _after_fsync(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        self.bytes_in_danger.discard(inode)
        self.names_in_danger.pop(inode, None)
        self.removals_in_danger.pop(inode, None)

    def _after_unlink(self, path: str) -> None:
        self.removals_in_danger.setdefault(os.stat(os.path.dirname(path)).st_ino, set()).add(path)

    def _before_link(self, source: str, target: str) -> None:
        inode = os.stat(source).st_ino
        assert inode not in self.bytes_in_danger, f"{target} was named before its bytes were durable"

    _before_rename = _before_link
    _before_replace = _before_link

    def _after_link(self, source: str, target: str) -> None:
        self._after_mkdir(target)

    _after_rename = _after_link
    _after_replace = _after_link

    def _after_mkdir(self, path: str, *_: Any) -> None:
        self.names_in_danger.setdefault(os.stat(os.path.dirname(path)).st_ino, set()).add(path)
