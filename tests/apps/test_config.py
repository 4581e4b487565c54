"""Settings from the environment, keys, checks, health."""

import json
import os
import stat
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client

from config.databases import catalogue_database
from config.environment import read
from core import rootkey
from core.models import Fact
from core.rootkey import RootKeyMismatch, RootKeyMissing
from engine.errors import UsageError
from engine.keys import RootKey
from tests.apps.installation import Installation


def test_an_empty_environment_is_enough() -> None:
    """Goal: the embedded default needs nothing; read no variables at all."""
    found = read({})
    assert found.data == Path("var").absolute()
    assert (found.database_url, found.tls, found.debug, found.heartbeat_seconds) == ("", False, False, 15)
    assert found.workers == os.cpu_count()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LASTRO_WORKERS", "0"),
        ("LASTRO_WORKERS", "many"),
        ("LASTRO_WORKERS", "-1"),
        ("LASTRO_WORKERS", "٣"),
        ("LASTRO_HEARTBEAT_SECONDS", "1000000"),
        ("LASTRO_TLS", "perhaps"),
        ("LASTRO_LOG_LEVEL", "chatty"),
        ("LASTRO_SECRET_KEY_FILE", "/nowhere/at/all"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    """Goal: a typing error stops the start and says where; give each sort of wrong value."""
    with pytest.raises(ImproperlyConfigured, match=name):
        read({name: value})


def test_a_secret_comes_from_its_file(tmp_path: Path) -> None:
    """Goal: secrets need not stand in the environment; give one as a file, as both, as an empty file."""
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    assert read({"LASTRO_SECRET_KEY_FILE": str(path)}).secret_key == "s3cret"
    with pytest.raises(ImproperlyConfigured, match="both"):
        read({"LASTRO_SECRET_KEY_FILE": str(path), "LASTRO_SECRET_KEY": "x"})
    path.write_text("\n")
    with pytest.raises(ImproperlyConfigured, match="empty"):
        read({"LASTRO_SECRET_KEY_FILE": str(path)})


def test_secrets_are_not_in_a_repr() -> None:
    """Goal: a logged settings object gives nothing away; print one full of secrets."""
    found = read(
        {"LASTRO_SECRET_KEY": "hunter2", "LASTRO_ROOT_KEY": "hunter2", "LASTRO_DATABASE_URL": "x://a:hunter2@b"}
    )
    assert "hunter2" not in repr(found)


def test_a_catalogue_url_is_understood() -> None:
    """Goal: everything a URL can say arrives; read one with escapes and options, a socket, and wrong ones."""
    made = catalogue_database("postgresql://me:p%40ss@db.example:5433/cat%20alogue?sslmode=verify-full", Path("/d"))
    assert (made["USER"], made["PASSWORD"], made["HOST"], made["PORT"], made["NAME"]) == (
        "me", "p@ss", "db.example", "5433", "cat alogue",
    )  # fmt: skip
    assert made["OPTIONS"]["sslmode"] == "verify-full"
    assert catalogue_database("postgresql:///x?host=/run/pg", Path("/d"))["HOST"] == "/run/pg"
    assert catalogue_database("", Path("/d"))["NAME"] == "/d/catalogue.sqlite3"
    for wrong in ("mysql://me:hunter2@x/y", "postgresql://me:hunter2@x:port/y"):
        with pytest.raises(ImproperlyConfigured) as caught:
            catalogue_database(wrong, Path("/d"))
        assert "hunter2" not in str(caught.value)


@pytest.fixture
def fresh(settings: object, tmp_path: Path) -> Path:
    """An installation that has no root key yet."""
    settings.LASTRO_DATA, settings.LASTRO_ROOT_KEY = tmp_path, ""  # type: ignore[attr-defined]
    rootkey.root_key.cache_clear()
    yield tmp_path / "keys" / "root.key"
    rootkey.root_key.cache_clear()


@pytest.mark.django_db
def test_the_root_key_is_made_once(fresh: Path) -> None:
    """Goal: one key for ever, private; load it twice as two processes would."""
    first = rootkey.root_key()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o600
    text = fresh.read_text()
    rootkey.root_key.cache_clear()
    assert rootkey.root_key().key_id == first.key_id
    assert fresh.read_text() == text
    assert Fact.objects.get(pk=rootkey.ROOT_KEY_FACT).value == first.key_id


@pytest.mark.django_db
def test_a_lost_root_key_is_not_replaced(fresh: Path) -> None:
    """Goal: no new key hides the loss of the old one; take the file away, then put another one there."""
    known = rootkey.root_key().key_id
    fresh.unlink()
    rootkey.root_key.cache_clear()
    with pytest.raises(RootKeyMissing, match=known):
        rootkey.root_key()
    assert not fresh.exists()
    fresh.write_text(RootKey.generate().to_text())
    with pytest.raises(RootKeyMismatch, match=known):
        rootkey.root_key()
    fresh.write_text("rubbish")
    with pytest.raises(UsageError):
        rootkey.root_key()


@pytest.mark.django_db
def test_the_root_key_may_come_from_the_environment(fresh: Path, settings: object) -> None:
    """Goal: a key from outside touches no file; give one."""
    key = RootKey.generate()
    settings.LASTRO_ROOT_KEY = key.to_text()  # type: ignore[attr-defined]
    assert rootkey.root_key().key_id == key.key_id
    assert not fresh.exists()


def test_the_data_folder_is_private(tmp_path: Path) -> None:
    """Goal: nobody else reads catalogue and keys; make an installation and look at its modes."""
    place = Installation(tmp_path, migrate=False)
    for command in (("migrate", "-v0"), ("tenant", "add", "aurora", "--name", "Aurora")):
        assert place(*command, DJANGO_SETTINGS_MODULE="config.settings").code == 0
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in (place.data, *place.data.iterdir()) if path.is_dir()
    }
    assert set(modes.values()) == {0o700}
    keys = list((place.data / "keys").iterdir())
    assert keys
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_checks_find_what_is_unwise(tmp_path: Path) -> None:
    """Goal: the operator is told; make a folder too open, a key that is none, a debugging server for others."""
    place = Installation(tmp_path)
    os.chmod(place.data, 0o755)
    said = place(
        "check",
        "--deploy",
        DJANGO_SETTINGS_MODULE="config.settings",
        LASTRO_ROOT_KEY="rubbish",
        LASTRO_DEBUG="1",
        LASTRO_ALLOWED_HOSTS="backup.example",
        LASTRO_SMTP_URL="smtp+plain://user:hunter2@relay",
        LASTRO_PING_URL="ftp://x",
    )
    assert "hunter2" not in said.err
    for found in ("lastro.W001", "lastro.E001", "lastro.E002", "lastro.E004", "lastro.E005", "lastro.W004"):
        assert found in said.err
    assert said.code != 0


