"""Event logs: chained segments in `event-log/` and `event-log-snapshot.json` beside it.

The formats are in docs/formats/event-log-package.md. A broken chain is backed up all the same and said.
"""

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from connectors import registry
from connectors._eventlog.capture import Capture, capture, changed_sealed, list_segments
from connectors._eventlog.compare import LogPlan, plan_log, read_live
from connectors._eventlog.extract import extract_tree
from connectors._eventlog.package import PackageManifest, sorted_files, write_package
from connectors._eventlog.package_read import PackageRead, read_package
from connectors._eventlog.prepared import PreparedLog
from connectors._eventlog.reader import TREE_NAME, LogReader, warn_findings
from connectors._eventlog.restore import put_log, require_same, verify_log
from connectors._eventlog.segment import LOG_FOLDER, SNAPSHOT_NAME
from connectors._eventlog.target import TargetFolder, staged
from connectors._eventlog.verified import Verified, verify_folder
from connectors._fields import CopyFields
from connectors._scratch import FolderScratch
from engine.adapters import setting
from engine.errors import (
    DamageError,
    NameUnknown,
    SourceError,
    SourceUnreachable,
    SourceUnsupported,
    StalePlan,
    TargetFull,
    UsageError,
)
from engine.plans import Policy, Preview
from engine.ports import ImageView, PreparedRestore, Probe, RestoreReport, RestoreRequest, SourceReader, SourceView
from engine.progress import NullProgress, Progress
from engine.tree_room import room_at
from engine.tree_view import TreeView

LEFT_OUT_NAMES_MAX = 20
MODULES = (TREE_NAME, ".")
"""By which names a log is chosen: the manifest's, and what it is in the tree."""
BLOCK_BYTES = 4096
UNDO_HINT = "restore its safety backup in full"


@dataclass(frozen=True, slots=True)
class EventLogConfig:
    path: str = setting(
        label="Data folder", help="The folder that holds event-log/ and event-log-snapshot.json, not event-log/ itself."
    )


