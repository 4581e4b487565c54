"""The settings of a PostgreSQL source."""

from dataclasses import dataclass
from typing import Literal

from engine.adapters import resolve_secret, setting
from engine.errors import UsageError

LAYOUTS = ("database", "schema", "rows")


@dataclass(frozen=True)
class PostgresqlConfig:
    dsn: str = setting(
        label="Connection", secret=True, help="postgresql://USER:PASSWORD@HOST:PORT/DATABASE, @FILE or env:NAME"
    )
    layout: Literal["database", "schema", "rows"] = setting(
        label="Layout",
        default="database",
        choices=LAYOUTS,
        help="What the tenant owns: a database, a schema, or rows in shared tables",
    )
    schema: str = setting(label="Schema", default="", help="The tenant's schema; for rows: only tables of this schema")
    tenant_column: str = setting(
        label="Tenant column", default="", help="Column that says whose a row is (layout rows)"
    )
    tenant_value: str = setting(
        label="Tenant value", default="", help="Its value for this tenant, as the column holds it"
    )
    include: tuple[str, ...] = setting(
        label="Only these tables", default=(), help="One a line: table or schema.table; * and ? as in the shell"
    )
    exclude: tuple[str, ...] = setting(
        label="Without these tables", default=(), help="One a line: table or schema.table; * and ? as in the shell"
    )
    ignored_links: tuple[str, ...] = setting(
        label="Foreign keys that say nothing about ownership",
        default=(),
        help="One a line: schema.table.constraint (layout rows)",
    )
    definitions: bool = setting(
        label="Keep definitions",
        default=True,
        help="For rows in shared tables: also keep pg_dump's text, so that they restore into an empty database",
    )
    tools: str = setting(label="Client tools", default="", help="Folder with pg_dump; found by itself when empty")
    connect_timeout_seconds: int = setting(label="Connect timeout (s)", default=10)
    statement_timeout_seconds: int = setting(label="Statement timeout (s)", default=0, help="0: none")
    lock_timeout_seconds: int = setting(label="Lock timeout (s)", default=10)
    snapshot_age_seconds_max: int = setting(
        label="Longest snapshot (s)",
        default=6 * 3600,
        help="A backup that takes longer is stopped: its snapshot holds back vacuum",
    )

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work together."""
        if self.layout == "rows" and not (self.tenant_column and self.tenant_value):
            raise UsageError(
                "layout rows needs tenant_column and tenant_value", hint="--set tenant_column=… --set tenant_value=…"
            )
        if self.layout == "schema" and not self.schema:
            raise UsageError("layout schema needs the schema's name", hint="--set schema=NAME")
        if self.layout == "database" and (self.schema or self.tenant_column):
            raise UsageError(
                "layout database takes the whole database", hint="use layout schema or rows for a part of it"
            )

    @property
    def conninfo(self) -> str:
        return resolve_secret(self.dsn)
