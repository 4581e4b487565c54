"""Copies from the command line: made, killed, damaged, mended, judged, and read without Lastro."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.program import ROOT, Program, tree

PASSPHRASE = "correct horse battery staple"
READER = ROOT / "docs" / "formats" / "reader.py"


def test_a_copy_is_made_killed_mended_and_read_alone(program: Program, tmp_path: Path) -> None:
    """Goal: an operator's whole way; two stores, a kill, damage, a repair, the loss of the primary, the reader alone."""
    folder, second = tmp_path / "assets", tmp_path / "second"
    (folder / "sub").mkdir(parents=True)
    for number in range(4):
        (folder / "sub" / f"f{number}").write_bytes(os.urandom(200_000))
    program.tenant("aurora", assets=folder)
    program("store", "add", "second", "--kind", "local", "--set", f"path={second}", "--json")
    program("copy", "add", "aurora", "second", "--json")
    backup = program.backup("aurora")
    assert (
        program("copy", "status", "--json", code=3)["data"][0]["next"]
        == "bring the copy up to date: copy run aurora --store second"
    )

    killed = program.raw("copy", "run", "aurora", "--here", "--json", LASTRO_KILL_AT="copy.manifest_stored")
    assert killed.code == -9, killed.err
    program.let_go()
    ran = program("copy", "run", "aurora", "--here", "--json")
    assert (ran["copied"], ran["held"], ran["health"], ran["bytes"] < 100_000) == (1, 1, "whole", True)
    shown = program("backup", "show", backup["id"], "--json")["copies"]
    assert [(each["store"], each["state"]) for each in shown] == [("default", "present"), ("second", "present")]

    for pack in second.rglob("data/*/*"):
        pack.write_bytes(pack.read_bytes()[:-1000])
    found = program(
        "copy", "verify", "aurora", "--store", "second", "--deep", "--here", "--json", "--no-repair", code=7
    )
    assert found["affected"] == [backup["id"]]
    assert program.raw("doctor").code == 1
    mended = program("copy", "repair", "aurora", "--store", "second", "--here", "--json")
    assert (mended["whole_again"], mended["lost"]) == ([backup["id"]], [])
    program("copy", "verify", "aurora", "--store", "second", "--sample", "--here", "--json")
    assert [each["health"] for each in program("copy", "list", "aurora", "--json")["data"]] == ["whole", "whole"]

    (tmp_path / "passphrase").write_text(PASSPHRASE)
    program("kit", "export", "--output", tmp_path / "kit.json", "--passphrase", f"@{tmp_path / 'passphrase'}")
    shutil.rmtree(program.data / "store")
    out = tmp_path / "restored"
    program.restore(backup["id"], "aurora", "--target", f"path={out}", code=3)
    assert tree(out) == tree(folder)
    read = subprocess.run(
        [sys.executable, READER, second, tmp_path / "kit.json", "extract", backup["id"], tmp_path / "read"],
        env={**os.environ, "LASTRO_KIT_PASSPHRASE": PASSPHRASE}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert read.returncode == 0, read.stderr
    (top,) = (tmp_path / "read" / "assets").iterdir()
    assert tree(top) == tree(folder)
