"""Back up one table: decide how it is compared with the parent's, and describe it for the manifest."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

from engine.ports import TablePart
from engine.progress import Progress
from engine.table_compare import (
    REREAD_ROWS_MIN,
    REREAD_SHARE_MAX,
    Feed,
    RowFeed,
    TableUpdate,
    TooManyChanges,
    VersionFeed,
)
from engine.table_runs import ChunkSource, SpanRef, columns_to_json, key_to_json, spans_of
from engine.table_spans import StoredSpan, ahead
from engine.table_write import Assembly, BaseWriter, TableSession

SPANS_AHEAD = 2
FORMAT = 1


def backup_table(
    session: TableSession,
    part: TablePart,
    *,
    parent: dict[str, Any] | None,
    reader: ChunkSource,
    full: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Store what the parent does not hold of the table; return its node for the manifest.

    Versions alone are compared when the parent's fingerprint and version domain are today's and `full` is
    not asked for; contents otherwise. A parent with other columns or another key only serves
    deduplication. Raises SourceError, DamageError (the parent cannot be read), StoreError.
    """
    assert len(part.key.kinds) > 0, "a table without key columns needs a synthetic one"
    if parent is not None and not _comparable(part, parent):
        parent = {**parent, "lists": []}
    alike = parent is not None and parent["fingerprint"] == part.fingerprint and _domain_equal(part, parent)
    if parent is not None and not _domain_equal(part, parent):
        parent = {**parent, "lists": []}  # Every version differs: comparing would find each row changed.
    run = partial(_run, session, part, parent, reader, progress)
    if alike and part.version_domain and not full:
        assert parent is not None
        try:
            fetch_rows_max = max(REREAD_ROWS_MIN, int(parent["rows"]) // REREAD_SHARE_MAX)
            return run(VersionFeed(part), fetch_rows_max=fetch_rows_max, count_missed=False)
        except TooManyChanges:
            progress.check()
    return run(RowFeed(part), fetch_rows_max=None, count_missed=full and alike and bool(part.version_domain))


def _comparable(part: TablePart, parent: dict[str, Any]) -> bool:
    return (
        parent.get("format") == FORMAT
        and parent["columns"] == columns_to_json(part.columns)
        and parent["key"] == key_to_json(part.key)
    )


def _domain_equal(part: TablePart, parent: dict[str, Any]) -> bool:
    return bool(parent["version_domain"] == part.version_domain)


def _run(
    session: TableSession,
    part: TablePart,
    parent: dict[str, Any] | None,
    reader: ChunkSource,
    progress: Progress,
    feed: Feed,
    *,
    fetch_rows_max: int | None,
    count_missed: bool,
) -> dict[str, Any]:
    assembly = Assembly(session)
    bits = parent.get("block_bits") if parent else None
    writer = BaseWriter(assembly, part.key, bits=bits)
    update = TableUpdate(
        part, feed, assembly, writer,
        reader=reader, progress=progress, count_missed=count_missed, fetch_rows_max=fetch_rows_max,
    )  # fmt: skip
    with ThreadPoolExecutor(1, thread_name_prefix="span") as pool:
        refs: Iterator[SpanRef | None] = spans_of(reader, parent) if parent and parent["lists"] else iter([None])
        previous: StoredSpan | None = None
        for old in ahead(pool, refs, partial(StoredSpan, reader, part.key), SPANS_AHEAD):
            if previous is not None:
                update.span(previous, final=False)
            previous = old
        assert previous is not None
        update.span(previous, final=True)
    lists, digest = assembly.finish()
    return _node(part, assembly, lists, digest, writer.bits, update.missed if count_missed else 0)


def _node(
    part: TablePart, assembly: Assembly, lists: list[list[str]], digest: str, bits: int | None, missed: int
) -> dict[str, Any]:
    totals = asdict(assembly.totals)
    rows, size = totals.pop("rows"), totals.pop("bytes")
    module = {"name": part.module, "rows": rows, "bytes": size, "sha256": digest, "tables": [part.name]}
    return {
        "name": part.name,
        "format": FORMAT,
        "module": part.module,
        "columns": columns_to_json(part.columns),
        "key": key_to_json(part.key),
        "fingerprint": part.fingerprint,
        "version_domain": part.version_domain,
        "facts": dict(part.facts),
        "rows": rows,
        "bytes": size,
        "sha256": digest,
        "missed": missed,
        "modules": [module],
        "runs": totals,
        "block_bits": bits,
        "lists": lists,
    }
