"""Throw-away targets on a PostgreSQL server: a schema beside the source, or a database of its own.

With `ScratchSite.dsn`, and for sources that are a whole database, a database is made and dropped again; else a schema
in the source's own database. Names are the caller's and unique, so that what a killed run left can be dropped later.
"""

import contextlib

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGresult

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import (
    Connection,
    begin,
    clean_message,
    connect,
    errors,
    parse_dsn,
    run,
    translate,
    value,
)
from connectors._postgresql.quoting import ident, literal
from engine.errors import TargetError, UsageError
from engine.ports import ScratchSite

ANSWER_BYTES_MAX = 64 << 10


def needs_database(config: PostgresqlConfig, site: ScratchSite) -> bool:
    """Whether the throw-away target is a database."""
    return bool(site.dsn) or config.layout == "database"


def scratch_target(config: PostgresqlConfig, name: str, site: ScratchSite) -> dict[str, str]:
    """The target settings of the throw-away place."""
    if needs_database(config, site):
        return {"dsn": make_conninfo("", **{**parse_dsn(site.dsn or config.conninfo), "dbname": name})}
    return {"schema": name}


def ask(config: PostgresqlConfig, name: str, site: ScratchSite, question: str, *, seconds: int) -> str:
    """Run one query in a read-only transaction on the throw-away target; rows as lines, fields joined by tabs.

    Unqualified names mean the restored tables. Raises UsageError for what is no query, TargetError when it takes too long.
    """
    database = needs_database(config, site)
    dsn = scratch_target(config, name, site).get("dsn", config.conninfo)
    if "\0" in question:
        raise UsageError("the question holds NUL")
    with contextlib.closing(connect(dsn, side="target", statement_timeout=seconds)) as connection:
        begin(connection, "REPEATABLE READ", read_only=True)
        path = (config.schema or "public") if database else name
        run(connection, f"SET LOCAL search_path = {ident(path)}, public")
        try:
            answer = _answer(connection, question)
        except psycopg.errors.QueryCanceled:
            raise TargetError(f"the question took longer than {seconds} s") from None
        except psycopg.OperationalError as error:
            raise translate(error, "target", dsn) from None
        except psycopg.Error as error:
            message = clean_message(error, dsn)
            raise UsageError(f"the question cannot be asked: {message}", hint="one SELECT that reads") from None
    return answer.decode("utf-8", "replace").removesuffix("\n")


def _answer(connection: Connection, question: str) -> bytes:
    """Rows as lines, through a cursor: it takes a query and nothing else, and one only.

    A COPY around the question could be left by a parenthesis, and goes on to `TO PROGRAM` then.
    """
    declare = f"DECLARE lastro_question NO SCROLL CURSOR FOR {question.strip().rstrip(';')}"
    _checked(connection.pgconn.exec_params(declare.encode(), None))
    answer = b""
    while True:
        result = _checked(connection.pgconn.exec_params(b"FETCH 500 FROM lastro_question", None))
        for row in range(result.ntuples):
            fields = (result.get_value(row, column) for column in range(result.nfields))
            answer += b"\t".join(b"\\N" if field is None else field for field in fields) + b"\n"
            if len(answer) > ANSWER_BYTES_MAX:
                raise UsageError("the answer is longer than 64 KiB", hint="ask for a count or a digest")
        if result.ntuples == 0:
            return answer


def _checked(result: PGresult) -> PGresult:
    if result.status in (psycopg.pq.ExecStatus.COMMAND_OK, psycopg.pq.ExecStatus.TUPLES_OK):
        return result
    raise psycopg.errors.error_from_result(result, encoding="utf-8")


def drop(config: PostgresqlConfig, name: str, site: ScratchSite) -> None:
    """Drop the throw-away schema or database; no error when there is none. Raises TargetError."""
    if not needs_database(config, site):
        with errors("target"), contextlib.closing(connect(config.conninfo, side="target")) as connection:
            run(connection, f"DROP SCHEMA IF EXISTS {ident(name)} CASCADE")
        return
    dsn = site.dsn or config.conninfo
    with errors("target"), contextlib.closing(connect(dsn, side="target", database="postgres")) as connection:
        if value(connection, f"SELECT EXISTS (SELECT FROM pg_database WHERE datname = {literal(name)})"):
            run(connection, f"DROP DATABASE {ident(name)} WITH (FORCE)")
