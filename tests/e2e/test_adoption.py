"""Lastro itself is lost: a clean installation, a store and the recovery kit bring it back."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.program import ROOT, Program, tree

PASSPHRASE = "five words that nobody guesses"
KIT = ("--passphrase", "env:KIT_PASSPHRASE")


class Lost:
    """An installation with two tenants, a copy of its store elsewhere and a kit; then its host is gone."""

    def __init__(self, room: Path) -> None:
        self.top = top = room / "site"
        top.mkdir()
        self.old = Program(top / "old", KIT_PASSPHRASE=PASSPHRASE)
        self.folders = {}
        for slug in ("aurora", "boreal"):
            folder = top / "live" / slug
            (folder / "sub").mkdir(parents=True)
            (folder / "a.txt").write_text(slug)
            (folder / "sub" / "b.bin").write_bytes(os.urandom(100_000))
            self.folders[slug] = folder
            self.old.tenant(slug, assets=folder)
        self.backups = {slug: [self.old.backup(slug)] for slug in self.folders}
        self._saved = room / "saved"
        shutil.copytree(top, self._saved, symlinks=True)

    def again(self) -> "Lost":
        """As it was when it was made, at the same place."""
        shutil.rmtree(self.top)
        shutil.copytree(self._saved, self.top, symlinks=True)
        return self

    def kit(self, name: str = "kit.json", *more: str) -> Path:
        path = self.top / name
        self.old("kit", "export", "--output", path, *more, *KIT)
        return path

    def carried_off(self) -> Path:
        """The store as another place keeps it; the host with everything on it is gone."""
        copy = self.top / "offsite"
        shutil.copytree(self.old.data / "store", copy)
        shutil.rmtree(self.old.data)
        return copy

    def adopt(self, store: Path, kit: Path, *, name: str = "offsite", new: Program | None = None) -> dict[str, Any]:
        self.new = new or Program(self.top / "new", KIT_PASSPHRASE=PASSPHRASE)
        given = ("--kind", "local", "--set", f"path={store}", "--kit", kit, *KIT)
        return self.new("store", "adopt", name, *given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Lost:
    return Lost(tmp_path_factory.mktemp("lost"))


@pytest.fixture
def lost(made: Lost) -> Lost:
    return made.again()


def test_everything_comes_back_from_a_copy_and_the_kit(lost: Lost, tmp_path: Path) -> None:
    """Goal: losing the host loses nothing. Method: catalogue backup, more changes, carry the store off, adopt, restore."""
    kit = lost.kit()
    lost.old("master", "add", "ana")
    lost.old("catalogue", "backup", "--here")
    size = lost.old("audit", "list")["data"][0]["sequence"]
    (lost.folders["aurora"] / "later.txt").write_text("after the catalogue was kept")
    later = lost.old.backup("aurora", "incremental")
    lost.old.tenant("corona", assets=lost.folders["boreal"])
    corona = lost.old.backup("corona")
    want = {slug: tree(folder) for slug, folder in lost.folders.items()}
    done = lost.adopt(lost.carried_off(), kit)
    new = lost.new
    assert (done["generation"], done["without_keys"], done["failed"], done["audit"]) == (2, [], [], [])
    assert set(done["promoted"]) == {"aurora", "boreal"}
    assert done["rebuilt"] == ["corona"]
    assert [row["id"] for row in new("backup", "list", "aurora")["data"]] == [
        later["id"],
        lost.backups["aurora"][0]["id"],
    ]
    for slug, backup in (
        ("aurora", later["id"]),
        ("boreal", lost.backups["boreal"][0]["id"]),
        ("corona", corona["id"]),
    ):
        out = tmp_path / "out" / slug
        new("restore", "run", backup, "--target", f"path={out}", "--here")
        assert (
            tree(out / "assets" if (out / "assets").is_dir() else out)
            == want["aurora" if slug == "aurora" else "boreal"]
        )
    _the_log_goes_on(new, size)
    assert new.backup("aurora", "incremental")["state"] == "succeeded"
    assert new("backup", "prune", "aurora")["packs_dropped"] == 0
    again = new("store", "adopt", "offsite")
    assert (again["rebuilt"], again["promoted"], again["tenants"]) == ([], [], [])


def _the_log_goes_on(new: Program, size: int) -> None:
    """The tree verifies as a whole, and says where the break was."""
    assert new("audit", "verify")["entries"] > size
    broken = [row for row in new("audit", "list", "--type", "catalogue")["data"] if row["type"] == "catalogue.adopted"]
    assert len(broken) == 1


def test_what_only_a_further_copy_holds_stays_in_it(lost: Lost) -> None:
    """Goal: a copy that becomes the primary ends nothing that another copy has. Method: it lacks a backup; run the other."""
    first, later = lost.backups["aurora"][0], lost.old.backup("aurora", "incremental")
    for name in ("near", "far"):
        lost.old("store", "add", name, "--kind", "local", "--set", f"path={lost.top / name}")
        for slug in lost.folders:
            lost.old("copy", "add", slug, name)
    for slug in lost.folders:
        lost.old("copy", "run", slug, "--here")
    lost.old("catalogue", "backup", "--here")
    kit = lost.kit()
    shutil.rmtree(lost.old.data)
    (newest,) = (lost.top / "near").glob("r/rep_*/manifests/0000000002")
    newest.with_name("0000000001").unlink()
    done = lost.adopt(lost.top / "near", kit, name="near")
    (aurora,) = (each for each in done["tenants"] if each["tenant"] == "aurora")
    assert (done["promoted"], aurora["left"], aurora["ended"]) == (["aurora", "boreal"], [first["id"]], [])
    lost.new("copy", "run", "aurora", "--store", "far", "--here")
    assert len(list((lost.top / "far").glob("r/rep_*/manifests/0000000001"))) == 2
    assert {row["id"] for row in lost.new("backup", "list", "aurora")["data"]} == {first["id"], later["id"]}
    lost.new("restore", "run", first["id"], "--target", f"path={lost.top / 'out'}", "--here", code=3)
    assert (lost.top / "out" / "a.txt").read_text() == "aurora"


def test_what_only_the_primary_that_is_away_holds_is_not_ended(lost: Lost) -> None:
    """Goal: a disk that is away may come back. Method: adopt from a copy that is behind, mount the old store again, restore."""
    lost.old("store", "add", "near", "--kind", "local", "--set", f"path={lost.top / 'near'}")
    for slug in lost.folders:
        lost.old("copy", "add", slug, "near")
        lost.old("copy", "run", slug, "--here")
    (lost.folders["aurora"] / "later.txt").write_text("nowhere else")
    later = lost.old.backup("aurora", "incremental")
    lost.old("catalogue", "backup", "--here")
    kit = lost.kit()
    want, away = tree(lost.folders["aurora"]), lost.top / "away"
    (lost.old.data / "store").rename(away)
    shutil.rmtree(lost.old.data)
    done = lost.adopt(lost.top / "near", kit, name="near")
    (aurora,) = (each for each in done["tenants"] if each["tenant"] == "aurora")
    assert (aurora["left"], aurora["ended"], aurora["missing"]) == ([later["id"]], [], [])
    lost.new("restore", "run", later["id"], "--target", f"path={lost.top / 'out'}", "--here", code=9)
    lost.old.data.mkdir()
    away.rename(lost.old.data / "store")
    lost.new("restore", "run", later["id"], "--target", f"path={lost.top / 'out'}", "--here", code=3)
    assert tree(lost.top / "out") == want


def test_a_tenants_repository_is_not_taken_for_the_catalogue(lost: Lost) -> None:
    """Goal: a thief of the store's credential picks nobody's accounts. Method: a tenant's keyring and config in places of others.

    The tenant's own backup has a source named `catalogue`, whose files are as those of a catalogue.
    """
    fake = lost.top / "live" / "fake"
    fake.mkdir()
    (fake / "catalogue.json").write_text(json.dumps({"format": "lastro-catalogue", "version": 1, "models": []}))
    lost.old.tenant("fake", catalogue=fake)
    lost.old.backup("fake")
    lost.old("catalogue", "backup", "--here")
    repository = lost.old("key", "list", "fake")["data"][0]["repository_id"]
    kit, store = lost.kit(), lost.carried_off()
    (real,) = store.glob("r/cat_*")
    for name in ("cat_00000000000000000000000000", "rep_00000000000000000000000000"):
        (store / "r" / name).mkdir()
        for part in ("config", "keyring"):
            shutil.copy(store / "r" / repository / part, store / "r" / name / part)
    hidden = real.rename(lost.top / "hidden")
    lost.new = Program(lost.top / "new", KIT_PASSPHRASE=PASSPHRASE)
    given = ("store", "adopt", "offsite", "--kind", "local", "--set", f"path={store}", "--kit", kit, *KIT)
    assert lost.new(*given, code=7)["error"]["code"] == "repository.foreign_keyring"
    hidden.rename(real)
    done = lost.new("store", "adopt", "offsite", "--kind", "local", "--set", f"path={store}")
    assert (done["source"][:4], done["rebuilt"], done["failed"]) == ("cbk_", [], [])


def test_the_installation_that_was_left_for_dead_is_refused(lost: Lost) -> None:
    """Goal: one owner. Method: adopt the very store of an installation that is still there; let that one go on."""
    kit = lost.kit("kit.txt", "--printable")
    lost.old("catalogue", "backup", "--here")
    store = lost.old.data / "store"
    done = lost.adopt(store, kit, name="default")
    assert (done["generation"], done["promoted"]) == (2, [])
    before = sorted(path for path in store.rglob("*") if path.is_file())
    assert lost.old.backup("aurora", "incremental", code=8)["error"]["code"] == "repository.taken_over"
    assert lost.old("backup", "prune", "aurora", code=8)["error"]["code"] == "repository.taken_over"
    gone = set(before) - {path for path in store.rglob("*") if path.is_file()}
    assert gone == set()
    assert lost.new.backup("aurora", "incremental")["state"] == "succeeded"


POINTS = (
    "adopt.before_commit",
    "adopt.rows_taken",
    "owner.raised",
    "adopt.owned",
    "reconcile.taken_over",
    "adopt.successor_stored",
)


def test_an_adoption_killed_anywhere_is_taken_up_again(lost: Lost) -> None:
    """Goal: it can be repeated. Method: kill it at one point after another, then let it through; compare the outcome."""
    kit = lost.kit()
    lost.old("catalogue", "backup", "--here")
    later = lost.old.backup("aurora", "incremental")
    copy = lost.carried_off()
    new = Program(lost.top / "new", KIT_PASSPHRASE=PASSPHRASE)
    given = ("store", "adopt", "offsite", "--kind", "local", "--set", f"path={copy}", "--kit", kit, *KIT)
    for point in POINTS:
        assert new.raw(*given, LASTRO_KILL_AT=point).code == -9, point
    done = lost.adopt(copy, kit, new=new)
    assert (done["failed"], done["without_keys"]) == ([], [])
    assert [row["id"] for row in new("backup", "list", "aurora")["data"]] == [
        later["id"],
        lost.backups["aurora"][0]["id"],
    ]
    assert new.backup("aurora", "incremental")["state"] == "succeeded"
    assert new("backup", "prune", "aurora")["forgotten"] == []
    assert new("audit", "verify")["findings"] == []


def test_without_a_backup_of_the_catalogue_the_manifests_tell(lost: Lost, tmp_path: Path) -> None:
    """Goal: a store alone is enough for the data. Method: adopt one that keeps no catalogue; restore; refusals."""
    kit = lost.kit("kit.html", "--printable")
    want = tree(lost.folders["boreal"])
    copy = lost.carried_off()
    done = lost.adopt(copy, kit)
    assert (done["source"], sorted(done["rebuilt"])) == ("manifests", ["aurora", "boreal"])
    out = tmp_path / "out"
    lost.new("restore", "run", lost.backups["boreal"][0]["id"], "--target", f"path={out}", "--here")
    assert tree(out) == want
    source = lost.new("source", "list", "boreal")["data"][0]
    assert (source["name"], source["enabled"], source["settings"]["path"]) == (
        "assets",
        False,
        str(lost.folders["boreal"]),
    )


def test_an_adoption_refuses_what_would_be_lost_or_cannot_be_opened(lost: Lost) -> None:
    """Goal: nothing is thrown away by mistake. Method: an occupied installation, another kit, no store, a strange folder."""
    kit = lost.kit()
    lost.old("catalogue", "backup", "--here")
    store = lost.old.data / "store"
    other = Program(lost.top / "other", KIT_PASSPHRASE=PASSPHRASE)
    other.tenant("busy", assets=lost.folders["aurora"])
    given = ("store", "adopt", "offsite", "--kind", "local", "--set", f"path={store}")
    refused = other(*given, "--kit", kit, *KIT, code=1)["error"]
    assert refused["code"] == "keys.root_mismatch"
    clean = Program(lost.top / "clean", KIT_PASSPHRASE=PASSPHRASE)
    assert clean(*given, code=7)["error"]["code"] == "repository.wrong_key"
    assert clean("store", "adopt", "nowhere", code=4)["error"]["hint"].startswith("say where it is")
    assert clean(*given[:-1], "path=/none/at/all", "--kit", kit, *KIT, code=9)
    assert clean("tenant", "list")["data"] == []
    lost.adopt(store, kit, new=clean)
    assert [row["slug"] for row in clean("tenant", "list")["data"]] == ["aurora", "boreal"]


READER = ROOT / "docs" / "formats" / "reader.py"


def test_the_reader_needs_the_kit_alone(lost: Lost, tmp_path: Path) -> None:
    """Goal: no Lastro is needed. Method: list and extract from the copy with the kit, tenants and catalogue alike."""
    kit = lost.kit()
    lost.old("catalogue", "backup", "--here")
    want = tree(lost.folders["aurora"])
    copy = lost.carried_off()
    listed = _read(copy, kit, "list").stdout
    assert lost.backups["aurora"][0]["id"] in listed
    catalogue = next(line.split("\t")[0] for line in listed.splitlines() if line.startswith("cbk_"))
    _read(copy, kit, "extract", lost.backups["aurora"][0]["id"], tmp_path / "out")
    assert tree(tmp_path / "out" / "assets" / "files") == want
    _read(copy, kit, "extract", catalogue, tmp_path / "rows")
    rows = tmp_path / "rows" / "catalogue" / "files"
    header = json.loads((rows / "catalogue.json").read_text())
    tenants = next(each for each in header["models"] if each["model"] == "tenants.Tenant")
    assert "keyring" not in tenants["fields"]
    lines = [json.loads(line) for line in (rows / tenants["file"]).read_text().splitlines()]
    assert [line[tenants["fields"].index("slug")] for line in lines] == ["aurora", "boreal"]
    keys = tmp_path / "keys"
    for ring in sorted(copy.glob("r/rep_*/keyring")):
        place = keys / ring.relative_to(copy)
        place.parent.mkdir(parents=True)
        ring.rename(place)
    assert lost.backups["aurora"][0]["id"] not in _read(copy, kit, "list").stdout
    assert lost.backups["aurora"][0]["id"] in _read(copy, kit, "list", LASTRO_KEYRINGS=str(keys)).stdout


def _read(*arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": os.environ["PATH"], "LASTRO_KIT_PASSPHRASE": PASSPHRASE, "PYTHONUTF8": "1", **variables}
    command = [sys.executable, "-P", str(READER), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)


def test_everything_comes_back_from_s3(lost: Lost, s3_store_values: dict[str, str]) -> None:
    """Goal: off site is enough. Method: copy to S3, destroy local store, catalogue and data; adopt from S3; byte for byte."""
    settings = [word for key, value in s3_store_values.items() for word in ("--set", f"{key}={value}")]
    lost.old("store", "add", "cloud", "--kind", "s3", *settings)
    later = lost.old.backup("aurora", "incremental")
    for slug in lost.folders:
        lost.old("copy", "add", slug, "cloud")
        lost.old("copy", "run", slug, "--here")
    lost.old("catalogue", "backup", "--here")
    kit = lost.kit("kit.txt", "--printable")
    want = {slug: tree(folder) for slug, folder in lost.folders.items()}
    for gone in (lost.old.data, lost.top / "live"):
        shutil.rmtree(gone)
    new = Program(lost.top / "new", KIT_PASSPHRASE=PASSPHRASE)
    done = new("store", "adopt", "cloud", "--kind", "s3", *settings, "--kit", kit, *KIT)
    assert (done["promoted"], done["failed"], done["without_keys"], done["audit"]) == (["aurora", "boreal"], [], [], [])
    assert new("audit", "verify")["findings"] == []
    for slug in lost.folders:
        backup = later["id"] if slug == "aurora" else lost.backups[slug][0]["id"]
        restored = new("restore", "run", backup, "--confirm", slug, "--here", code=3)
        assert all(check["passed"] for check in restored["checks"])
        assert tree(lost.folders[slug]) == want[slug]
        assert new.backup(slug, "incremental")["state"] == "succeeded"
        new("backup", "prune", slug)
