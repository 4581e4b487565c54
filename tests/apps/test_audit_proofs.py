"""Checkpoints, proofs and witnesses of the audit log, and what they find after an attack."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from audit import merkle
from audit.canonical import canonical, entry_fields
from audit.checkpoints import (
    NoteDamaged,
    checkpoint_get,
    checkpoint_if_due,
    checkpoint_make,
    note_check,
    note_read,
    verifier_key,
)
from audit.export import export
from audit.models import Checkpoint, CheckpointKey, Delivery, Entry, Head, Tile
from audit.proofs import consistency_prove, inclusion_prove, tiles_fill
from audit.rows import tip_locked
from audit.selectors import Filter, entries
from audit.services import Event, head_get, record, record_many, tip_context
from audit.verification import audit_verify
from audit.witness import witnesses_send
from core import clock
from tenants.models import StoreConfig
from tenants.services.stores import store_add

VERIFIER = Path(__file__).resolve().parents[2] / "docs" / "formats" / "audit_verify.py"


def _fill(count: int, *, begin: int = 0) -> None:
    record_many(
        Event("test.done", f"done {n}", "ana", "aurora", data={"number": n, "text": "ü\n"})
        for n in range(begin, begin + count)
    )


@pytest.mark.django_db
def test_many_at_once_are_as_one_after_the_other() -> None:
    """Goal: a batch is no other log; record both ways, compare the tree with the entries."""
    _fill(3)
    record("test.done", message="alone", actor="ana")
    _fill(430, begin=3)
    verdict = audit_verify()
    assert (verdict.size, verdict.findings) == (434, [])
    assert Entry.objects.get(sequence=433).root_hash == head_get().root_hash  # type: ignore[union-attr]


@pytest.mark.django_db
def test_whatever_a_caller_says_can_be_kept() -> None:
    """Goal: no text of a file system, no number and no size stops a deed; record the worst and verify."""
    bad: dict[str, Any] = {
        "half": "a\udcffb", "nul": "a\0b", "fraction": 1.5, "large": 1 << 60, "long": "x" * 100_000, "many": list(range(999)),
        "deep": [[[[[[[[[[[["x"]]]]]]]]]]]], "ключ": "ü", "when": clock.now(), "whole": 2.0, "none": None,
    }  # fmt: skip
    entry = record("test.bad", message="m\0\udcff" * 9_000, actor="a" * 999, data=bad)
    assert record("test.huge", message="m", actor="a", data={str(n): "x" * 900 for n in range(99)}).data["left_out"]
    assert len(entry.message) <= 4_000
    assert entry.data["whole"] == 2
    assert (audit_verify().size, audit_verify().findings) == (2, [])


# ---------------------------------------------------------------- checkpoints


@pytest.mark.django_db
def test_checkpoints_are_made_after_so_many_entries_and_so_long(settings: Any) -> None:
    """Goal: what can be cut off unseen is bounded by number and time; record, let time pass, count checkpoints."""
    settings.LASTRO_AUDIT_CHECKPOINT_ENTRIES = 10
    for _ in range(25):
        record("test.done", message="m", actor="ana")
    assert [row.size for row in Checkpoint.objects.order_by("size")] == [10, 20]
    with clock.held(clock.now()) as advance:
        assert checkpoint_if_due() is None
        advance(clock.datetime.timedelta(minutes=61))
        made = checkpoint_if_due()
        assert made is not None
        assert made.size == 25
        assert checkpoint_make().pk == made.pk
        advance(clock.datetime.timedelta(days=1))
        assert checkpoint_if_due() is None
    assert audit_verify().checkpoints == 3


@pytest.mark.django_db
def test_a_note_is_what_others_can_check() -> None:
    """Goal: C2SP's form and nothing looser; read a note, alter each line of it, try another key."""
    _fill(5)
    row = checkpoint_make()
    note, public = note_read(row.note), bytes.fromhex(row.key.public)
    note_check(note, public)
    assert (note.size, note.root_hash) == (5, head_get().root_hash)  # type: ignore[union-attr]
    assert verifier_key(row.log_id, row.key.public).startswith(f"lastro.audit/{row.log_id}+")
    for old, new in (("\n5\n", "\n6\n"), ("time 2", "time 3"), (row.log_id, "0" * 16)):
        with pytest.raises(NoteDamaged):
            note_check(note_read(row.note.replace(old, new)), public)
    with pytest.raises(NoteDamaged):
        note_check(note, bytes(32))
    for rubbish in ("", "x", row.note[:40], row.note * 90, row.note.replace("—", "-")):
        with pytest.raises(NoteDamaged):
            note_read(rubbish)


