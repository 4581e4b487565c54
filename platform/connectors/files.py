"""File trees: a folder on this host, with patterns for what is left out."""

import contextlib
import datetime
import gzip
import os
import stat as statmod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from connectors import registry
from connectors._fields import CopyFields
from connectors._files.patterns import Patterns
from connectors._scratch import FolderScratch
from engine.adapters import setting
from engine.errors import DamageError, SourceChanged, SourceUnsupported, UsageError
from engine.plans import Preview
from engine.ports import (
    DocumentPart,
    ImageSink,
    ImageView,
    PreparedRestore,
    Probe,
    RestoreReport,
    RestoreRequest,
    SourceReader,
    SourceView,
    TablePart,
    TreePart,
)
from engine.progress import Progress
from engine.tree_backup import open_root
from engine.tree_restore import PreparedTree, prepared_tree, preview_tree, tree_settled
from engine.tree_rules import TreeOrder
from engine.tree_tar import write_tar
from engine.tree_view import TreeView

TREE_NAME = "files"
GZIP_LEVEL = 5
UNDO_HINT = "restore its safety backup in full"


@dataclass(frozen=True, slots=True)
class FilesConfig:
    path: str = setting(label="Folder", help="The folder to protect, with everything below it.")
    exclude: tuple[str, ...] = setting(
        label="Leave out",
        help="One pattern a line, as in .gitignore: *.log, /cache, tmp/, **/build, !keep.log. A folder left out is not entered.",
        default=(),
    )
    one_file_system: bool = setting(
        label="Stay on one file system", help="Do not enter folders on which something else is mounted.", default=False
    )


class FilesReader:
    """A folder as it is read; entries are consistent each on its own, not with one another."""

    schema_version = ""

    def __init__(self, config: FilesConfig, patterns: Patterns, identity: tuple[int, int]) -> None:
        self._config, self._patterns, self._identity = config, patterns, identity
        self.position: Mapping[str, Any] = {"at": datetime.datetime.now(datetime.UTC).isoformat()}
        self.facts: Mapping[str, Any] = {
            "path": config.path.encode("utf-8", "backslashreplace").decode(),
            "exclude": list(config.exclude),
        }

    def trees(self) -> Sequence[TreePart]:
        return [
            TreePart(
                TREE_NAME,
                os.fsencode(self._config.path),
                exclude=self._patterns or None,
                one_file_system=self._config.one_file_system,
            )
        ]

    def tables(self) -> Sequence[TablePart]:
        return []

    def documents(self) -> Sequence[DocumentPart]:
        return []

    def finish(self) -> Mapping[str, Any]:
        """Raises SourceChanged when another folder has taken this one's place (an unmount, a swap)."""
        with _root(self._config.path) as (_, info):
            if (info.st_dev, info.st_ino) != self._identity:
                raise SourceChanged(f"{self._config.path} was replaced while it was read", hint="run the backup again")
        return {}


