"""Every kind of store from the command line: a tenant's life with its repository there, and what a wrong setting says."""

import os
from pathlib import Path

from tests.e2e.program import Program, tree
from tests.services.absent import absent
from tests.services.kinds import KINDS, StoreValues
from tests.services.sshd import sshd


def settings(values: dict[str, str], folder: Path) -> list[str]:
    """`--set` for each; what is long or secret comes from a file, as an operator gives it."""
    options = []
    for name, value in values.items():
        if "\n" in value or name in ("key", "secret_key", "account_key"):
            (folder / name).write_text(value)
            value = f"@{folder / name}" if name != "host_key" else value.strip()
        options += ["--set", f"{name}={value}"]
    return options


def test_a_tenants_life_in_each_kind_of_store(tmp_path: Path, store_values: StoreValues) -> None:
    """Goal: nothing but the settings differs; in each store back up twice, verify deep, restore, end one backup, prune."""
    program = Program(tmp_path / "data")
    for kind in (kind for kind in KINDS if kind != "local"):
        _live(kind, program, store_values(kind), tmp_path / kind)


def _live(kind: str, program: Program, values: dict[str, str], place: Path) -> None:
    folder = place / "assets"
    for made in (folder / "sub", place / "secrets"):
        made.mkdir(parents=True)
    for number in range(12):
        (folder / "sub" / f"f{number}").write_bytes(os.urandom(100 if number % 3 else 400_000))
    added = program("store", "add", kind, "--kind", kind, *settings(values, place / "secrets"))
    secrets = [values[name] for name in ("key", "secret_key", "account_key") if name in values]
    assert not any(secret in str(added) for secret in secrets)
    program("tenant", "add", kind, "--name", kind.title(), "--store", kind)
    program("source", "add", kind, "files", "--kind", "files", "--category", "assets", "--set", f"path={folder}")

    first = program.backup(kind)
    (folder / "sub" / "f1").write_bytes(b"changed")
    (folder / "sub" / "f0").unlink()
    (folder / "new").write_bytes(os.urandom(300_000))
    second = program.backup(kind, "incremental")
    assert second["stored_bytes"] < first["stored_bytes"]
    program("backup", "delete", first["id"], "--now", "--confirm", kind, "--here")
    program("backup", "prune", kind, "--here")
    assert program("backup", "verify", second["id"], "--deep", "--here")["findings"] == []
    program.restore(second["id"], kind, "--target", f"path={place / 'out'}")
    assert tree(place / "out") == tree(folder)


def test_an_unknown_host_key_is_shown_and_refused(program: Program, tmp_path: Path) -> None:
    """Goal: the first thing an operator meets is said so that it can be done; add without a host key, then as told."""
    server = sshd()
    if server is None:
        absent("sshd")
    values = server.values()
    line = values.pop("host_key").strip()
    (tmp_path / "secrets").mkdir()
    refused = program.raw("store", "add", "far", "--kind", "sftp", *settings(values, tmp_path / "secrets"))
    assert refused.code == 2
    assert "SHA256:" in refused.err and "ssh-keygen -lf" in refused.err and line.split()[1] in refused.err
    assert "PRIVATE" not in refused.err
    program("store", "add", "far", "--kind", "sftp", *settings({**values, "host_key": line}, tmp_path / "secrets"))
