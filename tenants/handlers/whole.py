"""What of a damaged backup can still be restored: said by name, when a restore or its preview meets the damage."""

import shlex
from collections.abc import Sequence

from engine.errors import ChunkMissing, DamageError, ObjectDamaged
from engine.lost_parts import ModuleState, modules_state
from engine.progress import Progress
from engine.repository import Repository
from tenants import wiring
from tenants.models import Backup

NAMES_SHOWN_MAX = 10


def damage_told(progress: Progress, repository: Repository, backup: Backup, error: DamageError) -> DamageError:
    """The same error with the modules of the backup that are whole and those that are not.

    Looks for packs that are gone first, which is cheap, and reads all of them only when none is. An error that is not
    about stored chunks is returned as it is.
    """
    if not isinstance(error, ChunkMissing | ObjectDamaged):
        return error
    progress.phase("what is still whole")
    try:
        manifest = wiring.manifest_of(repository, backup)
        states = modules_state(repository, manifest, deep=False, progress=progress)
        if all(state.is_whole for state in states):
            states = modules_state(repository, manifest, deep=True, progress=progress)
    except DamageError:
        return error
    broken = [state for state in states if not state.is_whole]
    return _told(error, backup, broken, [state for state in states if state.is_whole]) if broken else error


def _told(
    error: DamageError, backup: Backup, broken: Sequence[ModuleState], whole: Sequence[ModuleState]
) -> DamageError:
    lost = "; ".join(_lost(state) for state in broken[:NAMES_SHOWN_MAX])
    named = [f"{state.source}.{state.module}" for state in whole if state.module != "definitions"]
    if not named:
        return type(error)(
            f"{error.message}; cannot be restored: {lost}; nothing is whole", hint="look for another backup"
        )
    words = ["restore", "run", backup.pk, "--mode", "selective"]
    for name in named[:NAMES_SHOWN_MAX]:
        words += ["--module", name]
    more = " …" if len(named) > NAMES_SHOWN_MAX else ""
    return type(error)(
        f"{error.message}; cannot be restored: {lost}; still whole: {', '.join(named[:NAMES_SHOWN_MAX])}{more}",
        hint=f"restore what is whole: {shlex.join(words)}{more}",
    )


def _lost(state: ModuleState) -> str:
    shown = ", ".join(state.lost[:NAMES_SHOWN_MAX])
    more = f" and {state.lost_count - NAMES_SHOWN_MAX} more" if state.lost_count > NAMES_SHOWN_MAX else ""
    return f"{state.source}.{state.module} ({shown}{more})"
