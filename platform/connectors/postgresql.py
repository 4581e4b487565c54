"""PostgreSQL 14 to 18: a database, a schema, or a tenant's rows in shared tables."""

import dataclasses
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from connectors import registry
from connectors._fields import CopyFields
from connectors._postgresql.config import PostgresqlConfig
from engine.errors import SourceUnsupported, UsageError
from engine.plans import Preview
from engine.ports import (
    ImageView,
    PreparedRestore,
    Probe,
    RestoreReport,
    RestoreRequest,
    ScratchSite,
    SourceReader,
    SourceView,
)
from engine.progress import Progress

if TYPE_CHECKING:
    from connectors._postgresql.target import Target


@registry.register
class PostgresqlConnector(CopyFields):
    """engine.ports.Connector; everything that needs the driver lives in `connectors._postgresql`."""

    kind: ClassVar[str] = "postgresql"
    label: ClassVar[str] = "PostgreSQL"
    categories: ClassVar[tuple[str, ...]] = ("database",)
    target_keys: ClassVar[tuple[str, ...]] = ("dsn", "schema")
    Config: ClassVar[type] = PostgresqlConfig

    def __init__(self, config: PostgresqlConfig) -> None:
        self._config = config
        self._target: Target | None = None

    def test(self) -> Probe:
        """Connect, read the catalogues, say what a backup would take and what stands in its way."""
        from connectors._postgresql.probe import probe

        self._config.validate()
        return probe(self._config)

    def open(self, progress: Progress) -> AbstractContextManager[SourceReader]:
        """Export one snapshot and lock its tables against changes of schema."""
        from connectors._postgresql.reader import open_reader

        return open_reader(self._config, progress)

    def at(self, target: Mapping[str, str]) -> Self:
        """The same source with `schema=NAME` or `dsn=DSN` (or both) as the place to restore to."""
        from connectors._postgresql.target import Target

        unknown = sorted(set(target) - set(self.target_keys))
        if unknown:
            raise UsageError(f"unknown target {unknown[0]!r}", hint="schema=NAME or dsn=DSN")
        other = type(self)(dataclasses.replace(self._config))
        other._target = Target(dsn=target.get("dsn", ""), schema=target.get("schema", ""))
        return other

    def restore(self, view: SourceView, request: RestoreRequest, progress: Progress) -> RestoreReport:
        """Make the target what the view holds: in place by a difference, elsewhere by building it anew."""
        self._config.validate()
        if self._target is None:
            from connectors._postgresql.inplace import restore_in_place

            return restore_in_place(self._config, view, request, progress)
        from connectors._postgresql.target import restore_elsewhere

        return restore_elsewhere(self._config, self._target, view, request, progress)

    def scratch(self, name: str, site: ScratchSite) -> Self:
        """The connector on a schema beside the source, or on a database of that name."""
        from connectors._postgresql.scratch import scratch_target

        return self.at(scratch_target(self._config, name, site))

    def scratch_ask(self, name: str, site: ScratchSite, question: str, *, seconds: int) -> str:
        """Ask in a read-only transaction; unqualified names mean the restored tables."""
        from connectors._postgresql.scratch import ask

        return ask(self._config, name, site, question, seconds=seconds)

    def question_try(self, question: str, *, seconds: int) -> str | None:
        """Ask the live tables in a read-only transaction; where they are shared by tenants, only have it planned."""
        from connectors._postgresql.scratch import question_try

        return question_try(self._config, question, seconds=seconds)

    def scratch_place(self, name: str, site: ScratchSite) -> Mapping[str, str]:
        """`dsn`, and `schema` where it is one."""
        from connectors._postgresql.scratch import scratch_target

        return {"dsn": self._config.conninfo, **scratch_target(self._config, name, site)}

    def scratch_drop(self, name: str, site: ScratchSite) -> None:
        """Drop the schema or the database."""
        from connectors._postgresql.scratch import drop

        drop(self._config, name, site)

    def preview(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Preview:
        """Say what `restore` would do, from a transaction that is rolled back."""
        self._config.validate()
        if self._target is None:
            from connectors._postgresql.previewing import preview_in_place

            return preview_in_place(self._config, view, request, progress)
        from connectors._postgresql.elsewhere import preview_elsewhere

        return preview_elsewhere(self._config, self._target, view, request, progress)

    def prepare(
        self, view: SourceView, request: RestoreRequest, progress: Progress
    ) -> AbstractContextManager[PreparedRestore]:
        """Apply in place, in a transaction that is held open until `commit`."""
        from connectors._postgresql.inplace import prepare_in_place

        self._config.validate()
        if self._target is not None:
            raise UsageError("only a restore in place is prepared", hint="use restore for another target")
        return prepare_in_place(self._config, view, request, progress)

    def prepare_undo(
        self, image: ImageView, request: RestoreRequest, progress: Progress
    ) -> AbstractContextManager[PreparedRestore]:
        """Put back the rows of a change image, in a transaction that is held open until `commit`."""
        from connectors._postgresql.inplace import prepare_undo

        self._config.validate()
        return prepare_undo(self._config, image, request, progress)

    def preview_undo(self, image: ImageView, request: RestoreRequest, progress: Progress) -> Preview:
        """Say what `prepare_undo` would do now."""
        from connectors._postgresql.previewing import preview_undo

        self._config.validate()
        return preview_undo(self._config, image, request, progress)

    def settle(self, token: Mapping[str, Any]) -> bool | None:
        """Ask the server what became of a commit whose answer was lost (`pg_xact_status`)."""
        from connectors._postgresql.committing import settle
        from connectors._postgresql.inplace import connect_target

        return settle(token, lambda: connect_target(self._config))

    def export(self, view: SourceView, folder: str, progress: Progress) -> list[str]:
        """Write `<source>.sql.gz`, which psql reads into an empty database."""
        from connectors._postgresql.export import export

        return export(view, folder, progress)

    def open_package(self, path: str, progress: Progress) -> AbstractContextManager[SourceReader]:
        """There is no portable package of PostgreSQL to read from."""
        raise SourceUnsupported(
            "a PostgreSQL source has no package format", hint="load the dump with psql and back that up"
        )
