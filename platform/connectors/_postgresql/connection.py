"""Connections with every setting pinned that changes text, and errors without secrets.

A setting that changes how a value prints would make two backups of the same row differ, and a restore
read what another setting wrote. `search_path` is empty so that names resolve the same for everybody
and nobody's objects shadow pg_catalog; `row_security` is off so that a policy raises instead of hiding rows.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from connectors._postgresql import unencoded
from connectors._postgresql.pooler import shares_sessions
from engine.errors import (
    LastroError,
    SchemaMismatch,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceUnreachable,
    TargetDenied,
    TargetError,
    TargetFull,
    TargetUnreachable,
    UsageError,
)

Side = Literal["source", "target"]
Connection = psycopg.Connection[tuple[Any, ...]]

PINS: tuple[tuple[str, str], ...] = (
    ("search_path", ""),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmloption", "content"),
    ("xmlbinary", "base64"),
    ("row_security", "off"),
    ("standard_conforming_strings", "on"),
    ("backslash_quote", "safe_encoding"),
    ("quote_all_identifiers", "off"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("check_function_bodies", "off"),
    ("default_tablespace", ""),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("synchronize_seqscans", "off"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("work_mem", "64MB"),
    ("jit", "off"),
)

SERVER_MINIMUM = 140000


def parse_dsn(dsn: str) -> dict[str, Any]:
    """Split a DSN or URL; UsageError, which never repeats the DSN, when libpq does not understand it."""
    try:
        return dict(conninfo_to_dict(dsn))
    except psycopg.Error:
        raise UsageError(
            "the DSN cannot be understood",
            hint="try postgresql://USER:PASSWORD@HOST:PORT/DATABASE or 'host=… dbname=… user=…'; percent-encode "
            "special characters in a URL",
        ) from None


def connect(
    dsn: str,
    *,
    side: Side,
    connect_timeout: int = 10,
    statement_timeout: int = 0,
    lock_timeout: int = 10,
    database: str | None = None,
) -> Connection:
    """Open a pinned connection in autocommit mode, timeouts in seconds (0: none).

    Raises the typed errors of `side`; UsageError for a server older than 14 and for a pooler that shares sessions.
    """
    parts = parse_dsn(dsn)
    if database is not None:
        parts["dbname"] = database
    complete(parts, connect_timeout=connect_timeout)
    conninfo = make_conninfo("", **parts)

    def open_plain() -> Connection:
        return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)

    with errors(side, dsn):
        connection = open_plain()
    try:
        if connection.info.server_version < SERVER_MINIMUM:
            raise UsageError(
                f"PostgreSQL {connection.info.server_version // 10000} is too old", hint="14 and later are supported"
            )
        with errors(side, dsn):
            if shares_sessions(connection, conninfo, open_plain):
                raise UsageError(
                    "the DSN leads to a connection pooler that gives every transaction another session",
                    hint="name the address of the server itself, or of a pool in session mode (pgbouncer: pool_mode=session)",
                )
            pin(connection, statement_timeout=statement_timeout, lock_timeout=lock_timeout)
        if unencoded.is_unencoded(connection):
            unencoded.read_as_text(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def complete(parts: dict[str, Any], *, connect_timeout: int) -> None:
    """Add to a DSN's parts what every connection of ours has."""
    parts.update(connect_timeout=connect_timeout, client_encoding="UTF8")
    parts.setdefault("application_name", "lastro")
    parts.setdefault("keepalives_idle", 60)


def pin(connection: Connection, *, statement_timeout: int, lock_timeout: int) -> None:
    """Set every pinned setting for the session."""
    timeouts = (("statement_timeout", f"{statement_timeout}s"), ("lock_timeout", f"{lock_timeout}s"))
    pins = (*PINS, *server_pins(connection), *timeouts)
    settings = ", ".join(f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in pins)
    run(connection, f"SELECT {settings}")


