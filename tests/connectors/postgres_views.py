"""A backup of a PostgreSQL source held in memory, and the SQL to make and compare what it protects."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.ports import RestoreReport, RestoreRequest, TablePart
from engine.progress import NullProgress
from engine.table_runs import table_digest


class MemoryTable:
    """engine.ports.TableView of one part, with its lines as they were read."""

    def __init__(self, part: TablePart) -> None:
        self.name, self.module = part.name, part.module
        self.columns, self.key, self.facts = part.columns, part.key, part.facts
        self.fingerprint, self.version_domain = part.fingerprint, part.version_domain
        self.lines = [line for batch in part.rows() for line in batch]
        self.rows_only = [line.partition(b"\t")[2] for line in self.lines]
        self.sha256, self.row_count, self.byte_count = table_digest([self.rows_only], self.key)

    def rows(self) -> Iterator[list[bytes]]:
        for first in range(0, len(self.rows_only), 1000):
            yield self.rows_only[first : first + 1000]

    def rows_for(self, keys: Sequence[bytes]) -> Iterator[list[bytes]]:
        wanted = set(keys)
        yield [line for line in self.rows_only if self.key.text(line) in wanted]

    def rows_after(self, key_text: bytes | None, *, limit: int) -> list[bytes]:
        texts = [self.key.text(line) for line in self.rows_only]
        first = 0 if key_text is None else texts.index(key_text) + 1
        return self.rows_only[first : first + limit]


@dataclass
class MemoryDocument:
    name: str
    data: bytes

    def read(self) -> bytes:
        return self.data


@dataclass
class MemoryView:
    position: Mapping[str, Any]
    facts: Mapping[str, Any]
    tables: tuple[MemoryTable, ...]
    documents: Mapping[str, MemoryDocument]
    schema_version: str = ""
    name: str = "db"
    kind: str = "postgresql"
    category: str = "database"
    trees: tuple[Any, ...] = ()

    def digests(self) -> dict[str, str]:
        return {table.name: table.sha256 for table in self.tables}


def take(config: PostgresqlConfig) -> MemoryView:
    """Read the whole source as a full backup does."""
    with PostgresqlConnector(config).open(NullProgress()) as reader:
        tables = tuple(MemoryTable(part) for part in reader.tables())
        documents = {part.name: MemoryDocument(part.name, part.read()) for part in reader.documents()}
        facts = {**reader.facts, **reader.finish()}
        return MemoryView(reader.position, facts, tables, documents, reader.schema_version)


@dataclass
class Restored:
    """A restore and what it reported."""

    report: RestoreReport
    warnings: list[tuple[str, str]] = field(default_factory=list)

    def changes(self) -> dict[str, tuple[int, int, int]]:
        return {
            change.name: (change.insert, change.update, change.delete)
            for change in self.report.tables
            if change.insert or change.update or change.delete
        }


def put_back(
    config: PostgresqlConfig, view: MemoryView, *, target: Mapping[str, str] | None = None, **request: Any
) -> Restored:
    """Restore in place, or to a target."""
    connector = PostgresqlConnector(config)
    if target:
        connector = connector.at(target)
    progress = NullProgress()
    report = connector.restore(view, RestoreRequest("opr_test", in_place=not target, **request), progress)
    return Restored(report, progress.warnings)


def execute(dsn: str, sql: str) -> None:
    """Run a script in one transaction."""
    with psycopg.connect(dsn) as connection:
        connection.execute(sql.encode())


def query(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(sql.encode()).fetchall()


def table_text(dsn: str, table: str, where: str = "true") -> list[str]:
    """Every row's text, sorted: what must be equal before and after."""
    return [row[0] for row in query(dsn, f"SELECT t::text FROM {table} AS t WHERE {where} ORDER BY 1")]


def psql(dsn: str, sql: str) -> str:
    """Run a script through psql, as an operator would."""
    done = subprocess.run(["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", dsn], input=sql, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
