"""Leaves, lists and their cut: what is written reads back, what is damaged is said, the cut follows the entries."""

import random
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ObjectDamaged
from engine.repository import Repository
from engine.tree_format import (
    LEAF_ENTRIES_MAX,
    NO_SUM,
    STAT,
    Leaf,
    LeafRef,
    Part,
    Row,
    decode_list,
    decode_root,
    encode_leaf,
    encode_list,
    encode_root,
    show_path,
    sort_key,
)
from engine.tree_view import TreeView, walk_tree
from engine.tree_write import LeafCutter
from tests.engine.tree_samples import hostile_tree, save


def _row(path: bytes, *, size: int = 0, extra: dict[str, object] | None = None) -> Row:
    return Row(path, STAT.pack(stat.S_IFREG | 0o644, 1, 2, 1, size, -5, 7, 9, 11), NO_SUM, b"", extra)


def _rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    paths = {b"d%d/f%d" % (rng.randrange(50), rng.randrange(10**9)) for _ in range(count)}
    return [_row(path) for path in sorted(paths, key=sort_key)]


def _cut(pieces: list[list[Row] | LeafRef], leaves: dict[bytes, list[Row]]) -> list[bytes]:
    """First path and length of each leaf that the cutter makes of rows and references."""
    made: list[bytes] = []
    cutter = LeafCutter(
        lambda rows: made.append(rows[0].path + b" %d" % len(rows)),
        lambda ref: made.append(ref.first + b" %d" % ref.entries),
    )
    for piece in pieces:
        if isinstance(piece, LeafRef):
            cutter.add_ref(piece, lambda ref: Leaf(encode_leaf(leaves[ref.first], top_modules=True)[0]))
        else:
            cutter.add_rows(piece)
    cutter.end()
    return made


def test_leaf_reads_back() -> None:
    """Goal: encode and decode are inverse, with extras and chunk ids of several lengths."""
    rows = [
        _row(b""),
        _row(b"a", extra={"target": "eA=="})._replace(ids=b"1" * 32),
        _row(b"a/b")._replace(ids=b"2" * 96, sum=b"s" * 32),
        _row(b"a!"),
    ]
    data, ref = encode_leaf(rows, top_modules=True)
    leaf = Leaf(data)
    assert leaf.rows() == rows
    assert (ref.entries, ref.first, ref.changed_ns) == (4, b"", 7)


def test_lists_and_root_read_back() -> None:
    """Goal: the same for the two levels above leaves, with names of all bytes."""
    parts = (Part(b"\xff\n", 1, 1 << 40, b"d" * 32), Part(b".", 0, 0, b"e" * 32))
    refs = [LeafRef(b"x\xfe%d" % i, b"c" * 32, b"s" * 32, 5, 1, 4, 1 << 50, -i, parts[: i % 3]) for i in range(300)]
    assert decode_list(encode_list(refs)) == refs
    lists = [(b"", b"1" * 32, 64), (b"\xff/y", b"2" * 32, 1)]
    assert decode_root(encode_root(lists)) == lists


def test_every_truncation_is_said() -> None:
    """Goal: never a wrong listing from short bytes; each length of a leaf, a list and a root."""
    leaf, ref = encode_leaf(_rows(5), top_modules=True)
    for whole, decode in (
        (leaf, Leaf),
        (encode_list([ref]), decode_list),
        (encode_root([(b"a", b"1" * 32, 1)]), decode_root),
    ):
        for length in range(len(whole)):
            with pytest.raises(ObjectDamaged):
                decode(whole[:length])  # type: ignore[operator]
        with pytest.raises(ObjectDamaged):
            decode(whole + b"x")  # type: ignore[operator]


