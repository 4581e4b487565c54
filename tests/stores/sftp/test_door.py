"""Who gets in and where: host keys, settings, credentials, rights, the folder that is the store."""

import os
import stat
import subprocess
import time
from collections.abc import Callable

import pytest

from engine.errors import (
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreUnreachable,
    UsageError,
)
from engine.ports import Store
from stores.sftp import TEMP_AGE_MAX_SECONDS, SftpStore
from tests.services.absent import absent
from tests.services.cached_programs import sshd as sshd_program
from tests.services.sshd import PASSWORD, Sshd, as_root, new_key
from tests.stores.sftp.places import Asked, config, made, opened

root_only = pytest.mark.skipif(not as_root(), reason="only root can give the server a user of its own")


# ---------------------------------------------------------------- the host key


def test_a_host_key_is_never_learned_in_silence(values: dict[str, str], server: Sshd) -> None:
    """Goal: the operator compares and decides; add a store without a host key, then as the refusal says."""
    asked = {**values, "host_key": ""}
    with pytest.raises(UsageError) as caught:
        made(asked)
    told = subprocess.run(
        ["ssh-keygen", "-lf", server.folder / "host_key.pub"], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    assert told in caught.value.message
    assert not server.path(values).exists()
    line = caught.value.hint.rpartition("host_key='")[2].rstrip("'")
    made({**values, "host_key": line}).close()


@pytest.mark.parametrize("form", ["a .pub line", "a line of ssh-keyscan", "a fingerprint", "with others"])
def test_forms_of_a_host_key(form: str, values: dict[str, str]) -> None:
    """Goal: what tools print can be pasted; open by each form."""
    kind, text = values["host_key"].split()[:2]
    printed = next(iter(config(values).host_keys()))
    key = {
        "a .pub line": f"{kind} {text} root@server",
        "a line of ssh-keyscan": f"# comment\n[127.0.0.1]:22 {kind} {text}",
        "a fingerprint": printed,
        "with others": f"{new_key()[1]}\n\n{printed}",
    }[form]
    made({**values, "host_key": key}).close()


def test_a_server_with_several_host_keys(own_server: Sshd) -> None:
    """Goal: whichever of its keys the operator compared is the one that counts; know each by line and by fingerprint."""
    others = own_server.add_host_keys()
    for line in others:
        fingerprint = next(iter(config({**own_server.values(), "host_key": line}).host_keys()))
        for known in (line, fingerprint):
            made({**own_server.values(), "host_key": known}).close()
    stranger = next(iter(config({**own_server.values(), "host_key": new_key()[1]}).host_keys()))
    with pytest.raises(StoreDenied, match="is not the server that is known"):
        made({**own_server.values(), "host_key": stranger})


def test_another_server_gets_nothing(own_server: Sshd) -> None:
    """Goal: no password and no key goes to somebody in between; know another host key, and read the server's log."""
    values = {**own_server.values(), "host_key": new_key()[1]}
    with pytest.raises(StoreDenied, match="is not the server that is known") as caught:
        made(values)
    assert "SHA256:" in caught.value.message and "in between" in caught.value.hint
    log = (own_server.folder / "log").read_text()
    assert "Accepted" not in log and "Failed" not in log and "for user" not in log


# ---------------------------------------------------------------- settings and credentials


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""), ("host", "a b"), ("user", "a\nb"), ("port", "0"), ("port", "70000"), ("folder", ""), ("folder", "/"),
        ("folder", ".."), ("folder", "a\nb"), ("host_key", "nonsense"), ("host_key", "ssh-ed25519 AAAA"), ("key", ""),
        ("key", "no key at all"), ("connect_seconds", "0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_right(name: str, value: str, values: dict[str, str]) -> None:
    """Goal: nonsense is refused before anything is sent; try each, and look for the key in the message."""
    with pytest.raises(UsageError) as caught:
        made({**values, name: value})
    assert "PRIVATE KEY" not in str(caught.value)


def test_keys_under_a_passphrase(values: dict[str, str], server: Sshd) -> None:
    """Goal: a key need not lie open; open with the right passphrase, a wrong one and none."""
    private, public = new_key("secret words")
    with open(server.folder / "authorized_keys", "a") as keys:
        keys.write(f"\n{public}\n")
    made({**values, "key": private, "key_passphrase": "secret words"}).close()
    with pytest.raises(UsageError, match="passphrase"):
        made({**values, "key": private})
    with pytest.raises(UsageError, match="passphrase is another one"):
        made({**values, "key": private, "key_passphrase": "other words"})


@root_only
def test_a_password_serves_too(values: dict[str, str]) -> None:
    """Goal: servers without keys can be used; open by password alone, then by a wrong one."""
    del values["key"]
    store = made({**values, "password": PASSWORD})
    store.create("k", [b"x"])
    store.close()
    with pytest.raises(StoreDenied, match="refuses user"):
        made({**values, "password": "wrong"})


@pytest.mark.parametrize("wrong", ["key", "user"])
def test_refused_credentials_are_tried_once(wrong: str, own_server: Sshd) -> None:
    """Goal: a wrong key locks nobody out; open through the retries with a stranger's key and as nobody, and count."""
    values = {**own_server.values(), **({"key": new_key()[0]} if wrong == "key" else {"user": "nobody-of-that-name"})}
    with pytest.raises(StoreDenied) as caught:
        made(values)
    assert "authorized_keys" in caught.value.hint
    log = (own_server.folder / "log").read_text()
    assert log.count("Failed publickey") + log.count("Invalid user") == 1


def test_an_unreachable_server_is_said_in_words(values: dict[str, str]) -> None:
    """Goal: a wrong port, a wrong name and something that is no SSH server are told apart from refusals; open each."""
    from tests.services.fake_gcs import fake_gcs

    other = fake_gcs()
    wrong = [{"port": "1"}, {"host": "no-such-host.invalid"}, *([{"port": str(other.port)}] if other else [])]
    for each in wrong:
        with pytest.raises(StoreUnreachable) as caught:
            made({**values, **each, "connect_seconds": "2"})
        assert caught.value.hint and caught.value.retryable


@root_only
def test_missing_rights_are_named(values: dict[str, str], server: Sshd) -> None:
    """Goal: a folder that may not be written is a refusal, not an outage; take the right away."""
    store = made(values)
    store.create("a/k", [b"x"])
    folder = server.path(values)
    for path in (folder / ".tmp", folder / "a"):
        path.chmod(0o500)
    calls: list[Callable[[], object]] = [lambda: store.put("a/k", [b"y"]), lambda: store.delete("a/k")]
    for call in calls:
        with pytest.raises(StoreDenied) as caught:
            call()
        assert values["user"] in caught.value.hint
    (folder / "a").chmod(0o700)
    (folder / "a" / "k").chmod(0)
    with pytest.raises(StoreDenied):
        store.get("a/k")
    store.close()


@pytest.mark.parametrize("missing", ["hardlink", "posix-rename", "fsync", "statvfs"])
def test_a_server_that_cannot_decide_is_refused(missing: str) -> None:
    """Goal: no manifests where two writers could both win or an fsync is not to be had; forbid each extension in turn."""
    if sshd_program() is None:
        absent("sshd")
    server = Sshd.start(options=f"-P {missing}")
    try:
        with pytest.raises(StoreError, match=f"{missing}@openssh.com") as caught:
            made(server.values())
        assert "OpenSSH" in caught.value.hint
    finally:
        server.discard()


# ---------------------------------------------------------------- the place


def operations(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.get("a/k"),
        lambda: store.stat("a/k"),
        lambda: list(store.list("")),
        lambda: list(store.list("a/")),
        lambda: store.delete("a/k"),
        lambda: store.put("a/k", [b"y"]),
        lambda: store.create("a/l", [b"y"]),
    ]


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_vanished_folder_is_no_empty_store(left: str, values: dict[str, str], server: Sshd) -> None:
    """Goal: a disk that is not mounted on the server never looks like deleted backups; take the folder away."""
    store = made(values)
    store.put("a/k", [b"x"])
    folder = server.path(values)
    folder.rename(folder.with_name(f"{folder.name}-elsewhere"))
    if left == "an empty folder":
        folder.mkdir()
        os.chown(folder, *(os.stat(server.home)[4:6] if as_root() else (-1, -1)))
    calls: list[Callable[[], object]] = [*operations(store), lambda: opened(values).stat("a/k")]
    for operation in calls:
        with pytest.raises(StoreUnreachable) as caught:
            operation()
        assert caught.value.hint
    if left == "an empty folder":
        assert os.listdir(folder) == []
        folder.rmdir()
    folder.with_name(f"{folder.name}-elsewhere").rename(folder)
    store.put("b/k", [b"z"])
    assert [info.key for info in store.list("")] == ["a/k", "b/k"]
    store.close()


def test_opening_makes_nothing(values: dict[str, str], server: Sshd) -> None:
    """Goal: a store begins only where one was added; open what is none."""
    with pytest.raises(StoreUnreachable):
        opened(values).put("k", [b"x"])
    assert not server.path(values).exists()


def test_everything_is_private_and_durable_in_order(values: dict[str, str], server: Sshd, asked: "Asked") -> None:
    """Goal: bytes, then name, then folder, and nobody else reads them; look at the requests of a create, and at the modes."""
    store = made({**values, "folder": f"{values['folder']}/new/deeper"})
    asked.kinds.clear()
    store.create("a/b/k", [b"x" * 100_000])
    order = [kind for kind in asked.kinds if kind in ("write", "fsync", "hardlink@openssh.com", "mkdir")]
    assert order == ["write"] * 4 + ["fsync", "mkdir", "fsync", "mkdir", "fsync", "hardlink@openssh.com", "fsync"]
    if as_root():
        made_of = list(server.path(values).rglob("*"))
        assert {stat.S_IMODE(path.stat().st_mode) for path in made_of if path.is_dir()} == {0o700}
        assert {stat.S_IMODE(path.stat().st_mode) for path in made_of if path.is_file()} == {0o600}
    store.close()


def test_stale_temporary_files_are_cleared_on_opening(values: dict[str, str], server: Sshd) -> None:
    """Goal: killed writers' leftovers do not pile up, running writers keep theirs; open over one of each."""
    made(values).close()
    temp = server.path(values) / ".tmp"
    for name, age in (("old", TEMP_AGE_MAX_SECONDS + 60), ("young", TEMP_AGE_MAX_SECONDS - 60)):
        (temp / name).write_bytes(b"half")
        os.utime(temp / name, times=(time.time() - age,) * 2)
    assert list(opened(values).list("")) == []
    assert os.listdir(temp) == ["young"]


def test_only_objects_are_listed_and_read(
    store: SftpStore, values: dict[str, str], server: Sshd, request: pytest.FixtureRequest
) -> None:
    """Goal: what is not an object never shows, and a pipe blocks nobody; put links, pipes and dot files beside one."""
    store.put("a/k", [b"x"])
    folder = server.path(values)
    (folder / "lost+found").mkdir()
    (folder / "a" / ".hidden").write_bytes(b"")
    (folder / "a" / "link").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to("/etc")
    os.mkfifo(folder / "a" / "pipe")
    request.addfinalizer(lambda: os.close(os.open(folder / "a" / "pipe", os.O_RDWR)))  # The server waits there.
    assert [info.key for info in store.list("")] == ["a/k"]
    for key in ("a/link", "a/pipe", "linked", "a"):
        with pytest.raises(ObjectMissing):
            store.get(key)
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", [b"x"]),
        lambda: store.create("a", [b"x"]),
        lambda: store.put("a/k/l", [b"x"]),
    ]
    for call in calls:
        with pytest.raises(StoreError, match="folder"):
            call()
    assert store.get("a/k") == b"x"
