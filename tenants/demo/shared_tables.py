"""The demo's PostgreSQL part: rows of all three tenants in shared tables, in a schema of its own."""
# ruff: noqa: S608 - every name in these statements is a constant of this file

import os
from typing import Any

from engine.errors import UsageError

SCHEMA = "lastro_demo"
_MARK = "made by the Lastro demo"
_TENANTS = ("aurora", "boreal", "cobre")
_ROWS = 3_000
_SECONDS = 5


class SharedTables:
    """A schema in a PostgreSQL that was named for the demo; made anew, never taken over from somebody else."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def settings(self, slug: str) -> dict[str, str]:
        """Settings of one tenant's source."""
        return {
            "dsn": self._dsn,
            "layout": "rows",
            "schema": SCHEMA,
            "tenant_column": "tenant",
            "tenant_value": slug,
        }

    def make(self) -> dict[str, Any]:
        """Make schema and rows. Raises UsageError when a schema of this name is not the demo's."""
        self.remove()
        with self._connect() as connection:
            connection.execute(f"CREATE SCHEMA {SCHEMA}")
            connection.execute(f"COMMENT ON SCHEMA {SCHEMA} IS '{_MARK}'")
            connection.execute(
                f"CREATE TABLE {SCHEMA}.guest (id bigserial PRIMARY KEY, tenant text NOT NULL, email text, made timestamptz)"
            )
            connection.execute(
                f"CREATE TABLE {SCHEMA}.booking (id bigserial PRIMARY KEY, tenant text NOT NULL,"
                f" guest_id bigint NOT NULL REFERENCES {SCHEMA}.guest, price numeric, extra jsonb)"
            )
            # No tenant column: whose an item is, only the foreign key says.
            connection.execute(
                f"CREATE TABLE {SCHEMA}.item (id bigserial PRIMARY KEY,"
                f" booking_id bigint NOT NULL REFERENCES {SCHEMA}.booking ON DELETE CASCADE, what text)"
            )
            connection.execute(f"CREATE INDEX ON {SCHEMA}.guest (tenant, id)")
            connection.execute(f"CREATE INDEX ON {SCHEMA}.booking (tenant, id)")
            connection.execute(f"CREATE INDEX ON {SCHEMA}.item (booking_id)")
            names = "ARRAY['" + "','".join(_TENANTS) + "']"
            connection.execute(
                f"INSERT INTO {SCHEMA}.guest (tenant, email, made) SELECT ({names})[1 + g % 3], 'g' || g || '@example.org',"
                f" '2026-01-01'::timestamptz + g * interval '1 minute' FROM generate_series(1, {_ROWS}) g"
            )
            connection.execute(
                f"INSERT INTO {SCHEMA}.booking (tenant, guest_id, price, extra) SELECT tenant, id, id / 7.0,"
                f" jsonb_build_object('n', id) FROM {SCHEMA}.guest, generate_series(1, 2)"
            )
            connection.execute(
                f"INSERT INTO {SCHEMA}.item (booking_id, what) SELECT id, md5(id::text) FROM {SCHEMA}.booking"
            )
        return {"rows": _ROWS * 5}

    def change(self) -> None:
        """A day's work in everybody's rows."""
        with self._connect() as connection:
            connection.execute(f"UPDATE {SCHEMA}.booking SET price = price + 1 WHERE id % 500 = 1")

    def damage(self, slug: str) -> int:
        """Delete and change rows of one tenant; says how many."""
        with self._connect() as connection:
            gone = connection.execute(
                f"DELETE FROM {SCHEMA}.booking WHERE tenant = %s AND id %% 3 = 0", (slug,)
            ).rowcount
            changed = connection.execute(f"UPDATE {SCHEMA}.guest SET email = NULL WHERE tenant = %s", (slug,)).rowcount
        return int(gone + changed)

    def fingerprint(self) -> dict[str, str]:
        """Every row of every tenant as text."""
        lines = {}
        with self._connect() as connection:
            for table in ("guest", "booking", "item"):
                for key, text in connection.execute(f"SELECT id, t::text FROM {SCHEMA}.{table} t"):
                    lines[f"postgresql {table} {key}"] = text
        return lines

    def remove(self) -> None:
        """Drop the demo's schema, if it is the demo's. Raises UsageError otherwise."""
        with self._connect() as connection:
            row = connection.execute(
                "SELECT obj_description(oid, 'pg_namespace') FROM pg_namespace WHERE nspname = %s", (SCHEMA,)
            ).fetchone()
            if row is None:
                return
            if row[0] != _MARK:
                raise UsageError(
                    f"the database has a schema {SCHEMA} that is not the demo's", hint="use another database"
                )
            connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")

    def _connect(self) -> Any:
        import psycopg

        return psycopg.connect(self._dsn, connect_timeout=_SECONDS)


def shared_tables() -> SharedTables | None:
    """The PostgreSQL that LASTRO_DEMO_DSN names, or the one libpq's own variables name; None without either.

    A server that merely happens to listen is left alone: nobody asked for a schema in it.
    """
    dsn = os.environ.get("LASTRO_DEMO_DSN", "")
    if not dsn and (os.environ.get("PGHOST") or os.environ.get("PGSERVICE")):
        dsn = "postgresql://"
    if not dsn:
        return None
    import psycopg

    try:
        psycopg.connect(dsn, connect_timeout=_SECONDS).close()
    except psycopg.OperationalError:
        return None
    return SharedTables(dsn)
