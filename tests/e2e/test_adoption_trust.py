"""Adopting a store in which a thief with a former root key has been at work, and who signs afterwards."""

import json
import shutil
from pathlib import Path

import pytest

from engine.keys import Keyring, RootKey
from engine.manifest import Manifest
from tests.e2e.program import Program
from tests.e2e.test_adoption import KIT, PASSPHRASE, Lost


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    lost = Lost(tmp_path_factory.mktemp("trust"))
    lost.old("catalogue", "backup", "--here")
    shutil.copytree(lost.old.data / "store", lost.top / "stolen")
    shutil.copy(lost.old.data / "keys" / "root.key", lost.top / "stolen.key")
    lost.old("key", "rotate-root", "--here")
    lost.old("catalogue", "backup", "--here")
    lost.kit()
    lost.carried_off()
    return lost


def rolled_back(top: Path) -> None:
    """What the thief does: the newest backups of the catalogue go, one of his own comes in their place."""
    (mine,), (theirs,) = (list((top / store).glob("r/cat_*")) for store in ("stolen", "offsite"))
    root = RootKey.from_text((top / "stolen.key").read_text())
    keyring = Keyring.from_bytes((mine / "keyring").read_bytes(), root)
    like = Manifest.read((mine / "manifests" / "0000000001").read_bytes(), keyring, number=1).document
    for path in (theirs / "manifests").iterdir():
        path.unlink()
    shutil.copy(mine / "manifests" / "0000000001", theirs / "manifests")
    document = {**like, "number": 2, "id": "cbk_forged", "timestamp": "2099-01-01T00:00:00+00:00"}
    document.pop("signature")
    parts = Manifest.signed(document, keyring).parts(keyring)
    (theirs / "manifests" / "0000000002").write_bytes(b"".join(parts))


def test_a_thief_with_a_former_root_key_puts_no_catalogue_in_its_place(made: Lost) -> None:
    """Goal: no forged catalogue is adopted unseen. Method: roll the store back as he could; adopt, confirm, look at the log."""
    rolled_back(made.top)
    given = ("store", "adopt", "offsite", "--kind", "local", "--set", f"path={made.top / 'offsite'}")
    kit = ("--kit", made.top / "kit.json", *KIT)
    new = Program(made.top / "new", KIT_PASSPHRASE=PASSPHRASE)
    refused = new(*given, *kit, code=1)["error"]
    assert (refused["code"], "renewed since" in refused["detail"]) == ("catalogue.contradicted", True), refused
    assert "still to come" in refused["detail"] and "--accept-rollback" in refused["hint"]
    assert new("tenant", "list")["data"] == []
    assert new(*given, "--accept-rollback", code=6)["error"]["code"] == "access.confirmation_needed"
    done = new(*given, "--accept-rollback", "--confirm", "offsite", code=3)
    assert len(done["contradictions"]) >= 2
    (entry,) = [
        row for row in new("audit", "list", "--type", "catalogue")["data"] if row["type"] == "catalogue.adopted"
    ]
    assert entry["data"]["contradictions_accepted"] == done["contradictions"]
    _signs_by_its_own(made, new)


def _signs_by_its_own(made: Lost, new: Program) -> None:
    """Every tenant has a signing key of this installation, for which the one before vouches; the former signs no more."""
    for ring in (made.top / "offsite").glob("r/rep_*/keyring"):
        document = json.loads(ring.read_bytes())
        assert (document["version"], list(document["signers"])) == (3, ["2"])
        assert document["signers"]["2"]["signed_by_former"]
    epochs = new("key", "list", "aurora")["data"][0]["epochs"]
    assert [(each["epoch"], bool(each["signing_key"])) for each in epochs] == [(1, False), (2, True)]
    assert new("key", "verify", code=3)["status"] == "incomplete"  # The store that is gone.
    assert new.backup("aurora", "incremental")["state"] == "succeeded"
    assert new("restore", "run", made.backups["aurora"][0]["id"], "--target", f"path={made.top / 'out'}", "--here")


def test_whoever_takes_a_store_back_reads_what_was_signed_meanwhile(tmp_path: Path) -> None:
    """Goal: successors lock nobody out. Method: adopt elsewhere, back up there, take over again, restore that, back up, verify."""
    lost = Lost(tmp_path)
    lost.old("catalogue", "backup", "--here")
    kit = lost.kit()
    store = lost.old.data / "store"
    lost.adopt(store, kit, name="default")
    (lost.folders["aurora"] / "a.txt").write_text("meanwhile")
    meanwhile = lost.new.backup("aurora", "incremental")
    lost.new("catalogue", "backup", "--here")
    assert lost.old.backup("aurora", "incremental", code=8)["error"]["code"] == "repository.taken_over"
    done = lost.old("store", "reconcile", "default", "--take-over", "--confirm", "default")
    assert (done["failed"], done["tenants"][0]["adopted"]) == ([], [meanwhile["id"]])
    lost.old("restore", "run", meanwhile["id"], "--target", f"path={tmp_path / 'out'}", "--here")
    assert (tmp_path / "out" / "a.txt").read_text() == "meanwhile"
    after = lost.old.backup("aurora", "incremental")
    assert lost.old("backup", "verify", after["id"], "--here")["findings"] == []
    epochs = lost.old("key", "list", "aurora")["data"][0]["epochs"]
    assert [each["epoch"] for each in epochs] == [1, 2, 3]
    lost.old("catalogue", "backup", "--here")
    assert lost.new.backup("aurora", "incremental", code=8)["error"]["code"] == "repository.taken_over"
