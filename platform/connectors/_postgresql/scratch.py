"""Throw-away targets on a PostgreSQL server: a schema beside the source, or a database of its own.

With `ScratchSite.dsn`, and for sources that are a whole database, a database is made and dropped again; else a schema
in the source's own database. Names are the caller's and unique, so that what a killed run left can be dropped later.
"""

import contextlib
from collections.abc import Sequence

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.pq.abc import PGresult

from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import (
    Connection,
    Side,
    begin,
    clean_message,
    connect,
    errors,
    parse_dsn,
    rows,
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
    path = (config.schema or "public") if database else name
    return _asked(dsn, [path, "public"], question, side="target", seconds=seconds)


def question_try(config: PostgresqlConfig, question: str, *, seconds: int) -> str | None:
    """Ask the live tables; None when these are shared by tenants: then the question is planned, and not asked.

    Raises as `ask`, SourceError when the server cannot be reached.
    """
    if config.layout != "rows":
        return _asked(config.conninfo, [config.schema or "public", "public"], question, side="source", seconds=seconds)
    _asked(config.conninfo, [], question, side="source", seconds=seconds, only_plan=True)
    return None


def _asked(dsn: str, path: Sequence[str], question: str, *, side: Side, seconds: int, only_plan: bool = False) -> str:
    if "\0" in question:
        raise UsageError("the question holds NUL")
    with contextlib.closing(connect(dsn, side=side, statement_timeout=seconds)) as connection:
        begin(connection, "REPEATABLE READ", read_only=True)
        # A throw-away schema holds the tables of all schemas in scope side by side; live, they lie in their own.
        names = [*path] or [str(name) for (name,) in rows(connection, _SCHEMAS)]
        run(connection, f"SET LOCAL search_path = {', '.join(map(ident, names))}")
        try:
            answer = b"" if only_plan else _answer(connection, question)
            if only_plan:
                _declared(connection, question)
        except psycopg.errors.QueryCanceled:
            raise TargetError(f"the question took longer than {seconds} s") from None
        except psycopg.OperationalError as error:
            raise translate(error, side, dsn) from None
        except psycopg.Error as error:
            message = clean_message(error, dsn)
            raise UsageError(f"the question cannot be asked: {message}", hint="one SELECT that reads") from None
    return answer.decode("utf-8", "replace").removesuffix("\n")


_SCHEMAS = """
    SELECT nspname FROM pg_namespace
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND has_schema_privilege(oid, 'USAGE')
    ORDER BY nspname <> 'public', nspname LIMIT 200
"""


def _answer(connection: Connection, question: str) -> bytes:
    """Rows as lines, through a cursor: it takes a query and nothing else, and one only.

    A COPY around the question could be left by a parenthesis, and goes on to `TO PROGRAM` then.
    """
    _declared(connection, question)
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


def _declared(connection: Connection, question: str) -> None:
    declare = f"DECLARE lastro_question NO SCROLL CURSOR FOR {question.strip().rstrip(';')}"
    _checked(connection.pgconn.exec_params(declare.encode(), None))


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
