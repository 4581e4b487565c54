"""`key` as an operator types it: what it prints, and with which code it ends."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.keys import RootKey
from tenants.management.commands.backup import Command as BackupCommand
from tenants.management.commands.key import Command
from tests.tenants.conftest import ACTOR, House

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a verb; its exit code and all that it said."""

    def run_verb(*argv: str, command: Any = Command) -> tuple[int, str]:
        capsys.readouterr()
        code = command().run([*argv])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run_verb


def test_the_life_of_keys_by_command_line(house: House, run: Run) -> None:
    """Goal: each verb does and says what the page promises; look, lose, repair, rotate both sorts, look again."""
    tenant = house.tenant()
    house.files(tenant)
    code, said = run("list")
    assert code == 0 and "aurora: epoch 1" in said and "store default: written" in said
    assert run("verify") == (0, "1 keyrings in 2 places: ok\n")
    place = house.data / "store" / "r" / tenant.repository_id / "keyring"
    place.unlink()
    code, said = run("verify")
    assert code == 3 and "missing" in said and "key repair" in said
    assert run("repair")[0] == 0
    place.write_text("{}")
    assert run("verify", "aurora")[0] == 7
    assert json.loads(run("verify", "--json")[1])["findings"][0]["state"] == "damaged"
    assert run("repair")[0] == 0 == run("verify")[0]
    code, said = run("rotate", "aurora", "--here", "--reason", "yearly")
    assert code == 0 and "epoch 2" in said
    assert run("rotate", "aurora", "--compromised", "--here", "--no-input")[0] == 6
    code, said = run("rotate", "aurora", "--compromised", "--confirm", "aurora", "--here")
    assert code == 0 and "stores everything anew" in said and "backup delete" in said
    code, said = run("rotate-root", "--here")
    assert code == 0 and "kit export" in said
    data = json.loads(run("list", "aurora", "--json")[1])["data"][0]
    assert [(each["epoch"], each["compromised_before"]) for each in data["epochs"]] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert run("rotate", "nobody", "--here")[0] == 4


def test_a_key_from_elsewhere_by_command_line(house: House, run: Run) -> None:
    """Goal: no key passes over a command line; make one into a file, refuse to overwrite it, rotate to it."""
    house.tenant()
    path = house.data / "new.key"
    code, said = run("generate", "--output", str(path))
    assert (code, path.stat().st_mode & 0o777) == (0, 0o600)
    key = RootKey.from_text(path.read_text())
    assert key.key_id in said and key.to_text() not in said
    assert run("generate", "--output", str(path))[0] == 6
    assert run("rotate-root", "--to", key.to_text(), "--here")[0] == 2
    path.write_text("rubbish")
    assert run("rotate-root", "--to", f"@{path}", "--here")[0] == 2
    path.write_text(key.to_text())
    code, said = run("rotate-root", "--to", f"@{path}", "--here", "--json")
    assert (code, json.loads(said)["new_key_id"]) == (0, key.key_id)
    assert run("rotate-root", "--to", f"@{path}", "--here")[0] == 1


def test_the_end_of_a_tenant_by_command_line(house: House, run: Run, tmp_path: Any) -> None:
    """Goal: nobody shreds by a slip, and everybody can check that it was done; type it wrong, then right, verify."""
    tenant = house.tenant()
    house.files(tenant)
    backup = house.backup(tenant)
    assert run("shred", "aurora", "--here", "--reason", "over", "--no-input")[0] == 6
    assert run("shred", "aurora", "--here", "--reason", "over", "--confirm", "brisa")[0] == 6
    assert run("shred", "aurora", "--here", "--confirm", "aurora")[0] == 2
    assert run("shred", "aurora", "--here", "--confirm", "aurora", "--reason", " ")[0] == 2
    assert run("certificate", "show", "aurora")[0] == 4
    (house.data / "store").rename(house.data / "away")
    code, said = run("shred", "aurora", "--here", "--confirm", "aurora", "--reason", "over")
    assert code == 3 and "pending: store default" in said
    (house.data / "away").rename(house.data / "store")
    code, said = run("shred", "aurora", "--here", "--confirm", "aurora", "--reason", "again")
    assert code == 0 and "complete" in said
    path = tmp_path / "certificate.json"
    code, said = run("certificate", "show", "aurora", "--output", str(path))
    assert code == 0 and str(path) in said
    document = json.loads(path.read_text())
    assert "reason: over" in run("certificate", "show", "aurora")[1]
    assert run("certificate", "verify", str(path))[0] == 0
    assert run("certificate", "verify", str(path), "--public-key", document["public_key"])[0] == 0
    assert run("certificate", "verify", str(path), "--public-key", "ab" * 32)[0] == 7
    path.write_text(json.dumps({**document, "state": "pending"}))
    assert run("certificate", "verify", str(path))[0] == 7
    assert run("certificate", "verify", str(tmp_path / "none"))[0] == 4
    for argv in (["verify", backup.pk, "--here"], ["create", "aurora", "--here"], ["browse", backup.pk]):
        code, said = run(*argv, command=BackupCommand)
        assert code == 1 and "were destroyed on" in said and "certificate show aurora" in said
    assert "destroyed on" in run("list")[1]
    assert ACTOR not in run("certificate", "show", "aurora")[1]
