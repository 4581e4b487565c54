"""Stores that keep versions name every key of which they keep anything, so that a shredding leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from engine.ports import VersionedStore
from tests.services.kinds import KINDS, store_made
from tests.services.seaweed import VERSIONED, seaweed


@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_what_is_kept_is_named_and_purged(kind: str, tmp_path: Path) -> None:
    """Goal: no version hides; put, replace and delete objects, ask for all that is kept, purge it, ask again."""
    values = KINDS[kind](tmp_path)
    server = seaweed()
    if kind == "s3" and server is not None:
        values = server.values(bucket=VERSIONED)
    store = store_made(kind, values)
    try:
        for name in ("a", "b", "c"):
            store.put(f"r/x/{name}", [b"one"])
        store.put("r/x/a", [b"two"])
        store.delete("r/x/b")
        keys_kept = cast(Callable[[str], Any], getattr(store, "keys_kept"))  # noqa: B009 - the port has no such method
        assert isinstance(store, VersionedStore)
        there = set(keys_kept("r/x/"))
        assert {"r/x/a", "r/x/c"} <= there <= {"r/x/a", "r/x/b", "r/x/c"}
        assert kind != "s3" or "r/x/b" in there
        for key in there:
            store.purge(key)
        assert set(keys_kept("r/x/")) == set()
        assert [info.key for info in store.list("r/x/")] == []
    finally:
        store.close()
