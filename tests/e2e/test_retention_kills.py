"""Ending backups survives a kill at every step: nothing is lost that was not ended, and a repeat goes on."""

from pathlib import Path
from typing import Any

from tests.e2e.program import Program


def _in_trash(program: Program) -> set[str]:
    return {row["id"] for row in program("backup", "list", "aurora", "--trash")["data"]}


def test_ending_backups_survives_kills(tmp_path: Path) -> None:
    """Goal: a kill leaves a backup either back or gone, and said; kill a deletion and a run of retention at each point."""
    folder = tmp_path / "files"
    folder.mkdir()
    program = Program(tmp_path / "var", LASTRO_TRASH_DAYS="0")
    program.tenant("aurora", files=folder)
    made = []
    for number in range(4):
        (folder / "a").write_text(f"text {number} " * 500)
        made.append(program.backup("aurora")["id"])

    def killed(at: str, *words: object, **variables: str) -> None:
        said = program.raw(*words, LASTRO_KILL_AT=at, **variables)
        assert said.code in (-9, 137), (said.code, said.err)
        program.let_go()

    deletion = ("backup", "delete", made[0], "--now", "--confirm", "aurora")
    killed("delete.trashed", *deletion)
    assert _in_trash(program) == {made[0]}
    program("backup", "undelete", made[0])
    program("backup", "release", made[0])
    killed("delete.forgotten", *deletion)
    refused = program("backup", "undelete", made[0], code=1)
    assert "forgotten by the store" in refused["error"]["detail"]
    assert program(*deletion)["trashed_at"] is None

    program(
        "retention", "set", "aurora", "--set", "incremental_days=0", "--set", "weekly_full_count=0",
        "--set", "monthly_full_count=0", "--confirm", "aurora",
    )  # fmt: skip
    running: tuple[Any, ...] = ("retention", "run", "aurora", "--here")
    killed("retention.trashed", *running)
    assert _in_trash(program) == {made[1], made[2]}
    program("restore", "run", made[1], "--target", f"path={tmp_path / 'out'}", "--here")
    killed("retention.forgotten", *running)
    assert "forgotten by the store" in program("backup", "undelete", made[1], code=1)["error"]["detail"]
    done = program(*running)
    assert done["forgotten"] == 2 and _in_trash(program) == set()
    assert program("backup", "verify", made[3], "--deep", "--here")["status"] == "passed"
    assert (tmp_path / "out" / "a").read_text() == "text 1 " * 500
