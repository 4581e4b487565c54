"""Restores to another place: which way of building it fits the layout and what `--target` names."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from connectors._postgresql.config import PostgresqlConfig
from engine.adapters import resolve_secret
from engine.errors import UsageError
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

    way, there, schema = way_of(config, target, view)
    if way == "schema":
        return restore_to_schema(there, schema, view, request, progress)
    if way == "copy":
        return copy_rows_to_schema(there, schema, view, request, progress)
    return restore_to_database(there, view, request, progress)
