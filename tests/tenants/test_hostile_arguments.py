"""What a hostile or clumsy person can type: never a traceback, never an exit code that is not documented."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from access.models import Account
from core.cli_output import ERROR_CHARS_MAX
from core.errors import Exit
from tests.tenants.conftest import House

X = "\0X\0"
"""Where the nasty value goes."""
NASTY = {
    "empty": "",
    "blank": " ",
    "newline": "a\nb",
    "NUL": "a\0b",
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
    "10 MB": "x" * 10_000_000,
    "long": "x" * 30_000,
    "escape": "\x1b[2J\x07",
    "option": "-1",
    "file": "/etc/passwd",
    "above": "../../x",
    "SQL": "'; DROP TABLE tenants_tenant; --",
    "wide": "ü€😀",
    "number": "9" * 30,
    "format": "%s%n{0}",
    "no file": "@/none",
    "folder": "@/tmp",
    "endless": "@/dev/zero",
    "binary": "@/bin/true",
    "no variable": "env:NOPE",
    "no time": "2026-13-45",
    "future": "2999-01-01",
    "end of time": "9999-12-31T23:59:59-14:00",
    "first day": "0001-01-01T00:00:00+14:00",
    "no zone": "2026-11-22T08:00:00",
}
FILES = ("source", "add", "aurora", "x", "--kind", "files", "--category", "assets")
POSTGRES = ("source", "add", "aurora", "x", "--kind", "postgresql", "--category", "database")
DEAD = ("--set", "dsn=postgresql://127.0.0.1:1/none")
CALLS: tuple[tuple[str, ...], ...] = (
    ("tenant", X),
    ("tenant", "add", X, "--name", "x"),
    ("tenant", "add", "new", "--name", X, "--store", "none"),
    ("tenant", "add", "new", "--name", "x", "--store", X),
    ("tenant", "add", "new", "--name", "x", "--class", X),
    ("tenant", "list", "--after", X),
    ("tenant", "list", "--limit", X),
    ("tenant", "show", X),
    ("tenant", "set", X, "--name", "x"),
    ("tenant", "set", "aurora", "--name", X),
    ("tenant", "set", "aurora", "--platform-version", X),
    ("tenant", "remove", X),
    ("tenant", "remove", "aurora", "--no-input", "--confirm", X),
    ("tenant", "reinstate", X),
    ("store", "add", X, "--kind", "local", "--set", "path=/proc/none"),
    ("store", "add", "new", "--kind", X),
    ("store", "add", "new", "--kind", "local", "--set", X),
    ("store", "add", "new", "--kind", "local", "--set", f"{X}=x"),
    ("store", "add", "new", "--kind", "local", "--set", f"path={X}"),
    ("store", "add", "new", "--kind", "local", "--set", f"path=/proc/{X}"),
    ("store", "test", X),
    ("source", "add", X, "x", "--kind", "files", "--category", "assets"),
    ("source", "add", "aurora", X, "--kind", "files", "--category", "assets", "--set", "path=/none"),
    ("source", "add", "aurora", "x", "--kind", X, "--category", "assets"),
    ("source", "add", "aurora", "x", "--kind", "files", "--category", X),
    (*FILES, "--set", X),
    (*FILES, "--set", f"{X}=1"),
    (*FILES, "--set", f"path={X}"),
    (*FILES, "--set", f"path=/none/{X}"),
    (*FILES, "--set", "path=/none", "--set", f"exclude={X}"),
    ("source", "add", "aurora", "x", "--kind", "sqlite", "--category", "database", "--set", f"path={X}"),
    ("source", "add", "aurora", "x", "--kind", "eventlog", "--category", "database", "--set", f"path={X}"),
    (*POSTGRES, "--set", f"dsn={X}"),
    (*POSTGRES, *DEAD, "--set", f"layout={X}"),
    (*POSTGRES, *DEAD, "--set", "layout=schema", "--set", f"schema={X}"),
    (*POSTGRES, *DEAD, "--set", "layout=rows", "--set", f"tenant_column={X}", "--set", f"tenant_value={X}"),
    ("source", "set", "aurora", X, "--set", "path=/none"),
    ("source", "set", "aurora", "assets", "--set", f"path={X}"),
    ("source", "test", "aurora", X),
    ("source", "list", X),
    ("source", "show", "aurora", X),
    ("source", "enable", "aurora", X),
    ("source", "remove", "aurora", X),
    ("source", "remove", "aurora", "assets", "--no-input", "--confirm", X),
    ("source", "reinstate", "aurora", X),
    ("backup", "create", X, "--here"),
    ("backup", "create", "aurora", "--type", X),
    ("backup", "create", "aurora", "--here", "--source", X),
    ("backup", "create", "aurora", "--here", "--since", X),
    ("backup", "create", "aurora", "--here", "--tag", X),
    ("backup", "create", "aurora", "--here", "--reason", X),
    ("backup", "list", X),
    ("backup", "list", "aurora", "--tag", X),
    ("backup", "list", "aurora", "--before", X),
    ("backup", "list", "aurora", "--state", X),
    ("backup", "show", X),
    ("backup", "verify", X, "--here"),
    ("backup", "export", X, "--output", "/none"),
    ("backup", "export", "BACKUP", "--output", f"/proc/none/{X}"),
    ("backup", "import", X, "--tenant", "aurora", "--source", "assets", "--here"),
    ("backup", "prune", X),
    ("backup", "delete", X),
    ("backup", "delete", "BACKUP", "--no-input", "--confirm", X),
    ("backup", "hold", "BACKUP", "--reason", X),
    ("backup", "release", "BACKUP", "--reason", X),
    ("operation", "show", X),
    ("operation", "list", X),
    ("operation", "list", "--before", X),
    ("operation", "cancel", X),
    ("operation", "cancel", "OPERATION", "--reason", X),
    ("operation", "retry", X, "--here"),
    ("operation", "retry", "OPERATION", "--here", "--reason", X),
    ("operation", "run", X),
    ("restore", "show", X),
    ("restore", "list", X),
    ("master", "add", X),
    ("token", "add", X, "--scope", "read"),
    ("token", "add", "t", "--scope", X),
    ("token", "add", "t", "--scope", "read", "--tenant", X),
    ("token", "add", "t", "--scope", "read", "--master", X),
    ("token", "add", "t", "--scope", "read", "--days", X),
    ("token", "revoke", X),
    ("kit", "import", X, "--passphrase", "x"),
    ("kit", "export", "--output", "/proc/none", "--passphrase", X),
    ("module", "list", X),
    ("audit", "list", "--tenant", X),
    ("audit", "list", "--since", X),
    ("audit", "list", "--limit", X),
    ("audit", "export", "--format", X),
    ("demo", "run", "--no-serve", "--port", X, "--nothing"),
)


@pytest.fixture
def filled(house: House) -> Iterator[dict[str, str]]:
    tenant = house.tenant()
    house.files(tenant)
    Account.objects.create(username="boss", is_master=True)
    backup = house.backup(tenant)
    yield {"BACKUP": backup.pk, "OPERATION": backup.operation_id}
    assert [row.slug for row in type(tenant).objects.filter(pk=tenant.pk)] == ["aurora"]


@pytest.mark.parametrize("nasty", NASTY)
def test_nothing_that_can_be_typed_is_unforeseen(
    filled: dict[str, str], nasty: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Goal: every argument of every verb is refused or taken, in words; put a nasty value in the place of each."""
    documented = {int(code) for code in Exit}
    for call in CALLS:
        noun, *argv = [filled.get(word, word).replace(X, NASTY[nasty]) for word in call]
        try:
            code = load_command_class(get_commands()[noun], noun).run(argv)
        except SystemExit as ended:  # `--help`, which prints and ends.
            code = ended.code
        said = capsys.readouterr()
        text = said.out + said.err
        assert code in documented, (call, code)
        for word in ("Traceback", "unforeseen", "refused a statement", "cannot be used"):
            assert word not in text, (call, text[-600:])
        if code not in (Exit.OK, Exit.WARNED):
            assert said.err.startswith(("error: ", "warning: ", "note: ")), (call, said.err[:200])
        assert len(said.err) < 4 * ERROR_CHARS_MAX, call
        assert not set(said.err) & {"\x1b", "\x07", "\0"}, call