def test_cut_follows_the_entries_alone() -> None:
    """Goal: however rows arrive, whole, in spans or as references, the leaves are the same; 3,000 entries, some lost."""
    rows = _rows(3000)
    leaves: dict[bytes, list[Row]] = {}
    cutter = LeafCutter(lambda part: leaves.update({part[0].path: part}), lambda ref: None)
    cutter.add_rows(rows)
    cutter.end()
    assert len(leaves) > 1
    refs = {first: encode_leaf(part, top_modules=True)[1] for first, part in leaves.items()}
    assert _cut(list(refs.values()), leaves) == _cut([rows], leaves)
    # The second leaf loses its anchor: what is left of it joins the first, which comes as a reference.
    firsts = list(leaves)
    lost = [refs[firsts[0]], leaves[firsts[1]][1:], *[refs[first] for first in firsts[2:]]]
    kept = [row for row in rows if row.path != firsts[1]]
    assert _cut(lost, leaves) == _cut([kept], leaves)


def test_full_leaves_cut_the_same_way() -> None:
    """Goal: the same where no anchor ever comes and only fullness cuts; 3 full leaves, by rows and by references."""
    from engine.tree_format import begins_leaf

    plain = [row for row in _rows(30_000) if not begins_leaf(row.path)][: LEAF_ENTRIES_MAX * 3 + 10]
    leaves: dict[bytes, list[Row]] = {}
    cutter = LeafCutter(lambda part: leaves.update({part[0].path: part}), lambda ref: None)
    cutter.add_rows(plain)
    cutter.end()
    assert [len(part) for part in leaves.values()] == [LEAF_ENTRIES_MAX] * 3 + [10]
    refs = [encode_leaf(part, top_modules=True)[1] for part in leaves.values()]
    assert _cut(list(refs), leaves) == _cut([plain], leaves)
    mixed: list[list[Row] | LeafRef] = [plain[1:LEAF_ENTRIES_MAX], *refs[1:]]
    assert _cut(mixed, leaves) == _cut([plain[1:]], leaves)


@given(st.lists(st.binary(min_size=1, max_size=6).filter(lambda b: b"\0" not in b), max_size=30))
def test_shown_paths_differ(names: list[bytes]) -> None:
    """Goal: two paths never look the same in a manifest, and each is valid Unicode; random bytes."""
    shown = {show_path(name) for name in names}
    assert len(shown) == len(set(names))
    for text in shown:
        text.encode("utf-8")


def test_walk_reaches_every_chunk(repository: Repository, tmp_path: Path) -> None:
    """Goal: what prune keeps is what a restore reads; note every chunk read while restoring, compare with the walk."""
    saved = save(repository, hostile_tree(tmp_path / "tree"))
    walked: dict[bytes, bool] = {}

    def visit(chunk_id: bytes, is_meta: bool) -> bool:
        new = chunk_id not in walked
        walked[chunk_id] = is_meta
        return new

    walk_tree(saved.reader, saved.node, visit)
    read: set[bytes] = set()
    get = saved.reader.get

    def noted(chunk_id: bytes) -> bytes:
        read.add(chunk_id)
        return get(chunk_id)

    saved.reader.get = noted  # type: ignore[method-assign]
    fresh = TreeView(saved.reader, saved.node)
    for entry in fresh.entries():
        fresh.xattrs(entry)
        for _ in fresh.pieces(entry) if entry.is_file else ():
            pass
    assert read == set(walked)
    assert {True, False} == set(walked.values())
    walk_tree(saved.reader, saved.node, lambda chunk_id, is_meta: False)


def test_lists_of_a_large_tree(repository: Repository) -> None:
    """Goal: a tree of many leaves is found and walked through several lists; 40,000 made-up rows."""
    from engine.tree_write import TreeWriter

    rows = _rows(40_000, seed=3)
    session = repository.sealed.session()
    writer = TreeWriter(session.meta, top_modules=True)
    writer.cutter.add_rows([_row(b""), *rows])
    node = {**writer.finish(), "name": "files", "facts": {}}
    session.finish()
    view = TreeView(repository.sealed.reader(), node)
    assert [row.path for row in view.rows()][1:] == [row.path for row in rows]
    assert [row.path for row in view.rows(backwards=True)][:-1] == [row.path for row in reversed(rows)]
    for row in rows[::4000]:
        found = view.find(row.path)
        assert found is not None
        assert found.path == row.path
    assert view.find(b"d1/none") is None
    wanted = [row.path for row in rows if row.path.startswith(b"d7/")]
    assert [entry.path for entry in view.below(b"d7")] == wanted