@registry.register
class EventLogConnector(CopyFields, FolderScratch):
    """Reads and restores a hash-chained event log; see engine.ports.Connector."""

    kind: ClassVar[str] = "eventlog"
    label: ClassVar[str] = "Event log (chained segments)"
    categories: ClassVar[tuple[str, ...]] = ("database",)
    target_keys: ClassVar[tuple[str, ...]] = ("path",)
    Config: ClassVar[type] = EventLogConfig

    def __init__(self, config: EventLogConfig) -> None:
        self.config = config
        self._path = Path(config.path)

    def at(self, target: Mapping[str, str]) -> Self:
        """The same connector on another data folder. Raises UsageError for a key other than `path`."""
        for key in target:
            if key not in self.target_keys:
                raise UsageError(f"an event log has no target setting {key!r}", hint="use path=DIR")
        if not target.get("path"):
            raise UsageError("the target folder is missing", hint="use path=DIR")
        return type(self)(replace(self.config, path=target["path"]))

    # ------------------------------------------------------------ reading

    def test(self) -> Probe:
        """Look at the folder and read the newest segment. Raises SourceUnreachable, SourceDenied, SourceError."""
        self._require_folder()
        segments, others = list_segments(self._path / LOG_FOLDER)
        warnings = []
        if not segments:
            warnings.append(f"{self._path} holds no segment yet: the log is empty")
        if segments and not (self._path / SNAPSHOT_NAME).exists():
            warnings.append(f"there is no {SNAPSHOT_NAME} beside the log")
        if others:
            warnings.append(f"{len(others)} other files in {LOG_FOLDER}/ are no segments and will be left out")
        details: dict[str, Any] = {"segments": len(segments)}
        if segments:
            newest = verify_folder(self._path, segments[-1:], NullProgress())
            details["last_event_id"] = newest.summary["last_event_id"]
        first = f" from number {segments[0].number}" if segments and segments[0].number > 1 else ""
        return Probe(
            f"event log with {len(segments)} segment{'s' * (len(segments) != 1)}{first}", details, tuple(warnings)
        )

    def _require_folder(self) -> None:
        """A missing data folder may be a disk that is not mounted, and must never look like an empty log."""
        if not self._path.is_dir():
            raise SourceUnreachable(
                f"cannot open {self._path}: no such folder",
                hint="try the folder that holds event-log/; is its disk mounted?",
            )
        if self._path.name == LOG_FOLDER and not (self._path / LOG_FOLDER).exists() and list_segments(self._path)[0]:
            raise SourceError(f"{self._path} is the log folder itself", hint=f"try its parent: {self._path.parent}")

    @contextlib.contextmanager
    def open(self, progress: Progress) -> Iterator[SourceReader]:
        """Stage the log as it is now, verify it, and give the stage to be read."""
        self._require_folder()
        with _staging() as stage:
            read_at = datetime.datetime.now(datetime.UTC)
            captured = capture(self._path, stage, progress)
            verified = verify_folder(stage, captured.segments, progress)
            warn_findings(verified, progress)
            _warn_behind(verified, captured, progress)
            extra = {
                "source_dir": self.config.path,
                "pruned_while_reading": captured.pruned_while_reading,
                "left_out": [_shown(name) for name in captured.left_out[:LEFT_OUT_NAMES_MAX]],
            }

            def recheck() -> Mapping[str, Any]:
                changed = changed_sealed(captured, self._path, verified.files)
                if changed:
                    progress.warn(
                        "eventlog.segment_changed",
                        f"{changed[0]} was sealed and yet changed while it was backed up; the earlier content is kept",
                    )
                return {"changed_while_reading": changed[:LEFT_OUT_NAMES_MAX]}

            yield LogReader(verified, read_at, extra, recheck)

    @contextlib.contextmanager
    def open_package(self, path: str, progress: Progress) -> Iterator[SourceReader]:
        """Read a `backup-eventlog-….tar.gz` as if it were the source.

        Raises SourceUnreachable, SourceUnsupported, DamageError naming the file that is not what its manifest says.
        """
        with _staging() as stage:
            package = read_package(Path(path), stage, progress)
            verified = verify_folder(stage, package.segments, progress)
            _warn_package(package, verified, progress)
            extra = {
                "source_dir": package.manifest.source_dir,
                "imported_from": _shown(os.path.basename(path)),
                "package_said_valid": package.manifest.chain_valid,
            }
            yield LogReader(verified, package.manifest.created_at, extra)

    # ------------------------------------------------------------ writing back

    def preview(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Preview:
        """Compare both logs event by event where their segments differ; writes nothing."""
        progress.phase("compare")
        plan = self._plan(view, request, progress)
        needed = sum(plan.entries[path].stat.size + BLOCK_BYTES for path in plan.take) if plan.differs else 0
        room = room_at(os.fsencode(self._path))
        warnings = list(plan.warnings)
        if room.bytes < needed:
            warnings.append(_no_room(self._path, room.bytes, needed))
        if not request.in_place and not request.overwrite and plan.live.identities:
            warnings.append(f"{self._path} holds an event log: to replace it must be confirmed")
        return Preview(
            digest=plan.digest(),
            files=plan.changes(),
            paths=plan.samples(request.samples),
            warnings=tuple(warnings),
            staged_bytes=needed,
            facts=plan.facts(),
        )

    @contextlib.contextmanager
    def prepare(self, view: SourceView, request: RestoreRequest, progress: Progress) -> Iterator[PreparedLog]:
        """Stage the log as it will be, inside its data folder, verified and durable; the commit swaps it in."""
        target = TargetFolder(self._path, label=request.label)
        with staged(target, overwrite=request.overwrite) as stage:
            progress.phase("compare")
            plan = self._plan(view, request, progress)
            if request.digest and request.digest != plan.digest():
                raise StalePlan(f"the log in {self._path} has changed since the preview", hint="preview it again")
            saved = _tree_of(request.saved) if request.saved and request.in_place else None
            prepared = PreparedLog(target, plan, saved, progress)
            if request.mode != "full" and not plan.differs:
                prepared.nothing()
            else:
                needed, free = (
                    sum(plan.entries[path].stat.size for path in plan.take),
                    room_at(os.fsencode(stage)).bytes,
                )
                if needed > free:
                    raise TargetFull(_no_room(self._path, free, needed), hint="make room and run it again")
                prepared.stage(_tree_of(view), view.facts, stage)
            yield prepared

    def restore(self, view: SourceView, request: RestoreRequest, progress: Progress) -> RestoreReport:
        """Put the log of the view in place; other files of the data folder are not touched."""
        with self.prepare(view, request, progress) as prepared:
            prepared.commit()
            return prepared.report

    def settle(self, token: Mapping[str, Any]) -> bool | None:
        """Whether the swap of that token took place; one that was killed half-way is finished first."""
        if "nothing" in token:
            return True
        target = TargetFolder(Path(token["path"]), label="")
        target.finish()
        return target.has_log(int(token["log"]))

    def prepare_undo(
        self, image: ImageView, request: RestoreRequest, progress: Progress
    ) -> contextlib.AbstractContextManager[PreparedRestore]:
        """Raises SourceUnsupported: the safety backup is what undoes a restore of a log."""
        raise SourceUnsupported("event logs have no change images", hint=UNDO_HINT)

    def preview_undo(self, image: ImageView, request: RestoreRequest, progress: Progress) -> Preview:
        """Raises SourceUnsupported."""
        raise SourceUnsupported("event logs have no change images", hint=UNDO_HINT)

    def _plan(self, view: SourceView, request: RestoreRequest, progress: Progress) -> LogPlan:
        for name in request.modules:
            if name not in MODULES:
                raise NameUnknown(f"an event log has no module {name!r}", hint=f"its one module is {TREE_NAME}")
        chosen = bool(request.modules) if request.mode == "selective" else _takes_all(request.policies)
        live = read_live(self._path, progress)
        return plan_log(_tree_of(view), view.facts, live, request.mode, progress, all_of_it=chosen)

    def export(self, view: SourceView, folder: str, progress: Progress) -> list[str]:
        """Write the portable package and its manifest into folder; return both names."""
        with _staging() as stage:
            extract_tree(_tree_of(view), stage, progress)
            verified = verify_log(stage, progress)
            require_same(verified, view.facts)
            manifest = PackageManifest(
                created_at=datetime.datetime.fromisoformat(view.position["at"]),
                source_dir=str(view.facts.get("source_dir", "")),
                files=sorted_files(verified.files),
                summary=verified.summary,
                chain_valid=bool(view.facts["chain_valid_at_backup"]),
            )
            return write_package(stage, manifest, Path(folder), progress)


def restore_package(
    file: str, folder: str, *, overwrite: bool = False, progress: Progress | None = None
) -> RestoreReport:
    """Restore a package into a data folder with nothing but the package: no catalogue, store or key.

    Raises what EventLogConnector.open_package and restore raise; nothing at the folder changes then.
    """
    listener = progress or NullProgress()
    label = f"package-{Path(file).name}"

    def fill(stage: Path) -> Mapping[str, Any]:
        package = read_package(Path(file), stage, listener)
        verified = verify_folder(stage, package.segments, listener)
        _warn_package(package, verified, listener)
        return verified.facts()

    return put_log(TargetFolder(Path(folder), label=label), fill, overwrite=overwrite, progress=listener)


def _takes_all(policies: Mapping[str, Policy]) -> bool:
    return any(policies.get(name) == "take_backup" for name in MODULES)


def _no_room(path: Path, free: int, needed: int) -> str:
    return f"{path} has {free} bytes free, and staging the log there needs {needed}"


def _tree_of(view: SourceView) -> TreeView:
    tree = next((tree for tree in view.trees if tree.name == TREE_NAME), None)
    if not isinstance(tree, TreeView):
        raise DamageError(f"the backup of {view.name} holds no event log", hint="was the source of another kind then?")
    return tree


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
    """A private folder in TMPDIR, gone afterwards. Raises SourceError when it cannot be made."""
    try:
        stage = tempfile.mkdtemp(prefix="lastro-eventlog-")
    except OSError as error:
        raise SourceError(
            f"cannot make a staging folder: {error.strerror}", hint="set TMPDIR to a folder with room"
        ) from error
    try:
        log = Path(stage) / "log"  # Its mode may become that of the real folder; the one around it keeps others out.
        log.mkdir()
        yield log
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _warn_behind(verified: Verified, captured: Capture, progress: Progress) -> None:
    """A snapshot that lags is normal while the log grows and odd while it stands still."""
    if verified.snapshot_state == "behind" and captured.quiet and verified.report.last is not None:
        progress.warn(
            "eventlog.snapshot_behind",
            f"{SNAPSHOT_NAME} names an earlier event than the chain's last, {verified.report.last.event_id}",
        )


def _warn_package(package: PackageRead, verified: Verified, progress: Progress) -> None:
    warn_findings(verified, progress)
    said, found = package.manifest, verified
    if not said.chain_valid and found.chain_valid:
        progress.warn("eventlog.chain_broken", "the package says that its chain was broken; no break was found in it")
    if dict(said.summary) != found.summary:
        progress.warn("eventlog.summary_differs", "the package's summary does not match the events in it")
    if package.unknown:
        names = ", ".join(package.unknown)
        progress.warn("eventlog.unknown_files", f"files that belong to no event log were kept out: {names}")
