"""The audit log: its tree, its proof, its exports."""

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator

import pytest
from django.db import DatabaseError, connection, transaction

from audit import merkle, triggers
from audit.export import CSV_COLUMNS, csv_cell, export, log_rows
from audit.models import Entry, Head
from audit.selectors import Filter, entries, entry_list
from audit.services import record
from audit.verification import audit_verify


def _root_by_the_book(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + _root_by_the_book(leaves[:k]) + _root_by_the_book(leaves[k:])).digest()


def test_the_tree_is_the_one_of_the_rfc(rng: random.Random) -> None:
    """Goal: others can check our roots; grow a tree leaf by leaf and compare with the recursive definition."""
    leaves, peaks = [], list[bytes]()
    for size in range(70):
        assert merkle.root(peaks) == _root_by_the_book(leaves)
        leaves.append(rng.randbytes(rng.randrange(40)))
        peaks = merkle.append(peaks, size, merkle.leaf_hash(leaves[-1]))


def _fill(count: int = 9) -> None:
    for number in range(count):
        record(
            "test.done", message=f"done {number}", actor="ana", tenant="aurora", data={"number": number, "text": "ü"}
        )


@pytest.mark.django_db
def test_an_untouched_log_is_intact() -> None:
    """Goal: no false alarm, from the empty log on; verify while it grows."""
    assert audit_verify().intact
    for size in (1, 2, 3):
        _fill(1)
        verdict = audit_verify()
        assert (verdict.findings, verdict.size) == ([], size)
        assert verdict.root_hash == Head.objects.get().root_hash


def _set(sql: str) -> Callable[[], None]:
    def attack() -> None:
        with connection.cursor() as cursor:
            cursor.execute(sql)

    return attack


def _forge_the_whole_tree() -> None:
    """Alter an entry and make every hash fit, head included: only the root key is missing."""
    from audit.canonical import entry_bytes

    peaks = list[bytes]()
    for entry in Entry.objects.order_by("sequence"):
        if entry.sequence == 3:
            entry.message = "never happened"
        leaf = merkle.leaf_hash(entry_bytes(entry))
        peaks = merkle.append(peaks, entry.sequence, leaf)
        entry.leaf_hash, entry.root_hash = leaf.hex(), merkle.root(peaks).hex()
        entry.save()
    Head.objects.update(root_hash=merkle.root(peaks).hex(), peaks=[peak.hex() for peak in peaks])


def _cut_the_end_with_the_head() -> None:
    """Remove the last entry and set the head back to what it was before, as far as one can without the key."""
    last = Entry.objects.get(sequence=8)
    before = Entry.objects.get(sequence=7)
    last.delete()
    Head.objects.update(size=8, root_hash=before.root_hash)


ATTACKS = {
    "message": _set("UPDATE audit_entry SET message = 'x' WHERE sequence = 3"),
    "type": _set("UPDATE audit_entry SET type = 'x' WHERE sequence = 0"),
    "data": _set("UPDATE audit_entry SET data = '{\"number\": 4}' WHERE sequence = 3"),
    "actor": _set("UPDATE audit_entry SET user_id = 'ben' WHERE sequence = 8"),
    "tenant": _set("UPDATE audit_entry SET tenant = '' WHERE sequence = 3"),
    "level": _set("UPDATE audit_entry SET level = 'error' WHERE sequence = 3"),
    "time": _set("UPDATE audit_entry SET timestamp = '2020-01-01 00:00:00+00:00' WHERE sequence = 3"),
    "id": _set("UPDATE audit_entry SET id = 'aud_x' WHERE sequence = 3"),
    "hash": _set("UPDATE audit_entry SET leaf_hash = root_hash WHERE sequence = 3"),
    "delete first": _set("DELETE FROM audit_entry WHERE sequence = 0"),
    "delete middle": _set("DELETE FROM audit_entry WHERE sequence = 4"),
    "delete last": _set("DELETE FROM audit_entry WHERE sequence = 8"),
    "delete all": _set("DELETE FROM audit_entry"),
    "delete head": _set("DELETE FROM audit_head"),
    "swap": _set("UPDATE audit_entry SET sequence = CASE sequence WHEN 3 THEN 100 ELSE 3 END WHERE sequence IN (3)"),
    "forge": _forge_the_whole_tree,
    "cut": _cut_the_end_with_the_head,
}


@pytest.mark.django_db
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_alterations_are_found(attack: Callable[[], None]) -> None:
    """Goal: nothing can be changed unseen without the root key; alter the tables in each way and verify."""
    _fill()
    attack()
    assert not audit_verify().intact