def test_a_sound_deployment_has_nothing_to_fear(tmp_path: Path) -> None:
    """Goal: `check --deploy` is silent when all is well but the library; configure TLS and look."""
    place = Installation(tmp_path)
    said = place(
        "check",
        "--deploy",
        DJANGO_SETTINGS_MODULE="config.settings",
        LASTRO_TLS="1",
        LASTRO_BEHIND_PROXY="1",
        LASTRO_ALLOWED_HOSTS="backup.example",
    )
    found = {word.strip("()") for word in (said.out + said.err).split() if word.startswith("(") and "." in word}
    assert found <= {"lastro.W003):", "lastro.W003"}, said.err
    assert said.code == 0


@pytest.mark.django_db
def test_health_names_what_is_wrong(settings: object) -> None:
    """Goal: a balancer knows whether to send requests; ask when all is well and when the folder is gone."""
    client = Client()
    assert client.get("/health/live").json() == {"status": "ok"}
    ready = client.get("/health/ready").json()
    assert (ready["status"], ready["checks"]) == ("ok", {"catalogue": True, "data_folder": True})
    assert ready["freshness"] == {"watch": True, "backups": True}
    settings.LASTRO_DATA = Path("/nowhere/at/all")  # type: ignore[attr-defined]
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["checks"]["data_folder"]) == (503, False)
    assert client.get("/health/live").status_code == 200
    assert client.post("/health/live").status_code == 405


def test_log_lines_are_json_without_secrets(tmp_path: Path) -> None:
    """Goal: logs can be collected and shared; write what foreign libraries write."""
    import logging

    from core.logs import JsonLines, operation_named

    record = logging.LogRecord(
        "x", logging.ERROR, "x", 1, "postgresql://me:hunter2@db/x password=hunter2 %s", ("ü\n",), None
    )
    with operation_named("opr_1"):
        line = JsonLines().format(record)
    assert "\n" not in line
    assert "hunter2" not in line
    assert json.loads(line)["operation"] == "opr_1"
    root = RootKey.generate().to_text()
    record = logging.LogRecord("x", logging.ERROR, "x", 1, f"key {root} here", (), None)
    assert root.split(":")[1] not in JsonLines().format(record)
