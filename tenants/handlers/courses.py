"""The two courses that a restore in place can take: back to a backup, or back to before another restore."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, cast

from engine.errors import SourceUnsupported
from engine.plans import Preview
from engine.ports import Connector, PreparedRestore, RestoreRequest, SourceView
from engine.repository import Repository
from engine.views import StoredSource
from operations.context import OperationContext
from tenants import reading
from tenants.handlers.unchanged import unchanged_since
from tenants.models import Backup, Restore, RestorePlan, RestoreSource
from tenants.selection import Selection
from tenants.services.undos import changed_beyond_image


@dataclass
class Backups:
    """Views of the backups that a restore reads, each opened once.

    `without` names (source, module)s of the backup to restore that cannot be read and are not wanted.
    """

    repository: Repository
    without: frozenset[tuple[str, str]] = frozenset()
    _opened: dict[str, reading.Views] = field(default_factory=dict)

    def view(self, backup: Backup | None, source: str) -> SourceView | None:
        """The source as that backup has it; None where it has not."""
        if backup is None:
            return None
        if backup.pk not in self._opened:
            self._opened[backup.pk] = reading.views_of(self.repository, backup)
        return self._opened[backup.pk].get(source)

    def held(self, backup: Backup, source: str) -> SourceView:
        """The source as that backup has it. Raises SourceUnsupported where it has not."""
        view = self.view(backup, source)
        if view is None:
            raise SourceUnsupported(f"backup {backup.pk} does not hold source {source}")
        return view

    def wanted(self, backup: Backup, source: str) -> SourceView:
        """The same of the backup to restore, without the tables of modules that cannot be read."""
        view = self.held(backup, source)
        if not self.without:
            return view
        tables = tuple(table for table in view.tables if (source, table.module) not in self.without)
        return cast(SourceView, replace(cast(StoredSource, view), tables=tables))


def request_of(of: Restore | RestorePlan, backups: Backups, source: str, **more: Any) -> RestoreRequest:
    """What is wanted of one source, for its preview and for doing it alike."""
    names = list(of.sources) if isinstance(of, RestorePlan) else [source]
    selection = Selection.of(of.mode, names, of.wishes)
    return RestoreRequest(
        label=of.pk,
        mode=selection.mode,
        in_place=of.in_place,
        modules=selection.modules.get(source, ()),
        policies=selection.policies.get(source, {}),
        clocks=selection.clocks.get(source, {}),
        base=backups.view(of.base, source),
        **more,
    )


@dataclass
class ToBackup:
    """Make each source what the backup holds, as the mode says."""

    context: OperationContext
    restore: Restore
    backups: Backups

    def request(self, row: RestoreSource) -> RestoreRequest:
        """What is wanted of the row's source."""
        restore = self.restore
        return request_of(
            restore,
            self.backups,
            row.name,
            overwrite=bool(self.context.params.get("overwrite")),
            prove=restore.prove,
            validate=restore.validate_after,
            saved=self.backups.view(row.saved, row.name),
        )

    def prepare(
        self, connector: Connector, row: RestoreSource, request: RestoreRequest
    ) -> AbstractContextManager[PreparedRestore]:
        """Do it up to the last step."""
        return connector.prepare(self.backups.wanted(self.restore.backup, row.name), request, self.context)

    def preview(self, connector: Connector, row: RestoreSource, request: RestoreRequest) -> Preview:
        """Say what would be done."""
        return connector.preview(self.backups.wanted(self.restore.backup, row.name), request, self.context)


@dataclass
class ToBefore:
    """Put each source back to what it was before another restore: by its image, else by its safety backup."""

    context: OperationContext
    undoes: Restore
    backups: Backups
    label: str
    prove: bool = False
    validate: bool = True

    def request(self, row: RestoreSource) -> RestoreRequest:
        """What is wanted of the row's source."""
        return self._wanted(row.name, self.backups.view(row.saved, row.name))

    def _wanted(self, source: str, saved: SourceView | None) -> RestoreRequest:
        """What the other restore had changed, and no more."""
        modules = Selection.of(self.undoes.mode, [source], self.undoes.wishes).modules.get(source, ())
        selective = bool(modules) and not self._first(source).image
        return RestoreRequest(
            label=self.label,
            mode="selective" if selective else "full",
            overwrite=True,
            prove=self.prove,
            validate=self.validate,
            modules=modules,
            # A module that the restore had brought back out of nothing is known to its backup only.
            base=self._made_of(source) if selective else None,
            saved=saved,
        )

    def prepare(
        self, connector: Connector, row: RestoreSource, request: RestoreRequest
    ) -> AbstractContextManager[PreparedRestore]:
        """Do it up to the last step. Raises StalePlan when the source is not what the other restore made it."""
        first = self._first(row.name)
        if first.image:
            for text in left_behind(first):
                self.context.warn("restore.left_behind", text)
            image = reading.image_of(self.backups.repository, first)
            return connector.prepare_undo(image, request, self.context)
        before = self._before(first)
        if not request.digest:
            unchanged_since(
                before=before,
                now=request.saved,
                backup=self._made_of(row.name),
                modules=request.modules,
                undoes=self.undoes.pk,
            )
        return connector.prepare(before, request, self.context)

    def preview(self, connector: Connector, row: RestoreSource, request: RestoreRequest) -> Preview:
        """Say what would be done, whatever became of the source since."""
        return self._previewed(connector, row.name, request)

    def preview_source(self, connector: Connector, source: str) -> Preview:
        """The same for a plan, before there is a row."""
        return self._previewed(connector, source, self._wanted(source, None))

    def _previewed(self, connector: Connector, source: str, request: RestoreRequest) -> Preview:
        first = self._first(source)
        if first.image:
            image = reading.image_of(self.backups.repository, first)
            preview = connector.preview_undo(image, request, self.context)
            return replace(preview, warnings=(*preview.warnings, *left_behind(first)))
        return connector.preview(self._before(first), request, self.context)

    def _made_of(self, source: str) -> SourceView:
        """What the other restore made of the source: its backup's, or when it was an undo itself, what that put back."""
        undone = self.undoes.undoes
        if undone is None:
            return self.backups.held(self.undoes.backup, source)
        return self._before(undone.sources.select_related("saved").get(name=source))

    def _first(self, source: str) -> RestoreSource:
        return self.undoes.sources.select_related("saved").get(name=source)

    def _before(self, first: RestoreSource) -> SourceView:
        if first.saved is None:
            raise SourceUnsupported(
                f"of source {first.name} nothing was saved: it could not be read before {self.undoes.pk}",
                hint="restore another backup of it",
            )
        return self.backups.held(first.saved, first.name)


def left_behind(first: RestoreSource) -> list[str]:
    """Say what an undo by change image leaves as the restore made it, and how to have it back."""
    return [
        f"{name} of source {first.name} stay as the restore made them; to put them back, too:"
        f" restore plan {first.saved_id} --mode selective --source {first.name} --module '{name}'"
        for name in changed_beyond_image(first)
    ]
