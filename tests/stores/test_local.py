"""The local store under power cuts, kills, full disks and refusals."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.adapters import parse_config
from engine.errors import (
    LastroError,
    ObjectExists,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
    UsageError,
)
from stores.local import MARKER, TEMP_AGE_MAX_SECONDS, LocalConfig, LocalStore
from tests.stores.disk import Disk

ROOT = Path(__file__).resolve().parents[2]
WRITERS = ("put", "create")
UNNAMED = ("store.local.written", "store.local.synced")
NAMED = {"put": "store.local.renamed", "create": "store.local.linked"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path) -> LocalStore:
    return LocalStore.make(LocalConfig(path=str(folder)))


def temporary_files(folder: Path) -> list[str]:
    return os.listdir(folder / ".tmp")


def write(store: LocalStore, how: str, key: str, content: bytes) -> None:
    getattr(store, how)(key, [content])


# ---------------------------------------------------------------- opening


@pytest.mark.parametrize("path", ["store", "./store", "../store", "~/store", "", "/a\0b"])
def test_relative_paths_are_refused(path: str) -> None:
    """Goal: a store is the same folder in every process; try paths that depend on who opens them."""
    with pytest.raises(UsageError) as caught:
        LocalStore.make(LocalConfig(path=path))
    assert caught.value.hint


def test_settings_come_from_text(folder: Path) -> None:
    """Goal: `--set path=DIR` is all it takes; build the Config as the command line does."""
    assert parse_config(LocalStore.Config, {"path": str(folder)}) == LocalConfig(path=str(folder))
    with pytest.raises(UsageError, match="path"):
        parse_config(LocalStore.Config, {})


def test_everything_is_private(store: LocalStore, folder: Path) -> None:
    """Goal: other users of the host see nothing; look at the modes of all that was made."""
    store.create("a/b/c", [b"x"])
    store.put("a/d", [b"x"])
    modes = {path.relative_to(folder.parent): path.stat().st_mode & 0o7777 for path in [folder, *folder.rglob("*")]}
    assert {mode for path, mode in modes.items() if (folder.parent / path).is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if (folder.parent / path).is_file()} == {0o600}


def test_stale_temporary_files_are_cleared_on_opening(store: LocalStore, folder: Path) -> None:
    """Goal: killed writers' leftovers do not pile up, running writers keep theirs; open over one of each."""
    for name, age in (("1-old", TEMP_AGE_MAX_SECONDS + 60), ("2-young", TEMP_AGE_MAX_SECONDS - 60)):
        (folder / ".tmp" / name).write_bytes(b"half")
        os.utime(folder / ".tmp" / name, times=(time.time() - age,) * 2)
    LocalStore(LocalConfig(path=str(folder)))
    assert temporary_files(folder) == ["2-young"]


def test_a_vanished_folder_is_no_empty_store(store: LocalStore, folder: Path) -> None:
    """Goal: an unmounted disk never looks like deleted backups; take the folder away under an open store."""
    store.put("a/k", [b"x"])
    folder.rename(folder.with_name("elsewhere"))
    operations: list[Callable[[], object]] = [
        lambda: store.get("a/k"),
        lambda: store.stat("a/k"),
        lambda: list(store.list("")),
        lambda: list(store.list("a/")),
        lambda: store.delete("a/k"),
        lambda: store.put("a/k", [b"y"]),
        lambda: store.create("a/l", [b"y"]),
        store.free_bytes,
    ]
    for operation in operations:
        with pytest.raises(StoreUnreachable) as caught:
            operation()
        assert caught.value.hint
    folder.with_name("elsewhere").rename(folder)
    store.put("b/k", [b"z"])
    assert [info.key for info in store.list("")] == ["a/k", "b/k"]


def test_an_empty_mount_point_is_no_empty_store(store: LocalStore, folder: Path) -> None:
    """Goal: the same where the folder stays, as a mount point does; put an empty one in its place, open one anew."""
    store.put("a/k", [b"x"])
    folder.rename(folder.with_name("elsewhere"))
    folder.mkdir()
    operations: list[Callable[[], object]] = [
        lambda: LocalStore(LocalConfig(path=str(folder))),
        lambda: store.get("a/k"),
        lambda: store.stat("a/k"),
        lambda: list(store.list("")),
        lambda: list(store.list("a/")),
        lambda: store.delete("a/k"),
        lambda: store.put("a/k", [b"y"]),
        lambda: store.create("a/l", [b"y"]),
    ]
    for operation in operations:
        with pytest.raises(StoreUnreachable) as caught:
            operation()
        assert "mounted" in caught.value.hint
    assert os.listdir(folder) == []
    folder.rmdir()
    folder.with_name("elsewhere").rename(folder)
    assert LocalStore(LocalConfig(path=str(folder))).get("a/k") == b"x"


