"""`objective`: how much may be lost, how long it may take to be back, and whether that was kept."""

import datetime
from typing import Any, ClassVar

from core import clock
from core.cli import Answer, Call, NounCommand, Verb, argument, moment
from engine.errors import UsageError
from tenants.objectives.rules import length_words

_CLASSES = ("critical", "important", "normal")
PERIOD = datetime.timedelta(days=30)
LISTED_MAX = 200


def _place(call: Call) -> Any:
    from tenants.selectors import source_get, tenant_get
    from tenants.services.objectives import ObjectivePlace

    options = call.options
    tenant = tenant_get(options.tenant) if options.tenant else None
    if options.source and tenant is None:
        raise UsageError("a source belongs to a tenant", hint="objective set TENANT --source S")
    source = source_get(tenant, options.source) if tenant and options.source else None
    return ObjectivePlace(tenant, options.criticality, source)


def _set(call: Call) -> Answer:
    from tenants.services.objectives import objective_set

    options, place = call.options, _place(call)
    row = objective_set(
        place, rpo_seconds=options.rpo, rto_seconds=options.rto, actor=call.actor, reason=options.reason
    )
    data = {"place": place.said, "rpo_s": row.rpo_seconds, "rto_s": row.rto_seconds, "valid_from": row.valid_from}
    told = (("lose at most", row.rpo_seconds), ("be back within", row.rto_seconds))
    words = ", ".join(f"{what} {length_words(seconds)}" for what, seconds in told if seconds is not None)
    return Answer(data, [f"From now on {place.said}: {words}. What was before is judged by what held then."])


def _reset(call: Call) -> Answer:
    from tenants.services.objectives import objective_reset

    place = _place(call)
    objective_reset(place, actor=call.actor, reason=call.options.reason)
    return Answer({"place": place.said, "reset": True}, [f"For {place.said} the next wider objectives hold again."])


def _list(call: Call) -> dict[str, Any]:
    from tenants.services.objectives import objective_list

    return {
        "data": [
            {
                "tenant": row.tenant.slug if row.tenant else None,
                "class": row.criticality or None,
                "source": row.source.name if row.source else None,
                "rpo_s": row.rpo_seconds,
                "rto_s": row.rto_seconds,
                "valid_from": row.valid_from,
                "set_by": row.set_by,
            }
            for row in objective_list()
        ]
    }


def _show(call: Call) -> Answer:
    from tenants.objective_selectors import objectives_breached, standing_words, standings
    from tenants.selectors import tenant_get

    now = clock.now()
    if not call.options.tenant:
        found = objectives_breached(now=now)
        text = [_line(each) for each in found[:LISTED_MAX]] or ["every source keeps its objectives"]
        return Answer({"breached": len(found), "data": [_standing(each) for each in found[:LISTED_MAX]]}, text)
    tenant = tenant_get(call.options.tenant)
    rows = standings(now=now, tenant=tenant)
    words = standing_words(rows)
    return Answer(
        {"tenant": tenant.slug, "words": words, "data": [_standing(each) for each in rows]},
        [f"{tenant.slug}: {words}", *(f"  {_line(each)}" for each in rows)],
    )


def _standing(row: Any) -> dict[str, Any]:
    return {
        "tenant": row.tenant,
        "source": row.source,
        "class": row.criticality,
        "rpo_s": row.terms.rpo_seconds,
        "rto_s": row.terms.rto_seconds,
        "last_good_at": row.last_good_at,
        "loses_s": row.loses_seconds,
        "back_s": row.back_seconds,
        "rpo_kept": row.rpo_kept,
        "rto_kept": row.rto_kept,
    }


def _line(row: Any) -> str:
    lose = f"lose {length_words(row.loses_seconds)} of {length_words(row.terms.rpo_seconds)}"
    if row.last_good_at is None:
        lose = "never backed up"
    back = "never rehearsed" if row.back_seconds is None else f"back in {length_words(row.back_seconds)}"
    late = [name for name, bad in (("RPO", not row.rpo_kept), ("RTO", row.rto_kept is False)) if bad]
    over = f"  BREACHED: {', '.join(late)}" if late else ""
    return (
        f"{row.tenant}/{row.source} ({row.criticality}): {lose}, {back} of {length_words(row.terms.rto_seconds)}{over}"
    )


