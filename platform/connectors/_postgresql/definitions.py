"""Definitions of a database or schema: pg_dump's text, the roles it names, values of its sequences.

pg_dump runs beside the reading of rows, in the same exported snapshot. Its text is kept in two documents,
what must exist before rows are loaded and what is quicker or only possible afterwards.
"""

import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import IO, Any

from connectors._postgresql import unencoded
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import Connection, errors, rows
from connectors._postgresql.large_objects import ATTRIBUTES
from connectors._postgresql.quoting import ident
from connectors._postgresql.tools import client_call, find_pg_dump, missing_pg_dump, secret_settings
from engine.errors import SourceError, SourceUnsupported

PRE_DATA, POST_DATA = "pre-data.sql", "post-data.sql"
ROLES, SEQUENCES = "roles.json", "sequences.json"
SECTIONS = {PRE_DATA: "pre-data", POST_DATA: "post-data"}
DUMP_SECONDS_MAX = 3600


@dataclass(slots=True)
class TextDocument:
    """A document that is read when it is asked for."""

    name: str
    load: Callable[[], bytes]

    def read(self) -> bytes:
        return self.load()


class Dump:
    """pg_dump of both sections, running until it is asked for its result."""

    def __init__(self, config: PostgresqlConfig, *, server_version: int, snapshot: str, encoding: str = "") -> None:
        major = server_version // 10000
        program = find_pg_dump(major, folder=config.tools)
        if program is None:
            message, hint = missing_pg_dump(major, folder=config.tools)
            raise SourceUnsupported(message, hint=hint)
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]] = {}
        try:
            for name, section in SECTIONS.items():
                self._running[name] = _start(program, config, section, snapshot, encoding)
        except BaseException:
            self.close()
            raise

    def text(self, name: str) -> bytes:
        """Wait for a section and return it. Raises SourceError with what pg_dump said."""
        process, output, complaints = self._running[name]
        try:
            code = process.wait(DUMP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise SourceError(f"pg_dump has not finished within {DUMP_SECONDS_MAX} s") from None
        if code != 0:
            complaints.seek(0)
            said = " ".join(complaints.read().decode(errors="replace").split())[-500:]
            raise SourceError(
                f"pg_dump failed: {said}",
                hint="the role needs SELECT on every table and USAGE on every schema it dumps",
            )
        output.seek(0)
        return plain_sql(output.read())

    def close(self) -> None:
        """Stop what still runs and drop its output."""
        for process, output, complaints in self._running.values():
            if process.poll() is None:
                process.kill()
                process.wait()
            output.close()
            complaints.close()


def _start(
    program: str, config: PostgresqlConfig, section: str, snapshot: str, encoding: str
) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
    arguments, environment = client_call(program, config.conninfo)
    arguments += [f"--section={section}", f"--snapshot={snapshot}"]
    arguments += [f"--lock-wait-timeout={config.lock_timeout_seconds * 1000}", "--no-tablespaces", "-B"]
    if encoding == unencoded.ENCODING:
        arguments.append(f"--encoding={encoding}")
    if config.layout == "schema":
        arguments.append("--schema=" + '"' + config.schema.replace('"', '""') + '"')
    output, complaints = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115 (closed by Dump.close)
    with secret_settings(config.conninfo, environment) as descriptors:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=complaints, env=environment, pass_fds=descriptors
        )
    return process, output, complaints


def plain_sql(text: bytes) -> bytes:
    r"""Drop psql's own commands (`\restrict …`) that newer versions put around the SQL."""
    head, mark, rest = text.partition(b"\n-- Name: ")
    head = re.sub(rb"(?m)^\\(un)?restrict .*\n?", b"", head)
    body, end, tail = rest.rpartition(b"\n-- PostgreSQL database dump complete")
    tail = re.sub(rb"(?m)^\\(un)?restrict .*\n?", b"", tail)
    return head + mark + body + end + tail


# ---------------------------------------------------------------- items of a dump


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a dump: its kind as pg_dump calls it, schema, tag, and its SQL."""

    kind: str
    schema: str
    tag: str
    sql: str


_HEADER = re.compile(
    r"^--\n-- (?:Data for )?Name: (?P<tag>.*?); Type: (?P<kind>[A-Z ]+); Schema: (?P<schema>.*?); Owner: .*\n--\n",
    re.MULTILINE,
)


def items(document: bytes) -> Iterator[Item]:
    """Cut a section into its entries. A text in a function's body may look like a header: see `run_items`."""
    text = unencoded.decode(document)
    found = list(_HEADER.finditer(text))
    for match, following in zip_longest(found, found[1:]):
        sql = text[match.end() : following.start() if following else len(text)]
        yield Item(match["kind"], "" if match["schema"] == "-" else match["schema"], match["tag"], sql)


# ---------------------------------------------------------------- what pg_dump leaves out