@pytest.mark.parametrize("there", ["nothing", "a file", "an empty folder"])
def test_opening_makes_nothing(folder: Path, there: str) -> None:
    """Goal: a store begins only where one was added; open what is none and look what is there afterwards."""
    if there == "a file":
        folder.write_text("no folder")
    elif there == "an empty folder":
        folder.mkdir()
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(StoreUnreachable):
        LocalStore(LocalConfig(path=str(folder)))
    assert sorted(folder.parent.rglob("*")) == before


def test_a_store_made_before_there_were_markers_opens(store: LocalStore, folder: Path) -> None:
    """Goal: no store that exists is refused; take the marker away, and keep the repositories' folder."""
    store.put("r/one/config", [b"x"])
    (folder / MARKER).unlink()
    assert LocalStore(LocalConfig(path=str(folder))).get("r/one/config") == b"x"


def test_many_are_deleted_as_one_is(store: LocalStore, folder: Path) -> None:
    """Goal: the same promise, cheaper; delete some of several folders, some that are gone, then without the disk."""
    for name in ("a/1", "a/2", "b/1", "c"):
        store.put(name, [b"x"])
    store.delete_many(["a/1", "b/1", "b/2", "none/at/all"])
    assert [info.key for info in store.list("")] == ["a/2", "c"]
    with pytest.raises(UsageError):
        store.delete_many(["a/2", "../x"])
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StoreUnreachable):
        store.delete_many(["a/2"])


def test_free_bytes_is_the_file_systems(store: LocalStore, folder: Path) -> None:
    """Goal: doctor can warn before it is full; compare with df, which may move a little meanwhile."""
    said = subprocess.run(["df", "-B1", "--output=avail", folder], capture_output=True, text=True, check=True).stdout
    assert abs(store.free_bytes() - int(said.split()[1])) < 1 << 30


# ---------------------------------------------------------------- listing


def test_only_objects_are_listed(store: LocalStore, folder: Path) -> None:
    """Goal: what is not an object never shows; put links, pipes, dot files and a half-written one beside one object."""
    store.put("a/k", [b"x"])
    (folder / ".tmp" / "1-half").write_bytes(b"half")
    (folder / "lost+found").mkdir()
    (folder / "lost+found" / "x").write_bytes(b"")
    (folder / "a" / ".hidden").write_bytes(b"")
    (folder / "a" / "link").symlink_to("/etc/passwd")
    (folder / "linked").symlink_to("/etc")
    os.mkfifo(folder / "a" / "pipe")
    assert [info.key for info in store.list("")] == ["a/k"]
    for key in ("a/link", "a/pipe", "linked"):
        with pytest.raises(StoreError):
            store.get(key)