# ---------------------------------------------------------------- proofs


@pytest.mark.django_db
def test_proofs_hold_and_stay_small(rng: random.Random) -> None:
    """Goal: any entry is shown to be in any later log, any checkpoint to be the beginning of another; check by the RFC."""
    _fill(1_300)
    leaves = [bytes.fromhex(each) for each in Entry.objects.order_by("sequence").values_list("leaf_hash", flat=True)]
    assert tiles_fill() == 5
    for _ in range(60):
        size = rng.randrange(1, 1_301)
        entry = Entry.objects.get(sequence=rng.randrange(size))
        proof = inclusion_prove(entry, size=size)
        root = bytes.fromhex(Entry.objects.get(sequence=size - 1).root_hash)
        assert merkle.inclusion_root(entry.sequence, size, leaves[entry.sequence], proof.path) == root
        assert len(json.dumps(proof.output())) <= 1_024
        old = rng.randrange(1, size + 1)
        shown = consistency_prove(old, size)
        before = bytes.fromhex(Entry.objects.get(sequence=old - 1).root_hash)
        assert merkle.consistent(old, size, before, root, shown.path)
        wrong = [bytes(32), *shown.path[1:]]
        assert old == size or not merkle.consistent(old, size, before, root, wrong)


def test_a_proof_among_a_million_is_a_kilobyte() -> None:
    """Goal: the bound holds where it matters; count the hashes of the longest path, as they are given out."""
    path = merkle.inclusion_path(0, 1 << 20, lambda begin, end: bytes(32))
    from audit.proofs import Inclusion

    assert len(path) == 20
    assert len(json.dumps(Inclusion("0" * 16, (1 << 20) - 1, 1 << 20, tuple(path)).output())) <= 1_024


@pytest.mark.django_db
def test_a_proof_of_what_was_altered_is_refused_and_heals() -> None:
    """Goal: no proof that proves nothing; spoil a leaf's hash, then only a tile, and ask."""
    from audit.proofs import ProofImpossible

    _fill(600)
    tiles_fill()
    Tile.objects.filter(index=1).update(hash="00" * 32)
    with pytest.raises(ProofImpossible):
        inclusion_prove(Entry.objects.get(sequence=3), size=600)
    assert inclusion_prove(Entry.objects.get(sequence=3), size=600).path  # Tiles are made anew.
    Entry.objects.filter(sequence=3).update(message="x")
    with pytest.raises(ProofImpossible):
        inclusion_prove(Entry.objects.get(sequence=3), size=600)


# ---------------------------------------------------------------- attacks, with and without a witness


def _witness(settings: Any, tmp_path: Path) -> Path:
    store_add("wit", kind="local", values={"path": str(tmp_path / "wit")}, actor="test")
    settings.LASTRO_AUDIT_WITNESS = ("store:wit",)
    return tmp_path / "wit"