_ROLES = """
WITH RECURSIVE named(oid) AS (
  SELECT d.refobjid FROM pg_shdepend d
   WHERE d.refclassid = 'pg_authid'::regclass
     AND (d.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          OR (d.classid = 'pg_database'::regclass AND d.objid = (SELECT oid FROM pg_database WHERE datname = current_database())))
  UNION SELECT datdba FROM pg_database WHERE datname = current_database()
  UNION SELECT m.roleid FROM pg_auth_members m JOIN named n ON m.member = n.oid
)
SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication, r.rolbypassrls,
       r.rolconnlimit, r.rolvaliduntil::text,
       ARRAY(SELECT g.rolname::text FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid ORDER BY 1),
       ARRAY(SELECT s FROM pg_db_role_setting c, unnest(c.setconfig) s WHERE c.setrole = r.oid
              AND c.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1)
  FROM pg_roles r WHERE r.oid IN (SELECT oid FROM named) AND r.rolname !~ '^pg_' ORDER BY r.rolname
"""

_ROLE_FIELDS = (
    "name", "superuser", "inherit", "createrole", "createdb", "login", "replication", "bypassrls",
    "connection_limit", "valid_until", "member_of", "settings",
)  # fmt: skip

_DATABASE = """
SELECT d.datname, pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, pg_get_userbyid(d.datdba), d.datconnlimit,
       ARRAY(SELECT s FROM pg_db_role_setting c, unnest(c.setconfig) s WHERE c.setdatabase = d.oid AND c.setrole = 0 ORDER BY 1),
       shobj_description(d.oid, 'pg_database'),
       ARRAY(SELECT json_build_array(CASE WHEN a.grantee = 0 THEN 'public' ELSE pg_get_userbyid(a.grantee)::text END,
                                     a.privilege_type, a.is_grantable)::text
               FROM aclexplode(d.datacl) a ORDER BY 1),
       to_jsonb(d) ->> 'datlocprovider', coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale'),
       to_jsonb(d) ->> 'daticurules'
  FROM pg_database d WHERE d.datname = current_database()
"""

_DATABASE_FIELDS = (
    "name", "encoding", "collate", "ctype", "owner", "connection_limit", "settings", "comment", "grants",
    "locale_provider", "locale", "icu_rules",
)  # fmt: skip


def roles_document(connection: Connection) -> bytes:
    """Roles that own or may use anything in the database, and the database's own properties, as JSON."""
    with errors("source"):
        roles = [dict(zip(_ROLE_FIELDS, row, strict=True)) for row in rows(connection, _ROLES)]
        passwords = _passwords(connection)
        for role in roles:
            role["password"] = passwords.get(role["name"])
        database = dict(zip(_DATABASE_FIELDS, rows(connection, _DATABASE)[0], strict=True))
    return _json({"roles": roles, "database": database})


def _passwords(connection: Connection) -> dict[str, str]:
    """Stored verifiers of the roles; none where the role may not read them."""
    if not rows(connection, "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')")[0][0]:
        return {}
    return dict(rows(connection, "SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL"))


_SEQUENCE_VALUES = """
SELECT n.nspname, c.relname, pg_sequence_last_value(s.seqrelid), s.seqrelid::int8
  FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname !~ '^pg_' AND has_sequence_privilege(s.seqrelid, 'SELECT') ORDER BY 1, 2
"""


_SET_AHEAD = """
SELECT {number}, q.last_value FROM {name} AS q, pg_sequence AS s
 WHERE s.seqrelid = {oid} AND NOT q.is_called AND q.last_value <> s.seqstart
"""
SEQUENCES_PER_QUERY = 100


def sequences_document(connection: Connection, *, schema: str = "") -> bytes:
    """Last values of all sequences, null where one was never used, as JSON; not `is_called` where it is the next one."""
    with errors("source"):
        found = [row for row in rows(connection, _SEQUENCE_VALUES) if not schema or row[0] == schema]
        stored = [{"schema": s, "name": n, "last_value": last} for s, n, last, _ in found]
        for number, following in _set_ahead(connection, found):
            stored[number] |= {"last_value": following, "is_called": False}
    return _json(stored)


def _set_ahead(connection: Connection, found: list[tuple[Any, ...]]) -> Iterator[tuple[int, int]]:
    """(number, next value) of sequences that were set and not drawn from since: their last value shows as null."""
    queries = [
        _SET_AHEAD.format(number=number, name=ident(schema, name), oid=oid)
        for number, (schema, name, last, oid) in enumerate(found)
        if last is None
    ]
    for first in range(0, len(queries), SEQUENCES_PER_QUERY):
        yield from rows(connection, " UNION ALL ".join(queries[first : first + SEQUENCES_PER_QUERY]))


def large_objects_document(connection: Connection) -> bytes:
    """Owner, rights, comment and labels of every large object, as JSON."""
    with errors("source"):
        found = rows(connection, f"SELECT loid::int8, attributes FROM ({ATTRIBUTES}) AS each ORDER BY 1")
    return _json([{"oid": loid, **attributes} for loid, attributes in found])


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()
