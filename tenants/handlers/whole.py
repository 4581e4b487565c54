"""What of a damaged backup can still be restored: said by name, when a restore or its preview meets the damage."""

import shlex
from collections.abc import Callable, Sequence
from typing import TypeVar

from engine.errors import ChunkMissing, DamageError, ObjectDamaged
from engine.lost_parts import ModuleState, modules_state
from engine.repository import Repository
from operations.context import OperationContext
from tenants import wiring
from tenants.handlers.courses import Backups
from tenants.models import Backup, Restore, RestorePlan
from tenants.models.backup import GOOD_STATES
from tenants.selection import Selection

NAMES_SHOWN_MAX = 10


Result = TypeVar("Result")


def around_damage(
    context: OperationContext, repository: Repository, of: Restore | RestorePlan, work: Callable[[Backups], Result]
) -> Result:
    """Do the work; when stored chunks of the backup turn out to be lost, say of which modules.

    A selective restore that chose none of these is done all the same: what is lost of the rest is not looked at. Whole
    packs are only read when none is found to be gone, as that is cheap to see.
    """
    try:
        return work(Backups(repository))
    except ChunkMissing as error:
        damage: DamageError = error
    except ObjectDamaged as error:
        damage = error
    context.phase("what is still whole")
    states = _states(context, repository, of.backup)
    broken = [state for state in states if not state.is_whole]
    if not broken or of.undoes_id:
        raise damage
    selection = Selection.of(of.mode, [], of.wishes)
    chosen = {(source, module) for source, modules in selection.modules.items() for module in modules}
    lost = frozenset((state.source, state.module) for state in broken)
    if of.mode != "selective" or lost & chosen:
        raise _told(damage, of.backup, broken, [state for state in states if state.is_whole]) from damage
    return work(Backups(repository, without=lost))


def _states(context: OperationContext, repository: Repository, backup: Backup) -> list[ModuleState]:
    try:
        manifest = wiring.manifest_of(repository, backup)
        states = modules_state(repository, manifest, deep=False, progress=context)
        if all(state.is_whole for state in states):
            states = modules_state(repository, manifest, deep=True, progress=context)
    except DamageError:
        return []
    return states


def _told(
    error: DamageError, backup: Backup, broken: Sequence[ModuleState], whole: Sequence[ModuleState]
) -> DamageError:
    lost = "; ".join(_lost(state) for state in broken[:NAMES_SHOWN_MAX])
    named = [f"{state.source}.{state.module}" for state in whole if state.module != "definitions"]
    if not named:
        return type(error)(f"{error.message}; cannot be restored: {lost}; nothing is whole", hint=_another(backup))
    words = ["restore", "run", backup.pk, "--mode", "selective"]
    for name in named[:NAMES_SHOWN_MAX]:
        words += ["--module", name]
    more = " …" if len(named) > NAMES_SHOWN_MAX else ""
    return type(error)(
        f"{error.message}; cannot be restored: {lost}; still whole: {', '.join(named[:NAMES_SHOWN_MAX])}{more}",
        hint=f"restore what is whole: {shlex.join(words)}{more}",
    )


def _another(backup: Backup) -> str:
    """The newest other good backup, which needs not share what is lost."""
    others = Backup.objects.filter(tenant_id=backup.tenant_id, state__in=GOOD_STATES, damaged=False)
    newest = others.exclude(pk=backup.pk).exclude(trigger="safety").order_by("-number").first()
    if newest is None:
        return f"no other backup of {backup.tenant.slug} is known to be good: look for a copy of the store"
    return f"nothing was changed; see whether another one is whole: backup verify {newest.pk} --deep --here"


def _lost(state: ModuleState) -> str:
    shown = ", ".join(state.lost[:NAMES_SHOWN_MAX])
    more = f" and {state.lost_count - NAMES_SHOWN_MAX} more" if state.lost_count > NAMES_SHOWN_MAX else ""
    return f"{state.source}.{state.module} ({shown}{more})"