def server_pins(connection: Connection) -> tuple[tuple[str, str], ...]:
    """Settings that are pinned on this server beside PINS, which every server has."""
    timeout = (("transaction_timeout", "0"),) if connection.info.server_version >= 170000 else ()
    return (*timeout, ("client_encoding", unencoded.ENCODING)) if unencoded.is_unencoded(connection) else timeout


def session_settings(connection: Connection) -> tuple[tuple[str, str], ...]:
    """What another session needs beside PINS to behave as this one does: the server's own pins and our timeouts."""
    timeouts = rows(connection, "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")[0]
    return (*server_pins(connection), *zip(("statement_timeout", "lock_timeout"), timeouts, strict=True))


def begin(connection: Connection, isolation: str, *, read_only: bool = False) -> None:
    """Begin a transaction and pin the settings in it too, so that none of a trigger's or function's making is left.

    None of these statements takes the snapshot yet.
    """
    run(connection, begin_text(isolation, read_only=read_only, more=server_pins(connection)))


def begin_text(isolation: str, *, read_only: bool, more: Sequence[tuple[str, str]] = ()) -> str:
    """The statements that begin a transaction with every setting pinned, and with `more` of them."""
    settings = "; ".join(f"SET LOCAL {name} = {value!r}" for name, value in (*PINS, *more))
    return f"BEGIN ISOLATION LEVEL {isolation} READ {'ONLY' if read_only else 'WRITE'}; {settings}"


def run(connection: Connection, sql: str) -> psycopg.Cursor[tuple[Any, ...]]:
    """Execute SQL text that holds no placeholders (a percent sign is only a percent sign)."""
    return connection.execute(unencoded.encode(sql))


def rows(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    """Execute and fetch everything; for catalogue queries and counts."""
    return run(connection, sql).fetchall()


def value(connection: Connection, sql: str) -> Any:
    """Execute and fetch the first column of the only row."""
    row = run(connection, sql).fetchone()
    assert row is not None, "a query for one value gave no row"
    return row[0]


# ---------------------------------------------------------------- errors

_DENIED = {"42501", "28000", "28P01", "0LP01"}
_DENIED_TEXT = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|pg_hba\.conf rejects|valid client certificate"
    r"|role .* (does not exist|is not permitted)"
)
_SCHEMA = {
    "42P01",
    "42703",
    "42704",
    "3F000",
    "42804",
    "22P02",
    "22003",
    "22007",
    "22008",
    "22001",
    "23502",
    "23514",
    "42883",
}
_FULL = {"53100", "53200"}
_BYTES = {"22021", "22P05"}
_GONE = {"57P01", "57P02", "57P03", "08000", "08003", "08006", "08001", "08004", "53300"}


@contextmanager
def errors(side: Side, dsn: str = "") -> Iterator[None]:
    """Turn the driver's errors into ours, typed by side, with a hint and no password."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, side, dsn) from None


def translate(error: psycopg.Error, side: Side, dsn: str = "") -> LastroError:
    """Choose our error for one of the driver's."""
    state = error.sqlstate or ""
    message = clean_message(error, dsn)
    if state in _DENIED or (not state and _DENIED_TEXT.search(message)):
        kind: type[LastroError] = SourceDenied if side == "source" else TargetDenied
        return kind(message if state else f"cannot connect: {message}", hint=_denied_hint(message, side))
    if state in _GONE or (not state and isinstance(error, psycopg.OperationalError)) or state[:2] == "08":
        kind = SourceUnreachable if side == "source" else TargetUnreachable
        return kind(f"cannot connect: {message}", hint=_connect_hint(message))
    if state == "3D000":
        kind = SourceError if side == "source" else TargetError
        return kind(f"cannot connect: {message}", hint="try a database that exists: psql -l lists them")
    if state == "53200" and "shared memory" in message:
        kind = SourceError if side == "source" else TargetError
        return kind(
            f"{message}: the server has no room for more locks",
            hint="nothing was changed; raise max_locks_per_transaction and restart the server",
        )
    if state in _FULL and side == "target":
        return TargetFull(message, hint="free space on the database server and run the restore again")
    if state in _SCHEMA:
        kind = SourceChanged if side == "source" else SchemaMismatch
        return kind(message, hint=_code_hint(error) or "compare the schema now with the schema at the backup")
    if state == "55P03":
        kind = SourceError if side == "source" else TargetError
        return kind(message, hint="another session holds a lock: find it in pg_locks, or raise lock_timeout_seconds")
    if state == "57014":
        kind = SourceError if side == "source" else TargetError
        return kind(message, hint="raise statement_timeout_seconds, or look for missing indexes")
    kind = SourceError if side == "source" else TargetError
    if state in _BYTES:
        return kind(
            message, hint="the text holds bytes that mean nothing in the database's encoding: correct them there"
        )
    return kind(message)