@pytest.mark.django_db
def test_a_witness_receives_every_checkpoint(settings: Any, tmp_path: Path) -> None:
    """Goal: nobody needs to trust the catalogue; send, look at the objects, fail, catch up."""
    folder = _witness(settings, tmp_path)
    for _ in range(3):
        _fill(4)
        checkpoint_make()
    (sent,) = witnesses_send()
    assert (sent.sent, sent.error) == (3, "")
    notes = sorted(path.read_text() for path in (folder / "audit-log").rglob("*") if path.is_file())
    assert notes == sorted(Checkpoint.objects.values_list("note", flat=True))
    assert audit_verify().witnesses == {"store:wit": 3}
    StoreConfig.objects.filter(name="wit").update(config={"path": str(tmp_path / "gone")})
    _fill(1)
    checkpoint_make()
    (failed,) = witnesses_send(urgent=True)
    assert failed.error
    assert Delivery.objects.get(pk="store:wit").not_before is not None
    assert Entry.objects.filter(type="audit.witness_failed").count() == 1
    assert audit_verify().warnings
    StoreConfig.objects.filter(name="wit").update(config={"path": str(folder)})
    (again,) = witnesses_send(urgent=True)
    assert (again.error, again.sent) == ("", 1)


def _everything() -> dict[Any, list[Any]]:
    return {
        model: list(model._base_manager.all()) for model in (Delivery, Checkpoint, CheckpointKey, Entry, Head, Tile)
    }


def _put_back(kept: dict[Any, list[Any]]) -> None:
    for model in kept:
        model._base_manager.all().delete()
    for model in reversed(list(kept)):
        model._base_manager.bulk_create(kept[model])


@pytest.mark.django_db
def test_a_catalogue_that_was_put_back_is_found_by_its_witness(settings: Any, tmp_path: Path) -> None:
    """Goal: the one thing that no database can see in itself; put all of it back, go on recording, verify."""
    _witness(settings, tmp_path)
    _fill(9)
    checkpoint_make()
    witnesses_send()
    kept = _everything()
    _fill(9, begin=9)
    checkpoint_make()
    witnesses_send()
    _put_back(kept)
    assert any("cut off or put back" in finding for finding in audit_verify().findings)
    _fill(30, begin=50)
    checkpoint_make()
    assert any("witness store:wit has another root" in finding for finding in audit_verify().findings)
    (sent,) = witnesses_send(urgent=True)
    assert not sent.error  # The witness takes what it has not; what it had is what tells.
    assert not audit_verify().intact
    assert audit_verify(witnessed=False).intact


@pytest.mark.django_db
def test_a_fork_of_the_same_size_is_told_by_the_witness(settings: Any, tmp_path: Path) -> None:
    """Goal: two logs of one length cannot both be believed; put back, record as many others, send."""
    _witness(settings, tmp_path)
    _fill(9)
    kept = _everything()
    _fill(1, begin=9)
    checkpoint_make()
    witnesses_send()
    _put_back(kept)
    _fill(1, begin=77)
    checkpoint_make()
    (sent,) = witnesses_send(urgent=True)
    assert "another log" in sent.error
    assert Entry.objects.filter(type="audit.witness_failed", level="error").exists()