@pytest.mark.django_db
def test_an_append_does_not_heal_an_alteration() -> None:
    """Goal: going on writes no alteration away; alter an entry, record more, verify."""
    _fill()
    ATTACKS["delete middle"]()
    _fill(3)
    assert any("4 to 4 are missing" in finding for finding in audit_verify().findings)


@pytest.fixture
def guarded() -> Iterator[None]:
    triggers.install(connection)
    yield
    triggers.drop(connection)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_entry SET message = 'x'", "DELETE FROM audit_entry WHERE sequence = 0", "TRUNCATE audit_entry"],
)
def test_the_database_refuses_changes(guarded: None, statement: str) -> None:
    """Goal: a careless statement does no harm; run it against the triggers."""
    _fill(2)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert audit_verify().size == 2
    assert audit_verify().intact


@pytest.mark.django_db(transaction=True)
def test_deed_and_entry_commit_together() -> None:
    """Goal: no entry of what was undone; roll back after recording, go on without a gap."""
    _fill(1)
    with transaction.atomic():
        _fill(1)
        transaction.set_rollback(True)
    _fill(1)
    assert list(Entry.objects.order_by("sequence").values_list("sequence", flat=True)) == [0, 1]
    assert audit_verify().intact


@pytest.mark.django_db(transaction=True)
def test_writers_at_the_same_time_make_one_chain() -> None:
    """Goal: concurrent services do not fork the log; record from several threads with their own connections."""
    import threading

    def write() -> None:
        try:
            _fill(10)
        finally:
            connection.close()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    verdict = audit_verify()
    assert (verdict.size, verdict.findings) == (40, [])


EVIL = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "a,=1", 'a\n"=1"', "＝1", '"=1']


@pytest.mark.parametrize("text", EVIL)
def test_no_cell_is_a_formula(text: str) -> None:
    """Goal: a spreadsheet runs nothing of ours; look at cells as a good and as a careless reader split them."""
    line = io.StringIO()
    csv.writer(line, quoting=csv.QUOTE_ALL).writerow([csv_cell(text)])
    careless = [cell for row in line.getvalue().splitlines() for cell in row.replace(";", ",").split(",")]
    for cell in [csv_cell(text), *careless]:
        assert not cell.strip('" \t').startswith(("=", "+", "-", "@", "＝"))


@pytest.mark.django_db
def test_exports_hold_the_same_entries() -> None:
    """Goal: the three formats agree and are streamed whole; read each back."""
    for text in EVIL:
        record("test.evil", message=text, actor="ana", data={"text": text})
    as_json = json.loads("".join(export(entries(Filter()), format="json")))["data"]
    as_lines = [json.loads(line) for line in "".join(export(entries(Filter()), format="ndjson")).splitlines()]
    rows = list(csv.reader(io.StringIO("".join(export(entries(Filter()), format="csv")))))
    assert as_json == as_lines
    assert as_json == [json.loads(line) for line in "".join(export(log_rows(Filter()), format="ndjson")).splitlines()]
    assert [entry["message"] for entry in as_json] == EVIL
    assert rows[0] == list(CSV_COLUMNS)
    assert [row[0] for row in rows[1:]] == [entry["id"] for entry in as_json]
    assert json.loads("".join(export([], format="json"))) == {"data": []}


@pytest.mark.django_db
def test_the_leaf_can_be_computed_from_the_export() -> None:
    """Goal: verifiable without us; take an exported entry, hash it by RFC 8785 and RFC 9162."""
    _fill(1)
    (entry,) = json.loads("".join(export(entries(Filter()), format="json")))["data"]
    leaf = entry.pop("leaf_hash")
    entry.pop("root_hash")
    canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(b"\x00" + canonical).hexdigest() == leaf


@pytest.mark.django_db
def test_filters_find_their_entries() -> None:
    """Goal: an auditor finds what he looks for; record different entries and ask for each."""
    record("backup.created", message="a backup", actor="ana", tenant="aurora")
    record("backup", message="something", actor="ben", tenant="boreal", level="error")
    record("backups.other", message="no backup", actor="ben")
    assert [entry.type for entry in entry_list(Filter(type="backup"), limit=9)] == ["backup", "backup.created"]
    assert [entry.type for entry in entry_list(Filter(tenant="aurora"), limit=9)] == ["backup.created"]
    assert [entry.type for entry in entry_list(Filter(user="ben", level="error"), limit=9)] == ["backup"]
    assert [entry.sequence for entry in entry_list(Filter(before=2), limit=1)] == [1]
    assert len(entry_list(Filter(text="BACKUP"), limit=9)) == 2
