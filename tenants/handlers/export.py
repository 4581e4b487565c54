"""The operation `export`: a backup as files that standard tools read."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import LastroError, TargetDenied, TargetError, TargetFull, TargetOccupied
from operations.context import OperationContext
from operations.handlers import register
from tenants import reading, wiring
from tenants.handlers.backup import tenant_resource
from tenants.places import target_folder_checked
from tenants.selectors import backup_usable, source_get

_READ_BYTES = 1 << 20


@register("export", resource=tenant_resource, phases=("export", "checksums"))
def run(context: OperationContext) -> Mapping[str, Any]:
    """Export into the folder that was asked for."""
    folder = Path(context.params["folder"])
    target_folder_checked(str(folder))
    backup = backup_usable(context.operation.subject_id)
    names = export_into(context, backup, folder)
    return {"id": backup.pk, "folder": str(folder), "files": names}


def export_into(context: OperationContext, backup: Any, folder: Path) -> list[str]:
    """Write the export beside its folder and give it its name when all of it is there; the names of its files."""
    draft = folder.with_name(f".{folder.name}.{context.operation.pk}")
    try:
        _empty_or_absent(folder)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True, mode=0o700)
        names = _export(context, backup, draft)
        _sums(draft, names, context)
        os.replace(draft, folder)
    except OSError as error:
        raise _target_error(error, folder) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return sorted([*names, "SHA256SUMS"])


def _export(context: OperationContext, backup: Any, draft: Path) -> list[str]:
    with reading.backups_open(backup.tenant, [backup]) as repository:
        manifest = wiring.manifest_of(repository, backup)
        names = ["manifest.json"]
        for name, view in sorted(reading.views_of(repository, backup).items()):
            context.check()
            context.phase(f"export {name}")
            connector = wiring.connector_open(source_get(backup.tenant, name))
            names += connector.export(view, str(draft), context)
        text = json.dumps(manifest.document, indent=1, ensure_ascii=False, sort_keys=True)
        (draft / "manifest.json").write_text(text, encoding="utf-8")
    return names


def _sums(draft: Path, names: list[str], context: OperationContext) -> None:
    """Write SHA256SUMS as sha256sum reads it, and make all of it durable."""
    context.phase("checksums")
    lines = []
    for name in sorted(names):
        with open(draft / name, "rb") as handle:
            digest = hashlib.sha256()
            while piece := handle.read(_READ_BYTES):
                context.check()
                digest.update(piece)
            os.fsync(handle.fileno())
        lines.append(f"{digest.hexdigest()}  {name}\n")
    with open(draft / "SHA256SUMS", "w", encoding="utf-8") as handle:
        handle.writelines(lines)
        handle.flush()
        os.fsync(handle.fileno())


def _empty_or_absent(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise TargetOccupied(f"{folder} exists and is not empty", hint="give a folder that does not exist yet")


def _target_error(error: OSError, folder: Path) -> LastroError:
    said = f"cannot write {folder}: {error.strerror or error}"
    if isinstance(error, PermissionError):
        return TargetDenied(said, hint="choose a folder that this user may write")
    if error.errno in (28, 122, 27):  # ENOSPC, EDQUOT, EFBIG
        return TargetFull(said, hint="free space there, or choose another disk")
    return TargetError(said)