def _sql(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _rebuilt(altered: Callable[[Entry], None], *, drop: int | None = None) -> None:
    """Make all hashes of the entries and the head fit after an alteration: what a writer of the database can do."""
    peaks, size = list[bytes](), 0
    for entry in list(Entry.objects.order_by("sequence")):
        if entry.sequence == drop:
            entry.delete()
            continue
        altered(entry)
        Entry.objects.filter(pk=entry.pk).update(sequence=-1 - size)
        entry.sequence = size
        leaf = merkle.leaf_hash(canonical(entry_fields(entry)))
        peaks = merkle.append(peaks, size, leaf)
        size += 1
        entry.leaf_hash, entry.root_hash = leaf.hex(), merkle.root(peaks).hex()
        entry.save()
    Head.objects.update(size=size, root_hash=merkle.root(peaks).hex(), peaks=[peak.hex() for peak in peaks])


def _resealed() -> None:
    """With the root key, too: only what was signed or kept elsewhere is left to tell."""
    tip = tip_locked()
    assert tip.root_key is not None
    Head.objects.update(seal=tip.root_key.seal(b"", tip_context(tip)))


def _resigned() -> None:
    """Make another key and sign every checkpoint with it, as its row says."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    forged = CheckpointKey.objects.create(public=private.public_key().public_bytes_raw().hex(), sealed=b"x" * 100)
    import base64

    from audit.checkpoints import ORIGIN, key_hash

    for row in Checkpoint.objects.all():
        text = note_read(row.note).text
        name = f"{ORIGIN}/{row.log_id}"
        blob = key_hash(name, bytes.fromhex(forged.public)) + private.sign(text.encode())
        note = f"{text}\n— {name} {base64.b64encode(blob).decode()}\n"
        Checkpoint.objects.filter(pk=row.pk).update(note=note, key=forged)


ATTACKS: dict[str, Callable[[random.Random, int], None]] = {
    "change": lambda rng, n: _sql(f"UPDATE audit_entry SET message = 'x' WHERE sequence = {rng.randrange(n)}"),
    "origin": lambda rng, n: _sql(f"UPDATE audit_entry SET origin = '{{}}' WHERE sequence = {rng.randrange(n)}"),
    "microseconds": lambda rng, n: _sql(
        "UPDATE audit_entry SET timestamp = '2026-01-01 00:00:00.000001' WHERE sequence = 0"
    ),
    "other JSON": lambda rng, n: _sql("UPDATE audit_entry SET data = '\"{\"' WHERE sequence = 1"),
    "delete": lambda rng, n: _sql(f"DELETE FROM audit_entry WHERE sequence = {rng.randrange(n)}"),
    "delete a stretch": lambda rng, n: _sql(f"DELETE FROM audit_entry WHERE sequence >= {rng.randrange(n - 2)}"),
    "reorder": lambda rng, n: _sql(
        "UPDATE audit_entry SET sequence = -1 WHERE sequence = 3", "UPDATE audit_entry SET sequence = 3 WHERE sequence = 5",
        "UPDATE audit_entry SET sequence = 5 WHERE sequence = -1",
    ),
    "truncate": lambda rng, n: _sql(f"DELETE FROM audit_entry WHERE sequence = {n - 1}"),
    "duplicate at the end": lambda rng, n: Entry(
        sequence=n, timestamp=clock.now(), type="x", message="x", leaf_hash="0" * 64, root_hash="0" * 64
    ).save(),
    "head back": lambda rng, n: (Head.objects.update(size=n - 1), None)[1],
    "head's seal of another time": lambda rng, n: (Head.objects.update(seal=b"x" * 90), None)[1],
    "head says less is kept": lambda rng, n: (
        Entry.objects.filter(sequence__lt=4).delete(), Head.objects.update(first=4, frontier=["00" * 32]), None
    )[2],
    "peaks": lambda rng, n: (Head.objects.update(peaks=["00" * 32]), None)[1],
    "forge all hashes": lambda rng, n: _rebuilt(lambda entry: setattr(entry, "message", "x")),
    "forge, sealed with the root key": lambda rng, n: (_rebuilt(lambda e: setattr(e, "message", "x")), _resealed())[1],
    "cut one out, sealed with the root key": lambda rng, n: (_rebuilt(lambda e: None, drop=2), _resealed())[1],
    "cut the head's checkpoint": lambda rng, n: (Checkpoint.objects.all().delete(), None)[1],
    "re-sign": lambda rng, n: _resigned(),
    "a checkpoint's root": lambda rng, n: (Checkpoint.objects.update(root_hash="0" * 64), None)[1],
    "delete it all": lambda rng, n: _sql("DELETE FROM audit_entry", "DELETE FROM audit_head"),
}  # fmt: skip


@pytest.mark.django_db
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_goes_unseen(name: str, rng: random.Random) -> None:
    """Goal: change, deletion, reorder, truncation, forged heads and keys are found every time; do each, verify."""
    count = rng.randrange(8, 40)
    _fill(count)
    checkpoint_make()
    assert audit_verify().intact
    ATTACKS[name](rng, count)
    assert not audit_verify().intact, name


@pytest.mark.django_db
@pytest.mark.seeded
def test_random_attacks_are_found(rng: random.Random, rounds: Callable[[int], range]) -> None:
    """Goal: every time means every time; any column of any entry, any gap, any swap, at random."""
    columns = ("id", "type", "level", "message", "user_id", "tenant", "leaf_hash", "root_hash")
    _fill(64)
    checkpoint_make()
    kept = _everything()
    for _ in rounds(60):
        sequence = rng.randrange(64)
        column = rng.choice([*columns, "delete", "swap", "data"])
        if column == "delete":
            _sql(
                f"DELETE FROM audit_entry WHERE sequence >= {sequence} AND sequence < {sequence + rng.randrange(1, 9)}"
            )
        elif column == "swap":
            other = (sequence + rng.randrange(1, 64)) % 64
            _sql(
                f"UPDATE audit_entry SET sequence = -1 WHERE sequence = {sequence}",
                f"UPDATE audit_entry SET sequence = {sequence} WHERE sequence = {other}",
                f"UPDATE audit_entry SET sequence = {other} WHERE sequence = -1",
            )
        else:
            value = '{"a": 1}' if column == "data" else f"x{rng.randrange(9)}"
            _sql(f"UPDATE audit_entry SET {column} = '{value}' WHERE sequence = {sequence}")
        assert not audit_verify().intact, (column, sequence)
        _put_back(kept)
    assert audit_verify().intact


# ---------------------------------------------------------------- the verifier that others run


def _offline(export_file: Path, notes: Path, key: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(VERIFIER), "--key", key, str(export_file), str(notes)], capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.django_db
def test_the_verifier_of_the_format_finds_what_ours_does(tmp_path: Path, rng: random.Random) -> None:
    """Goal: nobody has to trust our code; give it an export, then altered ones."""
    for number in range(3):
        _fill(20, begin=number * 20)
        row = checkpoint_make()
    notes, whole = tmp_path / "notes", tmp_path / "whole.ndjson"
    notes.write_text("\n".join(Checkpoint.objects.order_by("size").values_list("note", flat=True)))
    whole.write_text("".join(export(entries(Filter()), format="ndjson")))
    key = verifier_key(row.log_id, row.key.public)
    code, said = _offline(whole, notes, key)
    assert (code, "whole: 60 entries from 0, 3 checkpoints met, covered up to 60" in said) == (0, True), said
    lines = whole.read_text().splitlines(keepends=True)
    at = rng.randrange(1, 58)
    altered = {
        "change": [*lines[:at], lines[at].replace("done", "gone"), *lines[at + 1 :]],
        "delete": [*lines[:at], *lines[at + 1 :]],
        "reorder": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        "truncate": lines[:-1],
        "begin": lines[1:],
        "duplicate": [*lines[:at], lines[at], *lines[at:]],
        "rubbish": [*lines[:at], "[]\n", *lines[at:]],
        "nothing": [],
    }
    for name, content in altered.items():
        file = tmp_path / "altered.ndjson"
        file.write_text("".join(content))
        code, said = _offline(file, notes, key)
        assert (name, code) == (name, 7), said
    _resigned()
    notes.write_text("\n".join(Checkpoint.objects.order_by("size").values_list("note", flat=True)))
    assert _offline(whole, notes, key)[0] == 7


@pytest.mark.django_db
def test_a_checkpoint_is_found_by_its_size() -> None:
    """Goal: a proof names a checkpoint that is there; ask for one that is and one that is not."""
    from core.errors import NotFound

    _fill(2)
    assert checkpoint_get(checkpoint_make().size).size == 2
    with pytest.raises(NotFound):
        checkpoint_get(7)
