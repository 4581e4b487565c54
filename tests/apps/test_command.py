"""The frame of commands: output, exit codes, confirmation, secrets; run as an operator's script runs them."""

import datetime
import json
import os
import pty
import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from core.cli_output import lines_of, size_text, to_json
from tests.apps.installation import ROOT, Installation


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("commands"))


def test_an_answer_is_one_object_on_stdout(place: Installation) -> None:
    """Goal: scripts parse stdout; ask for JSON and for text."""
    said = place("work", "ask", "test.quick", "--here", "--json")
    assert (said.code, said.json["state"], said.out.count("\n")) == (0, "succeeded", 1)
    assert said.err == ""
    text = place("work", "ask", "test.quick", "--here")
    assert "state: succeeded" in text.out.splitlines()


@pytest.mark.parametrize(
    ("args", "code", "name"),
    [
        (("operation", "show", "opr_none"), 4, "catalogue.not_found"),
        (("operation", "shew"), 2, "usage.invalid"),
        (("operation",), 2, "usage.invalid"),
        (("operation", "show"), 2, "usage.invalid"),
        (("operation", "list", "--limit", "many"), 2, "usage.invalid"),
        (("operation", "list", "--limit", "-1"), 2, "usage.invalid"),
        (("operation", "list", "--limit", "0"), 2, "usage.invalid"),
        (("audit", "list", "--limit", "-1"), 2, "usage.invalid"),
        (("audit", "list", "--since", "yesterday"), 2, "usage.invalid"),
        (("token", "add", "ci", "--scope", "read", "--days", "0"), 2, "usage.invalid"),
        (("work", "ask", "test.nothing"), 2, "usage.invalid"),
        (("work", "remove"), 6, "access.confirmation_needed"),
        (("work", "remove", "--confirm", "boreal"), 6, "access.confirmation_needed"),
        (("work", "burst"), 1, "internal.error"),
        (("token", "add", "ci", "--scope", "read"), 4, "catalogue.not_found"),
    ],
)
def test_an_error_has_its_code_on_both_streams(
    place: Installation, args: tuple[str, ...], code: int, name: str
) -> None:
    """Goal: scripts and people learn what went wrong and what to do; provoke each sort of error."""
    said = place(*args, "--json")
    assert (said.code, said.json["error"]["code"]) == (code, name)
    assert said.json["error"]["hint"]
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    plain = place(*args)
    assert (plain.code, plain.out) == (code, "")


def test_a_wrong_value_is_named_and_not_our_function(place: Installation) -> None:
    """Goal: usage errors speak of values, not of code; give a bad time and a bad count."""
    assert "'yesterday' is no time; write 2026-" in place("audit", "list", "--since", "yesterday").err
    assert "'-1' is not a whole number from 1 to 200" in place("operation", "list", "--limit", "-1").err


def test_work_that_ends_otherwise_has_its_exit_code(place: Installation) -> None:
    """Goal: the exit code tells how long work ended; run work that warns, fails, is stopped."""
    codes = {
        how: place("work", "ask", "test.quick", "--here", "--json", "--params", json.dumps({"how": how})).code
        for how in ("well", "warn", "fail", "stop", "burst")
    }
    assert codes == {"well": 0, "warn": 3, "fail": 9, "stop": 130, "burst": 1}


def test_what_has_ended_is_not_run(place: Installation) -> None:
    """Goal: `run` never passes an old result off as a new one; run an operation that has ended."""
    ended = place("work", "ask", "test.quick", "--here", "--json", "--params", '{"how": "fail"}').json["id"]
    said = place("operation", "run", ended, "--json")
    assert (said.code, said.json["error"]["code"]) == (1, "catalogue.conflict")
    assert f"operation retry {ended}" in said.json["error"]["hint"]


def test_an_unknown_noun_is_a_usage_error(place: Installation) -> None:
    """Goal: a slip of the pen has the same form as every other; misspell a noun, then look for help."""
    said = place("opperation", "list", "--json")
    assert (said.code, said.json["error"]["code"]) == (2, "usage.invalid")
    assert "help" in said.err
    helped = place("help")
    assert helped.code == 0
    assert "  operation  Look at long work" in helped.out
    assert "sqlsequencereset" not in helped.out


def test_a_setting_that_cannot_be_right_is_named(place: Installation) -> None:
    """Goal: no traceback before the first command; give a secret file that is not there, and a bad number."""
    for variables, name in (
        ({"LASTRO_ROOT_KEY_FILE": "/none/at/all"}, "LASTRO_ROOT_KEY_FILE"),
        ({"LASTRO_WORKERS": "many"}, "LASTRO_WORKERS"),
    ):
        said = place("operation", "list", "--json", **variables)
        assert (said.code, said.json["error"]["code"]) == (2, "settings.invalid")
        assert name in said.json["error"]["detail"]
        assert "Traceback" not in said.err


def test_an_unforeseen_error_is_found_in_the_log(place: Installation) -> None:
    """Goal: a bug can be reported without a traceback on the screen or a secret anywhere; provoke one."""
    said = place("work", "burst", "--json")
    reference = said.json["error"]["hint"].split()[-1]
    assert "hunter2" not in said.out + said.err
    entry = next(json.loads(line) for line in place.log().splitlines() if reference in line)
    assert (entry["level"], entry["logger"]) == ("error", "core.cli")
    assert "Traceback" in entry["exception"]
    assert "hunter2" not in entry["exception"]


def test_a_debugger_gets_the_traceback(place: Installation) -> None:
    """Goal: developers see everything when they ask for it; use the flag and the variable."""
    assert "Traceback" in place("work", "burst", "--traceback").err
    assert "Traceback" in place("work", "burst", LASTRO_DEBUG="1").err


