"""What a hostile or clumsy person can type: never a traceback, never an exit code that is not documented."""

import json
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
S3 = ("store", "add", "new", "--kind", "s3", "--set", "endpoint=http://127.0.0.1:9")
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
    ("store", "show", X),
    ("store", "remove", X),
    ("store", "set", X, "--offsite", "yes"),
    ("store", "set", "default", "--offsite", X),
    ("store", "set", "default", "--medium", X),
    ("store", "set", "default", "--paid", X),
    ("store", "set", "default", "--bandwidth", X),
    ("store", "set", "default", "--set", X),
    (*S3, "--set", f"bucket={X}"),
    (*S3, "--set", "bucket=bucket", "--set", f"prefix={X}"),
    (*S3, "--set", "bucket=bucket", "--set", f"region={X}"),
    (*S3, "--set", "bucket=bucket", "--set", f"storage_class={X}"),
    (*S3, "--set", "bucket=bucket", "--set", f"access_key={X}", "--set", "secret_key=x"),
    (*S3, "--set", "bucket=bucket", "--set", "access_key=x", "--set", f"secret_key={X}"),
    (*S3, "--set", "bucket=bucket", "--set", "sse=kms", "--set", f"sse_key={X}"),
    (*S3, "--set", "bucket=bucket", "--set", "lock_mode=governance", "--set", f"lock_days={X}"),
    (
        "store",
        "add",
        "new",
        "--kind",
        "s3",
        "--set",
        "bucket=bucket",
        "--set",
        f"endpoint={X}",
        "--set",
        "connect_seconds=1",
    ),
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
    ("alert", "list", "--rule", X),
    ("alert", "list", "--tenant", X),
    ("alert", "list", "--before", X),
    ("alert", "show", X),
    ("alert", "ack", X),
    ("alert", "mute", X, "--until", X),
    ("alert", "mute", X, "--hours", X),
    ("alert", "rules", "--tenant", X),
    ("alert", "rule", "set", X, "--enable"),
    ("alert", "rule", "set", "backup_age", "--set", X),
    ("alert", "rule", "set", "backup_age", "--set", f"hours={X}"),
    ("alert", "rule", "set", "backup_age", "--tenant", X, "--disable"),
    ("alert", "rule", "set", "backup_age", "--escalate", X),
    ("alert", "deliveries", "--channel", X),
    ("channel", "add", X, "--kind", "slack", "--set", "url=https://x.example/"),
    ("channel", "add", "x", "--kind", X),
    ("channel", "add", "x", "--kind", "email", "--set", f"to={X}"),
    ("channel", "add", "x", "--kind", "email", "--set", "to=a@b.org", "--set", f"host={X}"),
    ("channel", "add", "x", "--kind", "email", "--set", "to=a@b.org", "--set", f"port={X}"),
    ("channel", "add", "x", "--kind", "slack", "--set", f"url={X}"),
    ("channel", "add", "x", "--kind", "webhook", "--set", "url=https://x.example/", "--set", f"secret={X}"),
    ("channel", "add", "x", "--kind", "slack", "--set", "url=https://x.example/", "--step", X),
    ("channel", "add", "x", "--kind", "slack", "--set", "url=https://x.example/", "--tenant", X),
    ("channel", "set", X, "--step", "1"),
    ("channel", "show", X),
    ("channel", "remove", X),
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


