"""kill -9 at labelled points of the real program: a rerun completes, and nothing half done looks whole."""

import os
import re
from pathlib import Path

import pytest

from tests.e2e.program import ROOT, Program, tree

BACKUP_POINTS = (
    "backup.number_reserved",
    "backup.opened",
    "backup.source_read",
    "session.pack_stored",
    "backup.chunks_stored",
    "backup.before_manifest",
    "store.local.written",
    "store.local.renamed",
    "backup.manifest_stored",
    "backup.before_record",
)
COMMITTED = {"backup.manifest_stored", "backup.before_record", "store.local.linked"}
RESTORE_POINTS = (
    "restore.safety_backup_taken",
    "restore.before_source",
    "tree.restore.staged",
    "tree.restore.swapped",
    "restore.source_applied",
)
SECOND_PASSAGES = ("store.local.renamed:2", "store.local.synced:3", "store.local.written:4", "store.local.linked")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "assets"
    (top / "sub").mkdir(parents=True)
    (top / "a").write_text("one")
    (top / "sub" / "b").write_bytes(os.urandom(300_000))
    return top


@pytest.mark.parametrize("point", [*BACKUP_POINTS, *SECOND_PASSAGES])
def test_a_backup_killed_anywhere_can_be_taken_again(program: Program, folder: Path, point: str) -> None:
    """Goal: only garbage remains and a rerun ends; kill at the point, look, run again, restore both."""
    program.tenant("aurora", assets=folder)
    first = program.backup("aurora")
    (folder / "sub" / "c").write_bytes(os.urandom(200_000))
    want = tree(folder)
    killed = program.raw("backup", "create", "aurora", "--here", "--json", LASTRO_KILL_AT=point)
    assert killed.code == -9, f"{point} was not reached: {killed.err}"
    program.let_go()
    again = program.backup("aurora", "incremental", code=3 if point in COMMITTED else 0)
    rows = {row["id"]: row for row in program("backup", "list", "aurora")["data"]}
    lost = next(row for row in rows.values() if row["id"] not in (first["id"], again["id"]))
    assert lost["state"] == ("succeeded" if point in COMMITTED else "failed")
    assert lost["origin"] == ("adopted" if point in COMMITTED else "run")
    for backup in [row for row in rows.values() if row["state"] in ("succeeded", "warned")]:
        assert program("backup", "verify", backup["id"], "--deep", "--here")["status"] == "passed"
    out = folder.parent / "out"
    program.restore(again["id"], "aurora", "--target", f"path={out}")
    assert tree(out) == want


@pytest.mark.parametrize("point", RESTORE_POINTS)
def test_a_restore_killed_anywhere_can_be_run_again(program: Program, folder: Path, point: str) -> None:
    """Goal: a target is wholly old or wholly new; kill at the point, look at the folder, run it again."""
    program.tenant("aurora", assets=folder)
    backup, want = program.backup("aurora"), tree(folder)
    (folder / "a").write_text("changed")
    (folder / "stray").write_text("stray")
    changed = tree(folder)
    killed = program.raw(
        "restore", "run", backup["id"], "--confirm", "aurora", "--here", "--json", LASTRO_KILL_AT=point
    )
    assert killed.code == -9, f"{point} was not reached: {killed.err}"
    assert tree(folder) in (changed, want)
    program.let_go()
    lost = program("operation", "list", "aurora", "--kind", "restore")["data"][0]
    assert lost["state"] == "lost"
    program("operation", "retry", lost["id"], "--here")
    assert tree(folder) == want
    assert program("restore", "show", lost["subject_id"])["state"] == "succeeded"
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".lastro")] == []


def test_a_tenant_whose_adding_was_killed_is_finished_by_its_first_backup(program: Program, folder: Path) -> None:
    """Goal: `tenant add` may die anywhere; kill it before the repository is whole, then go on."""
    killed = program.raw("tenant", "add", "aurora", "--name", "A", LASTRO_KILL_AT="repository.config_stored")
    assert killed.code == -9
    program("source", "add", "aurora", "assets", "--kind", "files", "--category", "assets", "--set", f"path={folder}")
    assert program.backup("aurora")["state"] == "succeeded"


def test_every_point_of_these_tests_exists() -> None:
    """Goal: a label that was renamed cannot leave a hole; look each one up in the code."""
    code = "\n".join(path.read_text() for top in ("platform", "tenants") for path in (ROOT / top).rglob("*.py"))
    known = set(re.findall(r'kill_point\("([^"]+)"\)', code))
    assert {point.partition(":")[0] for point in (*BACKUP_POINTS, *RESTORE_POINTS, *SECOND_PASSAGES)} <= known


@pytest.mark.parametrize("point", ["quarantine.stored_again", "quarantine.index_rewritten", "quarantine.set_aside"])
def test_a_verification_killed_while_it_sets_damage_aside_can_be_run_again(
    program: Program, folder: Path, point: str
) -> None:
    """Goal: finding damage never makes more of it; flip bits, kill the verification, verify and back up again."""
    program.tenant("aurora", assets=folder)
    first, want = program.backup("aurora"), tree(folder)
    for pack in [path for path in (program.data / "store").rglob("data/*/*") if path.is_file()]:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
    killed = program.raw("backup", "verify", first["id"], "--deep", "--here", "--json", LASTRO_KILL_AT=point)
    assert killed.code == -9, f"{point} was not reached: {killed.err}"
    program.let_go()
    program("backup", "verify", first["id"], "--deep", "--here", code=7)
    program.backup("aurora", "incremental")
    for row in program("backup", "list", "aurora")["data"]:
        program("backup", "verify", row["id"], "--here")
        assert program("backup", "verify", row["id"], "--deep", "--here")["status"] == "passed"
    program.restore(first["id"], "aurora", "--target", f"path={folder.parent}/out")
    assert tree(folder.parent / "out") == want


def test_a_killed_drill_leaves_nothing_that_the_next_does_not_remove(program: Program, folder: Path) -> None:
    """Goal: no copy of a tenant's data is forgotten; kill a drill between restoring and removing, run another."""
    program.tenant("aurora", assets=folder)
    program.backup("aurora")
    killed = program.raw("drill", "run", "aurora", "--here", "--json", LASTRO_KILL_AT="drill.restored")
    assert killed.code == -9, killed.err
    left = program.data / "drills"
    assert len(list(left.iterdir())) == 1
    program.let_go()
    assert program("drill", "run", "aurora", "--here")["status"] == "passed"
    assert list(left.iterdir()) == []
    assert [row["status"] for row in program("drill", "list", "aurora")["data"]] == ["passed", "failed"]
