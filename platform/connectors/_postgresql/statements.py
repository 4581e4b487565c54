"""Apply the entries of a pg_dump to a server, one by one, forgiving what may differ between servers."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import psycopg

from connectors._postgresql.connection import Connection, clean_message, run
from connectors._postgresql.definitions import Item
from engine.errors import SchemaMismatch, TargetError

MERGED_ITEMS_MAX = 20

FORGIVEN_KINDS = {
    "ACL", "DEFAULT ACL", "COMMENT", "SECURITY LABEL", "PUBLICATION", "PUBLICATION TABLE",
    "PUBLICATION TABLES IN SCHEMA", "SUBSCRIPTION", "SUBSCRIPTION TABLE", "EVENT TRIGGER",
}  # fmt: skip
"""Kinds whose failure leaves the data whole: said as a warning."""

SCHEMA_EXISTS = "42P06"
INSUFFICIENT_PRIVILEGE = "42501"
_EXISTS = {"42P06", "42710", "42P07", "42723"}
_CREATE_LINE = re.compile(r"(?m)^CREATE SCHEMA .*;$")
_OWNER_LINE = re.compile(r"(?m)^ALTER [A-Z ]+ .* OWNER TO .*;$")


@dataclass
class Runner:
    """Runs items on a connection; inside a transaction each behind a savepoint."""

    connection: Connection
    warn: Callable[[str], None]
    skip_existing: bool = False
    """Leave alone what is there already."""
    links_may_dangle: bool = False
    """Foreign keys to rows that are not restored are added without validation."""
    done: int = field(default=0)

    def run_all(self, entries: Iterable[Item]) -> None:
        """Run every entry in order. Raises SchemaMismatch or TargetError for one that the data need."""
        pending = list(entries)
        at = 0
        while at < len(pending):
            at += self._run_joined(pending, at)
            self.done = at

    def _run_joined(self, pending: Sequence[Item], at: int) -> int:
        """Run an entry; one that a text like a header has cut in two is joined with what follows it."""
        item = pending[at]
        for count in range(1, MERGED_ITEMS_MAX + 1):
            try:
                self.run_item(item)
            except psycopg.errors.SyntaxError as error:
                if at + count >= len(pending) or count == MERGED_ITEMS_MAX:
                    raise TargetError(f"{item.kind} {item.tag}: {clean_message(error)}") from None
                following = pending[at + count]
                header = f"--\n-- Name: {following.tag}; Type: {following.kind}; Schema: {following.schema or '-'}; Owner: -\n--\n"
                item = Item(item.kind, item.schema, item.tag, item.sql + header + following.sql)
            else:
                return count
        raise AssertionError("the loop returns or raises")

    def run_item(self, item: Item) -> None:
        """Run one entry, without its owner when the role does not exist here."""
        error = self._try(item.sql)
        if error is None or (self.skip_existing and error.sqlstate in _EXISTS):
            return
        if item.kind == "SCHEMA" and error.sqlstate == SCHEMA_EXISTS:
            # Every new database has the schema public, and an extension made beforehand its own.
            self._try(_CREATE_LINE.sub("", item.sql))
            return
        if isinstance(error, psycopg.errors.SyntaxError):
            raise error
        if _OWNER_LINE.search(item.sql) and error.sqlstate in ("42704", "42501"):
            without = self._try(_OWNER_LINE.sub("", item.sql))
            if without is None:
                self.warn(f"{item.kind} {item.tag}: its owner is not kept ({clean_message(error)})")
                return
            error = without
        if item.kind == "FK CONSTRAINT" and self.links_may_dangle and error.sqlstate == "23503":
            error = self._try(item.sql.rstrip().rstrip(";") + " NOT VALID;")
            if error is None:
                self.warn(f"{item.tag}: refers to rows that are not in the backup, added without validation")
                return
        if item.kind in FORGIVEN_KINDS:
            self.warn(f"{item.kind} {item.tag}: {clean_message(error)}")
            return
        if item.kind == "EXTENSION":
            hint = "install its package on the target's server"
            if error.sqlstate == INSUFFICIENT_PRIVILEGE:
                hint = "restore as a superuser, or have one create the extension in the target first"
            raise SchemaMismatch(f"extension {item.tag}: {clean_message(error)}", hint=hint)
        hint = "the definitions come from pg_dump"
        if error.sqlstate == INSUFFICIENT_PRIVILEGE:
            hint = "restore as a role that may create it, such as a superuser"
        raise TargetError(f"{item.kind} {item.tag}: {clean_message(error)}", hint=hint)

    def _try(self, sql: str) -> psycopg.Error | None:
        inside = self.connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        try:
            if inside:
                run(self.connection, "SAVEPOINT lastro_item")
            run(self.connection, sql)
            if inside:
                run(self.connection, "RELEASE SAVEPOINT lastro_item")
        except psycopg.OperationalError:
            # The server or the connection is gone, or a lock was not to be had: nothing to forgive.
            raise
        except psycopg.Error as error:
            if inside:
                run(self.connection, "ROLLBACK TO SAVEPOINT lastro_item")
            return error
        return None