def test_confirmation_names_what_it_is_about(place: Installation) -> None:
    """Goal: destruction needs the right word; give it by flag."""
    assert place("work", "remove", "--confirm", "aurora", "--json").json == {"removed": True}


@pytest.mark.parametrize(("typed", "code"), [("aurora\n", 0), ("aurorb\n", 6), ("\n", 6)])
def test_a_person_is_asked(place: Installation, typed: str, code: int) -> None:
    """Goal: at a terminal the slug is typed; answer on a real terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        place.argv("work", "remove"), cwd=ROOT, env=place.environment, stdin=slave, stdout=subprocess.PIPE, stderr=slave
    ) as process:
        os.close(slave)
        asked = b""
        while b"Type aurora" not in asked:
            asked += os.read(master, 1024)
        os.write(master, typed.encode())
        process.communicate(timeout=30)
    os.close(master)
    assert process.returncode == code
    assert b"This will remove aurora." in asked


def test_a_catalogue_that_is_not_migrated_says_so(tmp_path: Path) -> None:
    """Goal: the first mistake has its remedy; use a data folder without a catalogue."""
    said = Installation(tmp_path, migrate=False)("operation", "list", "--json")
    assert (said.code, said.json["error"]["code"]) == (1, "catalogue.unready")
    assert "migrate" in said.json["error"]["hint"]


@pytest.mark.postgres
def test_a_catalogue_that_is_not_there_is_not_called_unmigrated(tmp_path: Path, postgres_database: str) -> None:
    """Goal: the remedy fits the mistake; name an empty database, then one and a role that do not exist."""
    empty = Installation(tmp_path, database_url=postgres_database, migrate=False)("operation", "list", "--json")
    assert "migrate" in empty.json["error"]["hint"]
    parts = urlsplit(postgres_database)
    elsewhere = [
        parts._replace(path="/no-such-database"),
        parts._replace(netloc=f"nobody-at-all@{parts.netloc.rpartition('@')[2]}"),
    ]
    for place in elsewhere:
        said = Installation(tmp_path, database_url=urlunsplit(place), migrate=False)("operation", "list", "--json")
        assert (said.code, said.json["error"]["code"]) == (1, "catalogue.unready")
        assert "does not exist" in said.json["error"]["detail"]
        assert "migrate" not in said.json["error"]["hint"]


def test_a_reader_that_goes_away_is_no_error(place: Installation) -> None:
    """Goal: `| head` works; close the pipe before the answer comes."""
    with subprocess.Popen(
        place.argv("audit", "export", "--format", "csv"), cwd=ROOT, env=place.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        process.stdout.close()
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "Exception" not in err


def test_a_fresh_master_and_token_are_shown_once(place: Installation) -> None:
    """Goal: secrets appear in one answer and nowhere else; make them, then look everywhere they could be."""
    password = place("master", "add", "ana", "--json").json["password"]
    token = place("token", "add", "ci", "--scope", "read", "backup:write", "--tenant", "aurora", "--json").json["token"]
    secret = token.partition("_")[2]
    listed = (
        place("token", "list", "--json").out
        + place("master", "list", "--json").out
        + place("audit", "list", "--json").out
    )
    everything = listed.encode() + b"".join(path.read_bytes() for path in place.data.rglob("*") if path.is_file())
    assert password.encode() not in everything
    assert secret.encode() not in everything
    assert token.partition("_")[0].encode() in everything
    assert place("master", "add", "ana").code == 1, "a name is given once"


def test_verify_and_list_work_from_outside(place: Installation) -> None:
    """Goal: the audit commands answer as scripts expect; verify and list after the tests above have worked."""
    place("work", "ask", "test.quick", "--here")
    assert place("audit", "verify", "--json").json["status"] == "passed"
    rows = place("audit", "list", "--limit", "2", "--json").json["data"]
    assert [row["type"] for row in rows] == ["operation.succeeded", "operation.requested"]


def test_text_for_people_cannot_steer_the_terminal() -> None:
    """Goal: a name with control characters is harmless; lay one out."""
    assert lines_of({"name": "a\x1b[2Jb\n"}) == ["name: a\\x1b[2Jb\\n"]
    assert lines_of({"data": [{"a": 1, "b": None}, {"a": 22}]}) == ["a   b", "1   -", "22"]


def test_what_is_nested_is_laid_out_for_people() -> None:
    """Goal: nobody reads JSON at night; lay out an object that holds objects and lists."""
    nested = {
        "checksums": {"assets": "ab", "database": None},
        "tags": ["a", "b"],
        "warnings": [],
        "sources": [{"name": "db", "position": {"lsn": "0/1"}}, {"name": "files", "position": {}}],
    }
    assert lines_of(nested) == [
        "checksums:", "  assets: ab", "  database: -", "tags: a, b", "warnings: -",
        "sources:", "  name   position", "  db     lsn=0/1", "  files  -",
    ]  # fmt: skip


def test_values_are_printed_in_one_form() -> None:
    """Goal: times, sizes and sets look the same everywhere; print some."""
    at = datetime.datetime(2026, 11, 22, 13, 5, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    assert to_json({"at": at, "for": datetime.timedelta(seconds=90), "of": {"b", "a"}}) == (
        '{"at": "2026-11-22T12:05:00.000Z", "for": 90.0, "of": ["a", "b"]}'
    )
    assert [size_text(size) for size in (0, 999, 1_000, 2_500_000_000, 10**18)] == [
        "0 B", "999 B", "1.0 KB", "2.5 GB", "1000.0 PB",
    ]  # fmt: skip
