"""The kinds of work about tenants that schedules may ask for (see operations.scheduling.works)."""

from django.conf import settings

from operations import priorities
from operations.scheduling.services import ScheduleWish
from operations.scheduling.works import Work, default_register, work_register
from tenants.scheduling import begin, targets

_TENANTS = frozenset({"tenants", "classes"})
_SOURCES = frozenset({"tenants", "classes", "categories", "sources"})

work_register(
    Work(
        "backup",
        "a backup of each tenant's sources, or of those chosen by class, category or name; full on the days named",
        begin.backup,
        targets.backup,
        begin.backup_params,
        selects=_SOURCES,
        fulls=True,
    )
)
work_register(
    Work("drill", "a rehearsal of each tenant's restore", begin.drill, targets.drill, selects=_TENANTS, exclusive=True)
)
work_register(
    Work(
        "verify",
        "a look at each tenant's newest backup; deep=yes reads every byte of it",
        begin.verify,
        targets.verify,
        begin.verify_params,
        selects=_TENANTS,
        priority=priorities.UPKEEP,
    )
)
work_register(
    Work(
        "prune",
        "each tenant's repository without what no kept backup needs; retention does so anyway",
        begin.prune,
        targets.prune,
        selects=_TENANTS,
        priority=priorities.UPKEEP,
    )
)
for _name, _summary in (
    ("copies", "all copies brought up to date"),
    ("samples", "stored bytes of every store read in turn, so that each is read once a week (30 days where it costs)"),
    ("structure", "the structure of every store looked through"),
    ("retention", "all tenants' backups looked at, the ending queued of what no rule keeps"),
    ("catalogue", "a backup of the catalogue, when there is something new to keep"),
):
    work_register(Work(_name, _summary, getattr(begin, _name), priority=priorities.UPKEEP))

default_register(
    "backups",
    lambda: ScheduleWish("backup", settings.INHERITED_SCHEDULE or "0 0 * * *", full="sun", jitter_seconds=900),
)
default_register("drills", lambda: ScheduleWish("drill", "0 2 * * 0", jitter_seconds=900, concurrency=2))
default_register("copies", lambda: ScheduleWish("copies", "30 1 * * *"))
default_register("verification", lambda: ScheduleWish("samples", "0 3 * * *"))
default_register("structure", lambda: ScheduleWish("structure", "0 5 * * 6"))
default_register("retention", lambda: ScheduleWish("retention", "0 4 * * *"))
default_register("catalogue", lambda: ScheduleWish("catalogue", "*/15 * * * *"))