@pytest.mark.parametrize("there", ["file", "FIFO", "socket", "unreadable", "link to nothing", "loop", "device"])
@pytest.mark.parametrize("kind", ["files", "sqlite", "eventlog"])
def test_a_path_that_is_something_else_is_refused(
    filled: dict[str, str],
    there: str,
    kind: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Goal: nothing blocks and nothing is unforeseen; name a FIFO, a file, a loop as the folder of each kind."""
    monkeypatch.setattr("engine.bounded.PIPE_SECONDS_MAX", 0.1)
    place = tmp_path / "odd"
    if there == "file":
        place.write_bytes(os.urandom(5000))
    elif there == "FIFO":
        os.mkfifo(place)
    elif there == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(place))
    elif there == "unreadable":
        place.mkdir(mode=0)
    elif there == "device":
        place = Path("/dev/null")
    else:
        place.symlink_to(place if there == "loop" else tmp_path / "none")
    category = "assets" if kind == "files" else "database"
    for argv in (
        ["source", "add", "aurora", "odd", "--kind", kind, "--category", category, "--set", f"path={place}"],
        [
            "source",
            "add",
            "aurora",
            "odd2",
            "--kind",
            kind,
            "--category",
            category,
            "--set",
            f"path={place}",
            "--no-test",
        ],
        ["backup", "create", "aurora", "--here", "--source", "odd2"],
        ["store", "add", "odd", "--kind", "local", "--set", f"path={place}"],
        ["kit", "import", str(place), "--passphrase", "five words are quite enough"],
        ["backup", "import", str(place), "--tenant", "aurora", "--source", "assets", "--here"],
        ["backup", "export", filled["BACKUP"], "--output", str(place)],
    ):
        code = load_command_class(get_commands()[argv[0]], argv[0]).run(argv[1:])
        said = capsys.readouterr()
        assert code in {int(each) for each in Exit}, argv
        assert "unforeseen" not in said.err, (argv, said.err)
        assert "Traceback" not in said.err