def test_listing_streams(store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: the first key comes before the whole store was read; count the folders opened for it."""
    for number in range(50):
        store.put(f"packs/{number:02x}/x", [b""])
    opened: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or real(path))
    listing = store.list("")
    assert next(listing).key == "packs/00/x"
    assert len(opened) == 3
    assert len(list(listing)) == 49
    opened.clear()
    assert [info.key for info in store.list("packs/07/")] == ["packs/07/x"]
    assert opened == [str(folder / "packs" / "07")]


# ---------------------------------------------------------------- power cuts and kills


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("made", [False, True])
def test_acknowledged_writes_survive_a_power_cut(
    how: str, made: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: bytes, then name, then folders are durable before a write returns; watch the calls of a first and a later writer."""
    path = str(tmp_path / "new" / "deeper" / "store")
    if made:
        # Another process has just made the folders and was killed before it synced them.
        os.makedirs(f"{path}/.tmp", mode=0o700)
        os.makedirs(f"{path}/a/b", mode=0o700)
    disk = Disk(monkeypatch)
    if made:
        for below in ("/.tmp", "/a", "/a/b"):
            disk._after_mkdir(path + below)
    store = LocalStore.make(LocalConfig(path=path))
    assert disk.in_danger(ignore=f"{path}/a") == []
    write(store, how, "a/b/k", b"content")
    assert disk.in_danger(ignore=f"{path}/.tmp/") == []
    write(store, how, "a/b/l", b"content")
    assert disk.in_danger(ignore=f"{path}/.tmp/") == []


def test_a_twin_is_made_durable_before_it_counts(
    store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: "exists already, same bytes" is an acknowledgement too; repeat a create whose folder was not synced."""
    store.create("a/k", [b"x"])
    disk = Disk(monkeypatch)
    disk._after_mkdir(str(folder / "a" / "k"))
    store.create("a/k", [b"x"])
    assert disk.in_danger(ignore=f"{folder}/.tmp/") == []


def test_a_deleted_object_does_not_come_back(store: LocalStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a shredded key stays gone after a power cut; the folder is durable before delete returns."""
    store.put("keyrings/k", [b"x"])
    disk = Disk(monkeypatch)
    store.delete("keyrings/k")
    assert disk.removals_in_danger == {}


@pytest.mark.parametrize("how", WRITERS)
def test_a_failing_fsync_is_never_acknowledged(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: every fsync counts; fail each one in turn, from opening to the last, and expect an error each time."""
    real, failed_at = os.fsync, 0

    def fsync(fd: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    for number in range(1, 20):
        left = number
        monkeypatch.setattr(os, "fsync", fsync)
        place = folder / str(number)
        try:
            write(LocalStore.make(LocalConfig(path=str(place))), how, "a/k", b"x")
        except StoreUnreachable:
            failed_at = number
        monkeypatch.setattr(os, "fsync", real)
        assert not (place / ".tmp").exists() or temporary_files(place) == []
        if left > 0:
            break
        write(LocalStore.make(LocalConfig(path=str(place))), how, "a/k", b"x")
    assert failed_at >= 5  # the root, .tmp, the bytes, the folder's name, the object's name


@pytest.mark.parametrize(("how", "point"), [(how, point) for how in WRITERS for point in (*UNNAMED, NAMED[how])])
def test_killed_writers_leave_whole_objects_or_none(how: str, point: str, store: LocalStore, folder: Path) -> None:
    """Goal: SIGKILL at each labelled point tears nothing and a repeat ends well; kill a writer there, then look and repeat."""
    store.put("a/old", [b"old"])
    program = (
        "import sys; from stores.local import LocalConfig, LocalStore;"
        "s = LocalStore(LocalConfig(path=sys.argv[1])); getattr(s, sys.argv[2])('a/new', [b'new' * 100_000])"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, folder, how],
        env={**os.environ, "PYTHONPATH": str(ROOT / "platform"), "LASTRO_KILL_AT": point},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    shown = {info.key: info.size for info in store.list("")}
    assert shown in ({"a/old": 3}, {"a/old": 3, "a/new": 300_000})
    assert ("a/new" in shown) == (point not in UNNAMED)
    write(store, how, "a/new", b"new" * 100_000)
    assert store.get("a/new") == b"new" * 100_000


# ---------------------------------------------------------------- full, refused, broken


def test_a_full_disk_is_a_typed_error_and_leaves_no_rest(tmp_path: Path) -> None:
    """Goal: ENOSPC fails cleanly and what was there stays; fill a 1 MiB file system of its own."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mounted], capture_output=True).returncode:
        pytest.skip("only root may mount; test_a_file_size_limit_is_a_full_store tries the same path")
    try:
        store = LocalStore.make(LocalConfig(path=str(mounted / "store")))
        store.create("kept", [b"x" * 300_000])
        for how in WRITERS:
            with pytest.raises(StoreFull) as caught:
                write(store, how, "big", b"x" * 900_000)
            assert caught.value.hint
            assert not caught.value.retryable
        assert temporary_files(mounted / "store") == []
        assert store.get("kept") == b"x" * 300_000
        store.create("small", [b"y" * 300_000])
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.fixture
def file_size_limit() -> Iterator[int]:
    """Files of this process may not grow beyond 100,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("how", WRITERS)
def test_a_file_size_limit_is_a_full_store(how: str, store: LocalStore, folder: Path, file_size_limit: int) -> None:
    """Goal: EFBIG in mid-write fails cleanly; write one byte more than allowed, in two parts."""
    store.put("k", [b"old"])
    with pytest.raises(StoreFull):
        getattr(store, how)("k" if how == "put" else "l", [b"x" * (file_size_limit - 1), b"xx"])
    assert temporary_files(folder) == []
    assert [(info.key, info.size) for info in store.list("")] == [("k", 3)]


@pytest.mark.parametrize("size", [0, 1, 7, 65_536])
def test_short_writes_are_continued(store: LocalStore, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Goal: a kernel that takes fewer bytes loses none; let writev take one byte, a few, or what crosses parts."""
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [b"".join(views)[: size or 1 << 30]]))
    parts = [bytes([n % 251]) * (n % 5) for n in range(1200)] + [b"tail" * (50 if size < 7 else 50_000)]
    store.create("k", parts)
    assert store.get("k") == b"".join(parts)


ERRNOS: list[tuple[int, type[LastroError]]] = [
    (errno.ENOSPC, StoreFull),
    (errno.EDQUOT, StoreFull),
    (errno.EFBIG, StoreFull),
    (errno.EACCES, StoreDenied),
    (errno.EPERM, StoreDenied),
    (errno.EROFS, StoreDenied),
    (errno.EIO, StoreUnreachable),
    (errno.ESTALE, StoreUnreachable),
    (errno.EMFILE, StoreUnreachable),
]


@pytest.mark.parametrize(
    ("number", "expected"), ERRNOS, ids=lambda value: errno.errorcode.get(value, "") if isinstance(value, int) else ""
)
@pytest.mark.parametrize("call", ["open", "writev", "fsync", "rename", "unlink", "statvfs"])
def test_errors_are_typed(
    call: str, number: int, expected: type[LastroError], store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Goal: the operator reads what to do, the retry knows whether to go on; fail each system call with each error."""
    store.put("a/k", [b"old"])

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    operation = {
        "unlink": lambda: store.delete("a/k"),
        "statvfs": store.free_bytes,
    }.get(call, lambda: store.put("a/k", [b"new"]))
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(expected) as caught:
            operation()
    assert type(caught.value) is expected
    assert caught.value.hint
    assert caught.value.retryable == (expected is StoreUnreachable)
    if call in ("open", "writev", "rename", "unlink"):
        assert store.get("a/k") == b"old"


def test_a_file_system_without_links_is_refused(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Goal: a place that cannot decide who was first says so; let link fail as FAT does."""

    def link(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(StoreDenied, match="hard links"):
        store.create("k", [b"x"])


def test_a_key_is_no_folder_of_another(store: LocalStore) -> None:
    """Goal: a clash of key and folder is final, not retried for ever; make both kinds of clash."""
    store.put("a/b", [b"x"])
    for how, key in (("put", "a"), ("create", "a"), ("put", "a/b/c"), ("create", "a/b/c")):
        with pytest.raises(StoreError) as caught:
            write(store, how, key, b"y")
        assert not caught.value.retryable
    assert store.get("a/b") == b"x"


def _as_nobody(work: Callable[[], None]) -> str:
    """Run `work` in a child without rights; the code of the error it ended with."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = "none"
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            work()
        except LastroError as error:
            answer = error.code
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def test_missing_rights_are_denied(store: LocalStore, folder: Path) -> None:
    """Goal: permissions are the kernel's word; read, write, list and open as a user without any."""
    store.put("a/k", [b"x"])
    folder.chmod(0o000)
    try:
        codes = [
            _as_nobody(lambda: store.put("a/k", [b"y"])),
            _as_nobody(lambda: list(store.list("")) and None),
            _as_nobody(lambda: LocalStore.make(LocalConfig(path=str(folder))) and None),
        ]
    finally:
        folder.chmod(0o700)
    assert codes == ["store.denied"] * 3


def test_two_processes_and_one_key(store: LocalStore, folder: Path) -> None:
    """Goal: the commit holds between processes; let four of them create the same hundred keys at once."""
    program = """
import json, sys
from engine.errors import ObjectExists
from stores.local import LocalConfig, LocalStore
store, me, won = LocalStore.make(LocalConfig(path=sys.argv[1])), sys.argv[2], []
sys.stdin.readline()
for n in range(100):
    try:
        store.create(f"race/{n}", [me.encode() * 100])
        won.append(n)
    except ObjectExists:
        pass
print(json.dumps(won))
"""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, folder, str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "platform")},
        )
        for number in range(4)
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sorted(n for numbers in won for n in numbers) == list(range(100))
    for number, numbers in enumerate(won):
        assert all(store.get(f"race/{n}") == str(number).encode() * 100 for n in numbers)
    with pytest.raises(ObjectExists):
        store.create("race/0", [b"late"])
