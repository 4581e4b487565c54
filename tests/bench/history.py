"""Two hundred incrementals of a thousandth each: what the newest costs to take, and to restore beside a fresh full one."""

from pathlib import Path

from tests.bench import rows
from tests.bench.measure import CommandFailed, Run
from tests.bench.place import require
from tests.bench.programs import Lastro, answer_of
from tests.bench.report import CPU, READ, WALL, Figure, Section, say
from tests.bench.server import ABOUT, serving
from tests.services.postgres import PostgresServer

BYTES = 150_000_000
INCREMENTALS = 200
INCREMENTALS_LEAST = 20
DATABASE = "shop"
PERCENT = 0.1
VACUUM_EVERY = 25
TIME_TARGET, READ_TARGET, INCREMENTAL_TARGET = 1.3, 1.5, 1.2


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section. A fifth of the postgres section's rows keeps two hundred backups within minutes."""
    require(folder, gigabytes=5 * scale + 1)
    with serving(folder) as server:
        say(f"history: loading {BYTES * scale / 1e6:.0f} MB of rows")
        data = rows.load(server, database=DATABASE, bytes_wanted=int(BYTES * scale))
        lastro = Lastro(folder / "ours")
        _add(lastro, server, "old")
        first = _backup(lastro, "old", full=True)
        taken = _incrementals(lastro, server, max(INCREMENTALS_LEAST, int(INCREMENTALS * scale)))
        fulls = []
        for number in range(rounds):
            _add(lastro, server, f"fresh-{number}")
            fulls.append(_backup(lastro, f"fresh-{number}", full=True))
        old, fresh = _restores(lastro, server, taken[-1], fulls[-1], rounds)
        nothing = _restore_of_nothing(lastro, server)
    section = Section("history", "A long history")
    section.about.append(
        f"{data.rows:,} rows, {data.bytes / 1e6:.0f} MB as COPY's text, {len(taken)} incremental backups of the whole "
        f"database, 0.1 % of the rows changed at random before each; then {rounds} rounds of restores into new "
        f"databases, of the newest incremental and of a fresh full backup of the same rows. {ABOUT}."
    )
    _report(section, first, taken, fulls, old, fresh, nothing)
    return section


def _add(lastro: Lastro, server: PostgresServer, slug: str, *, database: str = DATABASE) -> None:
    settings: dict[str, object] = {"dsn": server.dsn(database), "layout": "database"}
    lastro.tenant(slug, kind="postgresql", category="database", settings=settings)


def _backup(lastro: Lastro, slug: str, *, full: bool) -> Run:
    run = lastro.backup(slug, full=full)
    answer_of(run)
    return run


def _incrementals(lastro: Lastro, server: PostgresServer, count: int) -> list[Run]:
    taken = []
    for number in range(count):
        rows.change(server, DATABASE, percent=PERCENT, seed=number + 1)
        if number % VACUUM_EVERY == VACUUM_EVERY - 1:
            rows.settle(server, DATABASE)
        taken.append(_backup(lastro, "old", full=False))
        if number % 10 == 9:
            answer = taken[-1].answer
            say(f"  {number + 1}: {taken[-1].wall_seconds:.2f} s, stored {answer['stored_bytes'] / 1e6:.2f} MB")
    return taken


def _restores(
    lastro: Lastro, server: PostgresServer, newest: Run, full: Run, rounds: int
) -> tuple[list[Run], list[Run]]:
    old: list[Run] = []
    fresh: list[Run] = []
    slugs = {"old": (newest, old), f"fresh-{rounds - 1}": (full, fresh)}
    for number in range(rounds):
        for slug, (backup, into) in slugs.items() if number % 2 == 0 else reversed(slugs.items()):
            database = f"restored_{slug.partition('-')[0]}"
            server.create_database(database)
            into.append(lastro.restore(str(backup.answer["id"]), slug, f"dsn={server.dsn(database)}"))
            if number == 0 and not rows.same(server, DATABASE, database):
                raise CommandFailed(f"the database restored from {slug} has other rows than the source")
            server.drop_database(database)
            server.execute("CHECKPOINT")
    return old, fresh


def _restore_of_nothing(lastro: Lastro, server: PostgresServer) -> Run:
    """What a restore reads that is not in the repository: the program itself."""
    server.create_database("nothing")
    server.create_database("restored_nothing")
    _add(lastro, server, "nothing", database="nothing")
    backup = _backup(lastro, "nothing", full=True)
    return lastro.restore(str(backup.answer["id"]), "nothing", f"dsn={server.dsn('restored_nothing')}")


def _report(
    section: Section, first: Run, taken: list[Run], fulls: list[Run], old: list[Run], fresh: list[Run], nothing: Run
) -> None:
    typical = sorted(WALL(run) for run in fulls)[len(fulls) // 2]
    stored = [float(run.answer["stored_bytes"]) for run in taken]
    section.compare("restore of the newest", old, fresh, name="fresh full", target=TIME_TARGET)
    section.add(
        Figure("bytes read by the restore, program left out", [READ(run) - READ(nothing) for run in old],
               [READ(run) - READ(nothing) for run in fresh], "fresh full", "B", READ_TARGET)
    )  # fmt: skip
    section.add(
        Figure("an incremental", [WALL(run) for run in taken], [typical] * len(taken), "fresh full", "s",
               INCREMENTAL_TARGET, worst=True),
        Figure("CPU time of an incremental", [CPU(run) for run in taken], [CPU(fulls[-1])] * len(taken), "fresh full"),
        Figure("stored by an incremental", stored, [float(first.answer["stored_bytes"])] * len(taken), "first full", "B"),
        Figure("stored by all of them", [sum(stored)], [float(first.answer["stored_bytes"])], "first full", "B"),
    )  # fmt: skip
