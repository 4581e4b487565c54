"""Stores as an operator has them: added, tested, changed, removed, and lived on, against a real S3 server."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.core.management import load_command_class

from core.errors import Conflict, Exit
from engine.errors import CancelledError, StoreDenied, UsageError
from engine.ports import Buffer, LockingStore, VersionedStore
from operations.context import OperationContext, working_on
from operations.models import Operation
from stores.local import LocalStore
from tenants import wiring
from tenants.models import StoreConfig
from tenants.services.stores import store_add, store_get, store_remove
from tenants.services.tenants import tenant_add
from tenants.store_rules import about_checked, bandwidth_checked
from tests.services.seaweed import APPENDER, LOCKED, VERSIONED, Seaweed
from tests.tenants.conftest import ACTOR, House

Said = tuple[int, dict[str, Any]]
Run = Callable[..., Said]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("store", "list")`: the exit code and the JSON that was printed, an error's too."""

    def command(noun: str, *argv: object) -> Said:
        capsys.readouterr()
        code = load_command_class("tenants", noun).run([*map(str, argv), "--json", "--no-input"], noun=noun)
        said = capsys.readouterr()
        answer = json.loads(said.out)
        return code, answer.get("error") or answer

    return command


def settings(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


def added(name: str, values: dict[str, str], **about: str) -> StoreConfig:
    return store_add(name, kind="s3", values=values, actor=ACTOR, about=about)


def test_a_store_is_added_and_tested(house: House, run: Run, s3_server: Seaweed, tmp_path: Path) -> None:
    """Goal: the way from nothing to a bucket that works, its secret never shown; type it."""
    values = s3_server.values()
    (tmp_path / "secret").write_text(values["secret_key"] + "\n")
    asked = settings({**values, "secret_key": f"@{tmp_path / 'secret'}"})
    code, answer = run("store", "add", "away", "--kind", "s3", *asked, "--offsite", "yes", "--bandwidth", "20M")
    assert code == Exit.OK, answer
    assert (answer["offsite"], answer["bytes_per_second"], answer["tested"]) == (True, 20_000_000, "ok")
    code, answer = run("store", "test", "away")
    assert (code, answer["status"], answer["conditional"]) == (Exit.OK, "ok", True)
    assert [step["step"] for step in answer["steps"]] == ["write", "read", "list", "refuse", "delete"]
    code, shown = run("store", "show", "away")
    assert shown["test"]["status"] == "ok"
    assert shown["tested_at"]
    for each in (answer, shown, run("store", "list")[1]):
        assert values["secret_key"] not in json.dumps(each)


def test_what_does_not_work_is_not_saved(house: House, run: Run, s3_server: Seaweed) -> None:
    """Goal: every mistake has its exit code and a next step; make some, and see that no row came of them."""
    for change, expected in (
        ({"secret_key": "wrong"}, Exit.NOT_ALLOWED),
        ({"bucket": "no-such-bucket"}, Exit.FAILED),
        ({"endpoint": "http://127.0.0.1:9"}, Exit.STORE_UNREACHABLE),
        ({"bucket": "Not A Bucket"}, Exit.USAGE),
        ({"lock_mode": "governance", "lock_days": "1"}, Exit.FAILED),
    ):
        code, answer = run("store", "add", "bad", "--kind", "s3", *settings(s3_server.values(**change)))
        assert code == expected, answer
        assert answer["hint"]
    assert not StoreConfig.objects.filter(name="bad").exists()


def test_a_tenant_lives_on_append_only_credentials(house: House, run: Run, s3_server: Seaweed) -> None:
    """Goal: backups need no right to delete, and prune says which one it lacks; live on such a bucket."""
    bucket = s3_server.bucket()
    s3_server.append_only(bucket)
    code, answer = run("store", "add", "safe", "--kind", "s3", *settings(s3_server.values(bucket, who=APPENDER)))
    assert code == Exit.OK, answer
    code, answer = run("store", "test", "safe")
    assert (code, answer["status"], answer["deletes"]) == (Exit.WARNED, "limited", False)
    assert "s3:DeleteObject" in next(step["hint"] for step in answer["steps"] if step["step"] == "delete")
    assert not store_get("safe").keeps_keys, "what cannot be deleted cannot be shredded"
    tenant = tenant_add("aurora", name="Aurora", store_name="safe", actor=ACTOR)
    source = house.files(tenant)
    first = house.backup(tenant)
    (house.folder(source) / "a").write_text("changed")
    second = house.backup(tenant, "incremental")
    assert (first.state, second.state) == ("succeeded", "succeeded")
    code, answer = run("backup", "verify", second.pk, "--deep", "--here")
    assert code == Exit.OK, answer


def test_locks_keep_keys_out(house: House, s3_server: Seaweed) -> None:
    """Goal: a keyring never lies where it cannot be shredded; add a store that locks, asking for keys and not."""
    values = s3_server.values(LOCKED, lock_mode="governance", lock_days="1")
    with pytest.raises(UsageError, match="cannot keep keys"):
        added("vault", values, keeps_keys="yes")
    row = added("vault", values)
    assert not row.keeps_keys
    assert row.tested["locked_until"]
    assert [step["state"] for step in row.tested["steps"]] == ["ok"] * 6


def test_wrappers_show_what_a_store_can_do(house: House, s3_server: Seaweed) -> None:
    """Goal: limits and patience hide no lock; open through the wiring, and ask as the engine does."""
    row = added("vault", s3_server.values(LOCKED, lock_mode="governance", lock_days="1"), bandwidth="1G")
    with wiring.store_open(row) as store:
        assert isinstance(store, LockingStore)
        assert isinstance(store, VersionedStore)
        assert store.lock_days == 1
        store.create("r/x", [b"x"])
        assert store.locked_until("r/x") is not None
    with wiring.store_open(store_get("default")) as local:
        assert not isinstance(local, LockingStore)
        assert not isinstance(local, VersionedStore)


def test_waiting_for_a_store_ends_with_the_operation(
    house: House, s3_server: Seaweed, caplog: pytest.LogCaptureFixture
) -> None:
    """Goal: nobody waits two minutes for a server that is gone after Ctrl-C; cancel while it is tried again."""
    row = added("away", s3_server.values())
    row.config["endpoint"] = "http://127.0.0.1:9"
    context = OperationContext(Operation(kind="backup"))
    with working_on(context), wiring.store_open(row) as store:
        threading.Timer(0.3, context.cancel).start()
        began = time.monotonic()
        with pytest.raises(CancelledError):
            store.get("r/x/config")
        assert time.monotonic() - began < 30
    assert "store away" in caplog.text
    assert "trying again" in caplog.text


def test_versions_are_told(house: House, run: Run, s3_server: Seaweed) -> None:
    """Goal: nobody wonders where the space went; test a store in a bucket that keeps versions."""
    added("kept", s3_server.values(VERSIONED))
    code, answer = run("store", "test", "kept")
    assert (code, answer["versions"]) == (Exit.OK, True)
    assert "older versions" in answer["steps"][-1]["said"]


def test_settings_change_only_within_the_same_place(house: House, run: Run, s3_server: Seaweed) -> None:
    """Goal: new credentials yes, an empty bucket under living tenants no; change what can be and what cannot."""
    values = s3_server.values()
    added("away", values)
    tenant_add("aurora", name="Aurora", store_name="away", actor=ACTOR)
    code, answer = run("store", "set", "away", "--set", "storage_class=STANDARD", "--medium", "object storage")
    assert code == Exit.OK, answer
    assert (answer["settings"]["storage_class"], answer["medium"]) == ("STANDARD", "object storage")
    code, answer = run("store", "set", "away", "--set", "storage_class=", "--paid", "yes")
    assert "storage_class" not in answer["settings"]
    assert answer["paid"] is True
    code, answer = run("store", "set", "away", "--set", f"prefix={values['prefix']}-other")
    assert (code, "aurora" in answer["detail"]) == (Exit.FAILED, True), answer
    code, answer = run("store", "set", "away", "--set", "secret_key=wrong")
    assert code == Exit.NOT_ALLOWED
    code, answer = run("store", "set", "away", "--set", "colour=red")
    assert code == Exit.USAGE
    code, answer = run("store", "set", "away")
    assert code == Exit.USAGE
    assert run("store", "test", "away")[0] == Exit.OK, "a change that was refused changed nothing"


def test_a_store_goes_when_nothing_counts_on_it(house: House, run: Run, s3_server: Seaweed) -> None:
    """Goal: nobody removes what keeps backups; try with a tenant, with objects left, and with nothing."""
    values = s3_server.values()
    added("away", values)
    tenant_add("aurora", name="Aurora", store_name="away", actor=ACTOR)
    assert run("store", "remove", "away")[0] == Exit.CONFIRM
    code, answer = run("store", "remove", "away", "--confirm", "away")
    assert (code, "aurora" in answer["detail"]) == (Exit.FAILED, True), answer
    added("empty", s3_server.values())
    assert run("store", "remove", "empty") == (Exit.OK, {"name": "empty", "removed": True})
    assert run("store", "show", "empty")[0] == Exit.NOT_FOUND
    with pytest.raises(Conflict, match="default"):
        store_remove(store_get("default"), actor=ACTOR)


def test_a_store_that_cannot_decide_holds_copies_only(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Goal: no primary where two writers both win; add a store whose create is a put, and a tenant on it."""

    def create(self: LocalStore, key: str, parts: Sequence[Buffer]) -> None:
        self.put(key, parts)

    monkeypatch.setattr(LocalStore, "create", create)
    row = store_add("meek", kind="local", values={"path": str(tmp_path / "meek")}, actor=ACTOR)
    assert row.tested["status"] == "limited"
    with pytest.raises(StoreDenied, match="two writers"):
        tenant_add("aurora", name="Aurora", store_name="meek", actor=ACTOR)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("20M", 20_000_000), ("1.5Mi", 1_572_864), ("500k", 500_000), ("1 GB/s", 10**9), ("0", 0), ("4096", 4096)],
)
def test_bandwidths_are_read(text: str, rate: int) -> None:
    """Goal: rates as people write them; read some."""
    assert bandwidth_checked(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1", "1", "999", "1e9", "20 M M", "9" * 30, "1T", "٣M", "1.2.3M"])
def test_other_bandwidths_are_refused(text: str) -> None:
    """Goal: no rate that stops everything by mistake; read what is none."""
    with pytest.raises(UsageError):
        bandwidth_checked(text)


@pytest.mark.parametrize(
    "about", [{"offsite": "maybe"}, {"paid": "1"}, {"medium": "a\nb"}, {"medium": "x" * 41}, {"keeps_keys": ""}]
)
def test_what_is_said_of_a_store_is_checked(about: dict[str, str | None]) -> None:
    """Goal: rows hold nothing that was never meant; check what is none of the choices."""
    with pytest.raises(UsageError):
        about_checked(about)
