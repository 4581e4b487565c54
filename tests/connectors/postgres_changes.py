"""Previews, prepared restores and undos of a PostgreSQL source, with change images held in memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.plans import Preview
from engine.ports import RestoreReport, RestoreRequest
from engine.progress import NullProgress
from tests.connectors.postgres_views import MemoryView

LAYOUTS = ("rows", "schema", "database")


@dataclass
class MemoryImage:
    """engine.ports.ImageSink and ImageView in one."""

    written: list[tuple[Mapping[str, Any], list[list[bytes]]]] = field(default_factory=list)

    def table(self, header: Mapping[str, Any]) -> None:
        self.written.append((header, []))

    def rows(self, lines: Sequence[bytes]) -> None:
        self.written[-1][1].append(list(lines))

    def sections(self) -> Iterator[tuple[Mapping[str, Any], Iterator[list[bytes]]]]:
        for header, batches in self.written:
            yield header, iter(batches)


@dataclass
class Applied:
    """A restore that was committed."""

    report: RestoreReport
    image: MemoryImage
    token: Mapping[str, Any]
    warnings: list[tuple[str, str]]


def request_of(**request: Any) -> RestoreRequest:
    return RestoreRequest("opr_test", **request)


def preview(
    config: PostgresqlConfig, view: MemoryView, *, target: Mapping[str, str] | None = None, **request: Any
) -> Preview:
    connector = PostgresqlConnector(config)
    if target:
        connector = connector.at(target)
    return connector.preview(view, request_of(in_place=not target, **request), NullProgress())


def apply(config: PostgresqlConfig, view: MemoryView, **request: Any) -> Applied:
    """Prepare, keep the image, commit."""
    image, progress = MemoryImage(), NullProgress()
    with PostgresqlConnector(config).prepare(view, request_of(**request), progress) as prepared:
        prepared.image(image)
        prepared.commit()
        return Applied(prepared.report, image, prepared.token, progress.warnings)


def undo(config: PostgresqlConfig, image: MemoryImage, **request: Any) -> Applied:
    again, progress = MemoryImage(), NullProgress()
    with PostgresqlConnector(config).prepare_undo(image, request_of(**request), progress) as prepared:
        prepared.image(again)
        prepared.commit()
        return Applied(prepared.report, again, prepared.token, progress.warnings)


def preview_undo(config: PostgresqlConfig, image: MemoryImage, **request: Any) -> Preview:
    return PostgresqlConnector(config).preview_undo(image, request_of(**request), NullProgress())


def contents(dsn: str, where: str = "true") -> dict[str, list[str]]:
    """Every row of every table of the database, sorted: `where` may name the column tenant."""
    with psycopg.connect(dsn) as connection:
        connection.execute("set timezone = 'UTC'")
        names = connection.execute(
            "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where relkind in ('r', 'p') and not relispartition and nspname !~ '^pg_' and nspname <> 'information_schema' order by 1"
        ).fetchall()
        found = {}
        for (name,) in names:
            lines = connection.execute(f"select t::text from {name} as t where {where} order by 1".encode()).fetchall()
            found[str(name)] = [line[0] for line in lines]
        return found


def config_of(dsn: str, layout: str, **more: Any) -> PostgresqlConfig:
    """The source in a layout: tenant 1, the schema public, or the whole database."""
    settings: dict[str, Any] = {"dsn": dsn, "layout": layout, "definitions": False}
    if layout == "rows":
        settings |= {"tenant_column": "tenant", "tenant_value": "1"}
    elif layout == "schema":
        settings |= {"schema": "public"}
    return PostgresqlConfig(**(settings | more))