_UNDEFINED = {"42P01", "42883", "42704", "3F000"}
_CODE = re.compile(r"(?m)^((?:PL/\w+|SQL) function \S+)")


def _code_hint(error: psycopg.Error) -> str:
    """The next step when the database's own code lacks something that it names; empty for anything else."""
    found = _CODE.search(error.diag.context or "")
    if found is None or error.sqlstate not in _UNDEFINED:
        return ""
    name = found[1].rpartition(" ")[2]
    return (
        f"{found[1]} names it without its schema, and restores run with an empty search path: ALTER FUNCTION {name} "
        "SET search_path = its schemas; nothing was changed"
    )


def clean_message(error: psycopg.Error, dsn: str = "") -> str:
    """Say what the server said in one line, without the password and without a row's contents."""
    text = (error.diag.message_primary or str(error) or type(error).__name__).strip()
    where = error.diag.context or ""
    column = re.search(r"^COPY \S+, line \d+, column ([^\n:]+)", where)
    text = " ".join(text.split())
    if column:
        text = f"{text} (column {column[1]})"
    password = str(parse_dsn(dsn).get("password") or "") if dsn else ""
    return _without(text, password)


PASSWORD_CHARS_MASKED_MIN = 8


def _without(text: str, password: str) -> str:
    """Take a password out of a message.

    A short one may be part of any word: to mask it everywhere would mangle the message, and by its gaps tell the
    password. It is taken out where a password stands.
    """
    if not password:
        return text
    if len(password) >= PASSWORD_CHARS_MASKED_MIN:
        return text.replace(password, "***")
    own = re.escape(password)
    return re.sub(rf"(?i)(password\s*[=:]\s*['\"]?|://[^/\s:@]*:){own}(?=$|['\"@\s,;)])", r"\1***", text)


def _denied_hint(message: str, side: Side) -> str:
    if "client certificate" in message:
        return "give sslcert and sslkey of a certificate that the server's authority has signed for the user"
    if "no encryption" in message:
        return "try sslmode=verify-full with sslrootcert, and check pg_hba.conf on the server"
    if (
        "password" in message
        or "authentication" in message
        or "pg_hba" in message
        or message.startswith("connection failed")
    ):
        return "try another user or password, and check pg_hba.conf on the server"
    if "row-level security" in message or "row security" in message:
        return "grant the role BYPASSRLS: ALTER ROLE … BYPASSRLS"
    needed = "SELECT on the tables" if side == "source" else "SELECT, INSERT, UPDATE, DELETE on the tables"
    return f"grant the role {needed} and USAGE on the schemas"


def _connect_hint(message: str) -> str:
    if "refused" in message or "No such file" in message:
        return "try another host or port; is the server running and listening there?"
    if "timeout" in message or "timed out" in message:
        return "try whether a firewall is in between, or raise connect_timeout_seconds"
    if "translate host name" in message or "resolve host" in message:
        return "try the host's address, or check its name"
    if "does not exist" in message:
        return "try a database that exists: psql -l lists them"
    if "SSL" in message or "certificate" in message:
        return "give the server's authority as sslrootcert and the host's name as its certificate has it; check sslmode"
    return "try again; look into the server's log when it happens again"
