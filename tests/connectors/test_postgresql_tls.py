"""A server that takes nothing but TLS, verified on both sides: the DSN's settings hold for every program of ours."""

import datetime
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg.conninfo import make_conninfo

from connectors._postgresql import part as part_module
from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import LastroError, SourceDenied, SourceUnreachable
from tests.connectors.postgres_views import execute, put_back, table_text, take
from tests.services.postgres import PostgresServer, account

PASSWORD = "geh eim:/?#[]@'\"\\%41ü"
KEY_PASSWORD = "auch geheim"
ROLE = "tls_user"
HBA = f"""
hostssl all {ROLE} 127.0.0.1/32 scram-sha-256 clientcert=verify-full
host all {ROLE} all reject
host all postgres 127.0.0.1/32 trust
local all all trust
"""
SCHEMA = "create table thing(id int primary key, v text); insert into thing select g, 'v' || g from generate_series(1, 5000) g"


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, *, password: str = "") -> None:
    protection = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection))
    path.chmod(0o600)


def certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    subject, by = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    builder = x509.CertificateBuilder(by, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(
        now + datetime.timedelta(days=1)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=name == issuer, path_length=None), critical=True)
    if name == "localhost":
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def authority() -> Iterator[Path]:
    """A folder with an authority, the server's key and two clients', one of them under a password."""
    folder = Path(tempfile.mkdtemp(prefix="lastro-tls-"))
    folder.chmod(0o755)
    signer = ec.generate_private_key(ec.SECP256R1())
    own = certificate("authority", signer, "authority", signer)
    (folder / "root.crt").write_bytes(own.public_bytes(serialization.Encoding.PEM))
    for file, name in (("server", "localhost"), ("client", ROLE), ("other", "somebody")):
        key = ec.generate_private_key(ec.SECP256R1())
        write_key(folder / f"{file}.key", key)
        signed = certificate(name, key, "authority", signer)
        (folder / f"{file}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        if file == "client":
            write_key(folder / "locked.key", key, password=KEY_PASSWORD)
    if account():
        os.chown(folder / "server.key", account()["user"], account()["group"])
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(authority: Path) -> Iterator[PostgresServer]:
    """A server that demands TLS, a certificate and a password of the role."""
    files = {"ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "root.crt"}
    settings = {"ssl": "on", "log_statement": "all", "log_connections": "on"}
    settings |= {name: str(authority / file) for name, file in files.items()}
    try:
        started = PostgresServer.start(settings=settings)
    except RuntimeError as error:
        if "SSL is not supported" not in str(error):
            raise
        pytest.skip("this server is built without TLS")
    try:
        started.create_role(ROLE, password=PASSWORD, options="LOGIN SUPERUSER")
        assert started.folder is not None
        (started.folder / "data" / "pg_hba.conf").write_text(HBA)
        started.execute("select pg_reload_conf()")
        yield started
    finally:
        started.discard()


def dsn(server: PostgresServer, authority: Path, database: str = "postgres", **more: str) -> str:
    port = str(psycopg.conninfo.conninfo_to_dict(server.dsn())["port"])
    parts = {
        "host": "localhost", "hostaddr": "127.0.0.1", "port": port, "dbname": database, "user": ROLE, "password": PASSWORD,
        "sslmode": "verify-full", "sslrootcert": str(authority / "root.crt"),
        "sslcert": str(authority / "client.crt"), "sslkey": str(authority / "client.key"),
    }  # fmt: skip
    return make_conninfo("", **{**parts, **more})


@contextmanager
def watched() -> Iterator[set[bytes]]:
    """Every command line that is seen while the body runs."""
    seen: set[bytes] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.002):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(path.read_bytes())
                except OSError:
                    continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        ended.set()
        watcher.join()


@pytest.mark.parametrize("key", ["client.key", "locked.key"])
def test_everything_goes_over_verified_tls(
    server: PostgresServer, authority: Path, key: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Goal: test, backup, restore in place and anew; no secret in ps or logs. Method: watch /proc, read all logs."""
    monkeypatch.setattr(part_module, "PIPED_BYTES_MIN", 1)
    caplog.set_level(logging.DEBUG)
    name = server.create_database()
    more = {"sslkey": str(authority / key)} | ({"sslpassword": KEY_PASSWORD} if key == "locked.key" else {})
    config = PostgresqlConfig(dsn=dsn(server, authority, name, **more))
    execute(server.dsn(name), SCHEMA)
    before = table_text(server.dsn(name), "thing")
    try:
        with watched() as commands:
            assert PostgresqlConnector(config).test().details["user"] == ROLE
            view = take(config)
            execute(server.dsn(name), "delete from thing where id % 2 = 0")
            put_back(config, view, prove=True)
            put_back(config, view, target={"dsn": dsn(server, authority, "tls_copy", **more)})
        assert table_text(server.dsn(name), "thing") == table_text(server.dsn("tls_copy"), "thing") == before
        assert any(b"pg_dump" in command for command in commands)
        assert key == "locked.key" or any(b"/psql" in command for command in commands)
        told = [*commands, caplog.text.encode(), server.log().encode()]
        for secret in (PASSWORD, KEY_PASSWORD, PASSWORD.replace("\\", "\\\\").replace("'", "\\'")):
            assert not [text for text in told if secret.encode() in text]
    finally:
        server.drop_database(name)
        server.drop_database("tls_copy")


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"sslcert": "other.crt", "sslkey": "other.key"}, SourceDenied, "authentication failed|certificate"),
        ({"sslcert": "none.crt", "sslkey": "none.key"}, SourceDenied, "certificate"),
        ({"sslmode": "disable"}, SourceDenied, "pg_hba|rejects"),
        ({"host": "127.0.0.2"}, SourceUnreachable, "does not match|certificate"),
        ({"sslrootcert": "client.crt"}, SourceUnreachable, "certificate"),
        ({"password": "wrong"}, SourceDenied, "password"),
    ],
)
def test_what_is_wrong_is_said(
    server: PostgresServer, authority: Path, settings: dict[str, str], kind: type[LastroError], said: str
) -> None:
    """Goal: a typed error with a hint, no secret in it. Method: each setting wrong in its turn."""
    paths = {
        name: str(authority / text) if name.startswith("ssl") and "." in text else text
        for name, text in settings.items()
    }
    with pytest.raises(kind, match=said) as refused:
        PostgresqlConnector(PostgresqlConfig(dsn=dsn(server, authority, **paths))).test()
    assert refused.value.hint
    assert PASSWORD not in str(refused.value) + repr(refused.value)