NO_SUCH = (
    ("tenant", "show", "none"), ("source", "list", "none"), ("source", "show", "aurora", "none"),
    ("module", "list", "none"), ("module", "list", "aurora", "--source", "none"),
    ("backup", "list", "none"), ("backup", "list", "aurora", "--before", "bkp_none"), ("backup", "show", "bkp_none"),
    ("backup", "create", "none", "--here"), ("backup", "create", "aurora", "--source", "none", "--here"),
    ("backup", "browse", "BACKUP", "none"), ("backup", "browse", "BACKUP", "none", "--source", "db"),
    ("backup", "browse", "BACKUP", "none", "--source", "assets"), ("backup", "browse", "BACKUP", "--source", "none"),
    ("backup", "diff", "BACKUP", "bkp_none"), ("backup", "diff", "BACKUP", "BACKUP", "--source", "none"),
    ("backup", "import", "/none.tar.gz", "--tenant", "aurora", "--source", "assets"),
    ("restore", "list", "none"), ("restore", "plans", "none"), ("restore", "show", "rst_none"),
    ("restore", "show", "pln_none"), ("restore", "report", "rst_none", "--output", "/none"),
    ("restore", "undo", "rst_none", "--confirm", "aurora"), ("restore", "run", "pln_none", "--confirm", "aurora"),
    ("restore", "plan", "bkp_none"), ("restore", "plan", "BACKUP", "--source", "none"),
    ("restore", "plan", "BACKUP", "--mode", "selective", "--module", "none"),
    ("restore", "plan", "BACKUP", "--mode", "merge", "--policy", "none=take_backup"),
    ("restore", "plan", "BACKUP", "--mode", "merge", "--clock", "none=x"),
    ("restore", "plan", "BACKUP", "--mode", "merge", "--clock", "users=none"),
    ("restore", "plan", "BACKUP", "--mode", "merge", "--base", "bkp_none"),
    ("restore", "plan", "BACKUP", "--target", "none.path=/tmp/x"),
    ("drill", "run", "none"), ("drill", "run", "aurora", "--source", "none"), ("drill", "list", "none"),
    ("drill", "run", "aurora", "--backup", "bkp_none"), ("drill", "show", "drl_none"), ("drill", "checks", "none"),
    ("drill", "check-add", "aurora", "x", "--source", "none", "--sql", "SELECT 1", "--expect", "1"),
    ("drill", "check-remove", "aurora", "none", "--source", "db"), ("drill", "schedule", "none"),
    ("erasure", "list", "none"), ("erasure", "add", "none", "--source", "db", "--table", "users", "--key", "1", "--confirm", "none"),
    ("erasure", "add", "aurora", "--source", "none", "--table", "users", "--key", "1", "--confirm", "aurora"),
    ("erasure", "add", "aurora", "--source", "db", "--table", "none", "--key", "1", "--confirm", "aurora"),
    ("operation", "list", "none"), ("operation", "list", "--kind", "none"), ("operation", "list", "--before", "opr_none"),
    ("operation", "show", "opr_none"), ("operation", "cancel", "opr_none"), ("operation", "retry", "opr_none"),
    ("hook", "list", "--tenant", "none"), ("hook", "show", "none"), ("hook", "set", "none", "--timeout", "5"),
    ("hook", "enable", "none"), ("hook", "disable", "none"), ("hook", "remove", "none"), ("hook", "test", "none"),
    ("hook", "runs", "--hook", "none"), ("hook", "runs", "--operation", "opr_none"),
    ("hook", "add", "x", "--event", "before", "--operation", "backup", "--kind", "http", "--set", "url=http://x/", "--tenant", "none"),
    ("audit", "list", "--tenant", "none"), ("audit", "export", "--tenant", "none"),
    ("store", "test", "none"), ("tenant", "add", "new", "--name", "x", "--store", "none"),
)  # fmt: skip
"""Every verb that takes a name, with one that nothing has."""


def test_a_name_that_nothing_has_ends_with_4_and_a_hint(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """Goal: scripts tell "there is no such" from a wrong command line everywhere; name what there is not."""
    tenant = house.tenant()
    house.files(tenant)
    house.database(tenant, rows=2)
    backup = house.backup(tenant)
    wrong = []
    for call in NO_SUCH:
        noun, *argv = [backup.pk if word == "BACKUP" else word for word in call]
        command = load_command_class(get_commands()[noun], noun)
        code = command.run([*argv, "--json", "--no-input"], noun=noun)
        said = json.loads(capsys.readouterr().out)
        if code != Exit.NOT_FOUND or not (said.get("error") or {}).get("hint"):
            wrong.append((*call, code, said))
    assert not wrong, "\n".join(map(str, wrong))