def _report(call: Call) -> Answer:
    from tenants.objective_selectors import objectives_kept
    from tenants.selectors import source_get, tenant_get

    options = call.options
    tenant = tenant_get(options.tenant)
    if options.source:
        source_get(tenant, options.source)
    end = min(options.to or clock.now(), clock.now())
    begin = options.since or end - PERIOD
    if begin >= end:
        raise UsageError("the time ends before it begins", hint="--since lies before --to, and both in the past")
    rows = [_kept(each) for each in objectives_kept(tenant, begin=begin, end=end, source=options.source)]
    lines = [f"{tenant.slug}, {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"]
    for row in rows:
        count = len(row["breaches"])
        lines.append(f"  {row['source']}: kept {100 * row['attained']:.2f} % of the time, {count} breach(es)")
        lines += [
            f"    {each['begin']:%Y-%m-%d %H:%M:%S} for {length_words(each['seconds'])} (RPO {length_words(each['rpo_s'])})"
            for each in row["breaches"][:LISTED_MAX]
        ]
        drills = row["drills"]
        if drills:
            lines.append(f"    back in time in {sum(each['kept'] for each in drills)} of {len(drills)} drills")
    return Answer({"tenant": tenant.slug, "begin": begin, "end": end, "data": rows}, lines)


def _kept(row: Any) -> dict[str, Any]:
    return {
        "source": row.source,
        "attained": round(row.attained, 6),
        "terms": [
            {"begin": each.begin, "end": each.end, "rpo_s": each.terms.rpo_seconds, "rto_s": each.terms.rto_seconds}
            for each in row.terms
        ],
        "breaches": [
            {"begin": each.begin, "end": each.end, "seconds": each.seconds, "rpo_s": each.rpo_seconds}
            for each in row.breaches
        ],
        "drills": [
            {
                "drill": each.drill_id,
                "at": each.at,
                "seconds": each.seconds,
                "rto_s": each.rto_seconds,
                "kept": each.kept,
            }
            for each in row.drills
        ],
    }


def _length(text: str) -> int:
    """The type of a length of time: 90m, 4h, 1d, 2w; in seconds."""
    import argparse
    import re

    found = re.fullmatch(r"(\d{1,5})([mhdw])", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no length of time; write 90m, 4h, 1d or 2w")
    return int(found[1]) * {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}[found[2]]


_TENANT = argument("tenant", metavar="TENANT", nargs="?", default="", help="without it: for every tenant")
_PLACE = (
    _TENANT,
    argument("--class", dest="criticality", choices=_CLASSES, default="", help="only for sources of this class"),
    argument("--source", default="", metavar="S", help="only for this source"),
)
_REASON = argument("--reason", default="", help="why; kept in the audit log")


class Command(NounCommand):
    help = "Say how much may be lost and how long it may take to be back; see whether that is kept."
    verbs: ClassVar[tuple[Verb, ...]] = (
        Verb(
            "set",
            _set,
            "set them for everything, a tenant, a class or a source",
            (
                *_PLACE,
                argument("--rpo", type=_length, metavar="TIME", help="most data, in time, that may be lost (4h)"),
                argument("--rto", type=_length, metavar="TIME", help="longest time until it is back (1h)"),
                _REASON,
            ),
        ),
        Verb("reset", _reset, "take back what was set", (*_PLACE, _REASON)),
        Verb("list", _list, "what was set"),
        Verb("show", _show, "where a tenant stands now; without one, whatever is breached", (_TENANT,)),
        Verb(
            "report",
            _report,
            "how a tenant's objectives were kept, each moment by the version of then",
            (
                argument("tenant", metavar="TENANT"),
                argument("--source", default="", metavar="S"),
                argument("--since", type=moment, metavar="TIME", help="30 days before the end by default"),
                argument("--to", type=moment, metavar="TIME", help="now by default"),
            ),
        ),
    )