@registry.register
class FilesConnector(CopyFields, FolderScratch):
    """Reads and restores a folder; see engine.ports.Connector."""

    kind: ClassVar[str] = "files"
    label: ClassVar[str] = "Files"
    categories: ClassVar[tuple[str, ...]] = ("assets", "configurations")
    target_keys: ClassVar[tuple[str, ...]] = ("path",)
    Config: ClassVar[type] = FilesConfig

    def __init__(self, config: FilesConfig) -> None:
        if not os.path.isabs(config.path):
            raise UsageError(f"{config.path!r} is not an absolute path", hint="write it from the root, as /srv/files")
        self.config = config
        self._patterns = Patterns(config.exclude)

    def at(self, target: Mapping[str, str]) -> Self:
        """The same connector on another folder. Raises UsageError for a key other than `path`."""
        for key in target:
            if key not in self.target_keys:
                raise UsageError(f"a file tree has no target setting {key!r}", hint="use path=DIR")
        if not target.get("path"):
            raise UsageError("the target folder is missing", hint="use path=DIR")
        return type(self)(replace(self.config, path=os.path.abspath(target["path"])))

    def leaves_out(self, path: bytes) -> bool:
        """True when the patterns leave out this folder (relative to the source's)."""
        return self._patterns(path, True)

    # ------------------------------------------------------------ reading

    def test(self) -> Probe:
        """Open and list the folder; counts nothing. Raises SourceUnreachable, SourceDenied, SourceError."""
        with _root(self.config.path) as (folder, info):
            empty = not os.listdir(folder)
        warnings = []
        if empty:
            warnings.append(f"{self.config.path} is empty: is its disk mounted?")
        if os.geteuid() not in (0, info.st_uid):
            warnings.append("the folder belongs to someone else: files that we may not read will be left out")
        return Probe(f"folder {self.config.path}", {"mode": statmod.filemode(info.st_mode)}, tuple(warnings))

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[SourceReader]:
        """A folder has no snapshot: each file is consistent in itself, and re-read when it changes meanwhile."""
        with _root(self.config.path) as (_, info):
            yield FilesReader(self.config, self._patterns, (info.st_dev, info.st_ino))

    def open_package(self, path: str, progress: Progress) -> contextlib.AbstractContextManager[SourceReader]:
        """Raises SourceUnsupported."""
        raise SourceUnsupported(
            "file trees have no package to import", hint="unpack the tar into the folder and back that up"
        )

    # ------------------------------------------------------------ writing back

    def preview(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Preview:
        """Compare the folder with the view; writes nothing."""
        order = self._order(view, request)
        return preview_tree(
            _tree_of(view),
            os.fsencode(self.config.path),
            in_place=request.in_place,
            overwrite=request.overwrite,
            order=order,
            progress=progress,
        )

    @contextlib.contextmanager
    def prepare(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Iterator["PreparedFiles"]:
        """Stage the folder as it will be, beside it and durable; the commit swaps it in."""
        with prepared_tree(
            _tree_of(view),
            os.fsencode(self.config.path),
            label=request.label,
            overwrite=request.overwrite,
            in_place=request.in_place,
            order=self._order(view, request),
            prove=request.prove,
            progress=progress,
        ) as prepared:
            yield PreparedFiles(prepared)

    def restore(self, view: SourceView, request: RestoreRequest, progress: Progress) -> RestoreReport:
        """Make the folder what the view and the mode say; in place, what backups leave out stays as it is."""
        with self.prepare(view, request, progress) as prepared:
            prepared.commit()
            return prepared.report

    def settle(self, token: Mapping[str, Any]) -> bool | None:
        """Whether the swap of that token took place; one that was killed half-way is finished first."""
        return tree_settled(token)

    def prepare_undo(
        self, image: ImageView, request: RestoreRequest, progress: Progress
    ) -> contextlib.AbstractContextManager[PreparedRestore]:
        """Raises SourceUnsupported: the safety backup is what undoes a restore of files."""
        raise SourceUnsupported("file trees have no change images", hint=UNDO_HINT)

    def preview_undo(self, image: ImageView, request: RestoreRequest, progress: Progress) -> Preview:
        """Raises SourceUnsupported."""
        raise SourceUnsupported("file trees have no change images", hint=UNDO_HINT)

    def _order(self, view: SourceView, request: RestoreRequest) -> TreeOrder:
        """In place, what today's patterns leave out is in no safety backup: dropping it could not be undone."""
        lines = tuple(view.facts.get("exclude", ()))
        # The same patterns as today's leave out the same, and need not be asked path by path.
        then = Patterns(lines) if request.in_place and lines != self.config.exclude else None
        return TreeOrder(
            mode=request.mode,
            modules=request.modules,
            policies=request.policies,
            base=_tree_of(request.base) if request.base else None,
            saved=_tree_of(request.saved) if request.saved and request.in_place else None,
            left_out=self._patterns if request.in_place and self._patterns else None,
            unseen=then or None,
            digest=request.digest,
            samples=request.samples,
        )

    def export(self, view: SourceView, folder: str, progress: Progress) -> list[str]:
        """Write `<source>.tar.gz` into folder, as `tar --xattrs -xzf` reads it."""
        name = f"{view.name}.tar.gz"
        tree = _tree_of(view)
        progress.total(bytes=tree.byte_count, items=tree.entry_count)
        with (
            Path(folder, name).open("xb") as raw,
            gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=raw, mtime=0) as packed,
        ):
            write_tar(tree, packed, progress)
        return [name]


class PreparedFiles:
    """A staged folder as the services see it; see engine.ports.PreparedRestore."""

    def __init__(self, prepared: PreparedTree) -> None:
        self._prepared = prepared
        self.token: Mapping[str, Any] = prepared.token
        self.report = _report(prepared)

    def image(self, sink: ImageSink) -> None:
        """Writes nothing: the safety backup serves."""

    def commit(self) -> None:
        self._prepared.commit()
        self.report = _report(self._prepared)


def _report(prepared: PreparedTree) -> RestoreReport:
    done = prepared.done
    return RestoreReport(files=done.changes, checks=done.checks, warnings=done.warnings, digest=done.digest)


def _tree_of(view: SourceView) -> TreeView:
    tree = next((tree for tree in view.trees if tree.name == TREE_NAME), None)
    if not isinstance(tree, TreeView):
        raise DamageError(f"the backup of {view.name} holds no file tree", hint="was the source of another kind then?")
    return tree


@contextlib.contextmanager
def _root(path: str) -> Iterator[tuple[int, os.stat_result]]:
    folder = open_root(os.fsencode(path))
    try:
        yield folder, os.fstat(folder)
    finally:
        os.close(folder)
