"""Restores to another place: which way of building it fits the layout and what `--target` names."""

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Literal

from connectors._postgresql.catalogue import Catalogue, read_catalogue
from connectors._postgresql.config import PostgresqlConfig
from connectors._postgresql.connection import errors
from connectors._postgresql.inplace import connect_target, restore_in_place
from engine.adapters import resolve_secret
from engine.errors import StalePlan, UsageError
from engine.plans import ChangeDigest
from engine.ports import RestoreReport, RestoreRequest, SourceView
from engine.progress import Progress


@dataclass(frozen=True, slots=True)
class Target:
    """What `--target` named: a server and database, a schema, or both."""

    dsn: str = ""
    schema: str = ""


Way = Literal["schema", "copy", "database"]


def way_of(config: PostgresqlConfig, target: Target, view: SourceView) -> tuple[Way, PostgresqlConfig, str]:
    """How the target is built, with its settings and the schema's name; UsageError when it cannot be."""
    layout = view.facts["layout"]
    there = dataclasses.replace(config, dsn=resolve_secret(target.dsn)) if target.dsn else config
    if not target.dsn and target.schema == config.schema and layout == "schema":
        raise UsageError("that schema is the source itself", hint="leave --target out to restore in place")
    if layout == "schema":
        return "schema", there, target.schema or str(view.facts["schema"])
    if target.schema and target.dsn:
        raise UsageError(
            "name either a schema or a DSN", hint="schema=NAME copies beside the source, dsn=DSN builds anew"
        )
    if layout == "rows" and target.schema in {table.facts["schema"] for table in view.tables}:
        raise UsageError(f"schema {target.schema} holds the shared tables themselves", hint="name a new schema")
    if layout == "rows" and target.schema:
        return "copy", there, target.schema
    if target.schema:
        raise UsageError("a whole database does not fit into a schema", hint="use dsn=DSN")
    return "database", there, ""


def restore_elsewhere(
    config: PostgresqlConfig, target: Target, view: SourceView, request: RestoreRequest, progress: Progress
) -> RestoreReport:
    """Build the backup in another schema or database. TargetOccupied when something is there already."""
    from connectors._postgresql.newdatabase import restore_to_database
    from connectors._postgresql.newschema import copy_rows_to_schema, restore_to_schema
    from connectors._postgresql.partial import selected

    way, there, schema = way_of(config, target, view)
    if restores_in_place(way, there, view, request):
        return restore_in_place(there, view, request, progress)
    with selected(view, request, lambda: live_catalogue(there)) as chosen:
        check_digest(chosen, request)
        if way == "schema":
            return restore_to_schema(there, schema, chosen, request, progress)
        if way == "copy":
            return copy_rows_to_schema(there, schema, chosen, request, progress)
        return restore_to_database(there, chosen, request, progress)


def restores_in_place(way: Way, there: PostgresqlConfig, view: SourceView, request: RestoreRequest) -> bool:
    """Whether the target is a database with all the shared tables, into which one tenant's rows go."""
    from connectors._postgresql.newdatabase import missing_database, replaces_rows

    if way != "database" or not request.overwrite or missing_database(there):
        return False
    with errors("target", there.conninfo), contextlib.closing(connect_target(there)) as connection:
        return replaces_rows(connection, view)


def live_catalogue(there: PostgresqlConfig) -> Catalogue:
    """The tables that are at the target."""
    with errors("target", there.conninfo), contextlib.closing(connect_target(there)) as connection:
        return read_catalogue(connection)


def digest_of_views(view: SourceView) -> str:
    """engine.plans.ChangeDigest of inserting whole tables: their digests stand for their rows."""
    digest = ChangeDigest()
    for table in view.tables:
        digest.section(table.name, [column.name for column in table.columns])
        digest.lines([b"I\t\t" + f"{table.row_count} {table.sha256}".encode()])
    return digest.hexdigest()


def check_digest(view: SourceView, request: RestoreRequest) -> None:
    """Raise StalePlan when something else would be inserted than was approved."""
    if request.digest and request.digest != digest_of_views(view):
        raise StalePlan(
            "the rows to be restored are not those of the preview",
            hint="nothing was changed; look at a new preview and approve it",
        )
