"""`copy promote` and `tenant set --store`: what they take, what they ask first, and how people read their answers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.cli import Answer, Call, argument
from core.cli_output import size_text
from core.text import counted

if TYPE_CHECKING:
    from tenants.models import StoreConfig, Tenant

PROMOTION = (
    argument("--lost", action="store_true", help="the primary is gone or away: go on without it, and say what it alone held"),
    argument("--end-old", action="store_true", help="the former primary stays no copy; its objects stay where they are"),
    argument("--deep", action="store_true", help="read every byte of the new primary before it counts"),
    argument("--reason", default="", help="why; kept in the audit log"),
)  # fmt: skip
_NAMED_MAX = 5


def promotion_followed(
    call: Call, tenant: "Tenant", store: "StoreConfig", *, lost: bool, ending: bool, deep: bool
) -> Answer:
    """Start the move of a primary and see it to its end; a loss is confirmed by the tenant's slug."""
    from tenants.commanding import followed, result_of
    from tenants.services.promoting import promote_start

    if lost:
        call.confirm(tenant.slug, what=_loss(tenant, store))
    operation = promote_start(
        tenant,
        store,
        lost=lost,
        ending=ending,
        deep=deep,
        actor=call.actor,
        reason=call.options.reason,
        here=call.options.here,
    )
    return followed(call, operation, data=result_of, text=promotion_lines)


def _loss(tenant: "Tenant", store: "StoreConfig") -> str:
    from tenants.services.promoting import alone_in_primary

    alone = alone_in_primary(tenant)
    named = f" ({', '.join(alone[:_NAMED_MAX])}{' …' if len(alone) > _NAMED_MAX else ''})" if alone else ""
    holds = f"alone holds {counted(len(alone), 'backup')}{named}" if alone else "holds nothing that no copy has"
    return (
        f"let the backups of {tenant.slug} go on in store {store.name} without {tenant.store.name}, which {holds}; what it "
        "alone holds stays listed until that store is given up"
    )


def promotion_lines(data: Mapping[str, Any]) -> list[str]:
    """What a move came to."""
    slug, old = data["tenant"], data["from"]
    lines = [
        f"{data['to']} is the primary of {slug} now, in the place of {old}: it holds {counted(data['held'], 'backup')}."
    ]
    if data["brought"]:
        lines.append(f"{counted(data['brought'], 'backup')} came along ({size_text(data['bytes'])}).")
    lines += [
        {
            "copy": f"{old} is a copy now; back: copy promote {slug} {old}",
            "ended": f"{old} is no copy; its objects stay there.",
            "away": f"{old} is switched off as a copy; when it is back: copy set {slug} {old} --on, then copy run.",
        }.get(str(data.get("former")), f"{old} is known no more.")
    ]
    if data["left_count"]:
        some = ", ".join(data["left"][:_NAMED_MAX])
        lines.append(
            f"{counted(data['left_count'], 'backup')} in {old} alone ({some}): listed as before, to be read when it is "
            f"back; if it is gone for good: store remove {old} --lost"
        )
    if data["ended_count"]:
        some = ", ".join(data["ended"][:_NAMED_MAX])
        lines.append(f"{counted(data['ended_count'], 'backup')} in no store any more, ended as lost: {some}")
    if data["lost"]:
        lines.append(f"Next: backup create {slug}, then copy status {slug}")
    return lines
