"""Change images: what a restore keeps for its undo comes back exactly, or with a typed error."""

import pytest

from engine import images
from engine.errors import ObjectDamaged, ObjectMissing, UsageError
from engine.images import ImageReader, ImageWriter, image_drop, images_list
from engine.repository import Repository


def _write(repository: Repository, name: str, *, rows: int = 3) -> list[tuple[dict[str, object], list[bytes]]]:
    sections: list[tuple[dict[str, object], list[bytes]]] = [
        ({"name": "a", "rows": "before", "columns": ["id", "note"]}, [b"%d\t@not a header" % n for n in range(rows)]),
        ({"name": "empty", "rows": "before", "columns": []}, []),
        ({"name": "a", "rows": "after", "columns": ["id", "note"]}, [b"", b"=x", b"\xff\xfe"]),
    ]
    writer = ImageWriter(repository, name)
    for header, lines in sections:
        writer.table(header)
        writer.rows(lines[:1])
        writer.rows(lines[1:])
    writer.close()
    return sections


def _read(repository: Repository, name: str) -> list[tuple[dict[str, object], list[bytes]]]:
    found = ImageReader(repository, name).sections()
    return [(dict(header), [row for batch in rows for row in batch]) for header, rows in found]


def test_sections_come_back_exactly(repository: Repository) -> None:
    """Goal: what is written is what is read; rows that look like headers, empty sections, odd bytes."""
    written = _write(repository, "rst_1-db-aa")
    assert _read(repository, "rst_1-db-aa") == written


def test_many_segments_and_unread_rows(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: an image of any length is read piece by piece; make segments of 100 bytes, skip rows."""
    monkeypatch.setattr(images, "SEGMENT_BYTES", 100)
    written = _write(repository, "rst_2", rows=200)
    assert _read(repository, "rst_2") == written
    assert [header["name"] for header, _ in ImageReader(repository, "rst_2").sections()] == ["a", "empty", "a"]
    assert sum(1 for _ in repository.store.list(f"{repository.prefix}images/rst_2/")) > 3


def test_damage_and_loss_are_found(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: never other rows than were written; shorten, flip, swap and drop segments and the head."""
    monkeypatch.setattr(images, "SEGMENT_BYTES", 100)
    _write(repository, "rst_3", rows=50)
    _write(repository, "rst_4", rows=50)
    first, second = (f"{repository.prefix}images/rst_3/{n:06d}" for n in (0, 1))
    kept = repository.store.get(first)
    for damaged in (kept[:-1], kept[:200] + bytes([kept[200] ^ 1]) + kept[201:], repository.store.get(second), b""):
        repository.store.put(first, [damaged])
        with pytest.raises(ObjectDamaged):
            _read(repository, "rst_3")
    repository.store.delete(first)
    with pytest.raises(ObjectDamaged, match="is gone"):
        _read(repository, "rst_3")
    repository.store.put(
        f"{repository.prefix}images/rst_3/head", [repository.store.get(f"{repository.prefix}images/rst_4/head")]
    )
    with pytest.raises(ObjectDamaged, match="another image"):
        ImageReader(repository, "rst_3")


def test_an_unfinished_image_does_not_exist_and_can_be_dropped(repository: Repository) -> None:
    """Goal: a killed writer leaves nothing that counts; leave out the close."""
    writer = ImageWriter(repository, "rst_5")
    writer.table({"name": "a"})
    for _ in range(3):  # While the third waits for its turn, the first is there.
        writer.rows([b"x" * images.SEGMENT_BYTES])
    with pytest.raises(ObjectMissing):
        ImageReader(repository, "rst_5")
    _write(repository, "rst_6")
    assert [name for name, _ in images_list(repository)] == ["rst_5", "rst_6"]
    image_drop(repository, "rst_5")
    image_drop(repository, "rst_5")
    assert [name for name, _ in images_list(repository)] == ["rst_6"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\nb", "x" * 161])
def test_names_stay_inside_their_folder(repository: Repository, name: str) -> None:
    """Goal: no name reaches another image's objects; try hostile ones."""
    with pytest.raises(UsageError):
        ImageWriter(repository, name)
