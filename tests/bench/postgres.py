"""A shop platform's database: a tenant's rows, the whole database, what little changes cost, the way back.

Peers: a bare COPY of the same rows, `pg_dump | zstd -3`, `pg_dump | restic backup --stdin`, `pg_restore -j2`. Every
round starts with empty repositories and ends with one row in a thousand changed at random.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench import rows
from tests.bench.measure import CommandFailed, Run
from tests.bench.place import require
from tests.bench.programs import Lastro, Restic, answer_of, find, version
from tests.bench.report import CPU, PEAK, WALL, Figure, Section, say
from tests.bench.server import ABOUT, Tools, serving
from tests.services.postgres import PostgresServer

BYTES = 780_000_000
DATABASE = "shop"
PERCENT = 0.1
COPY_TARGET, ZSTD_TARGET, RESTIC_TARGET, RESTORE_TARGET = 1.5, 1.0, 0.7, 1.0
CHANGED_SIZE_TARGET, CHANGED_TIME_TARGET = 0.02, 0.6


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section."""
    require(folder, gigabytes=10 * scale + 1)
    with serving(folder) as server:
        say(f"postgres: loading {BYTES * scale / 1e6:.0f} MB of rows")
        data = rows.load(server, database=DATABASE, bytes_wanted=int(BYTES * scale))
        bench = _Bench(server, folder, data)
        for number in range(rounds):
            bench.round(number)
        return bench.report(rounds)


class _Bench:
    """The rounds, and the runs they have given by name."""

    def __init__(self, server: PostgresServer, folder: Path, data: rows.Rows) -> None:
        self.server, self.folder, self.data = server, folder, data
        self.tools = Tools(server, folder)
        self.restic = find("restic")
        self.lastro = Lastro(folder / "ours")
        self.tenants = {"largest": 1, "average": data.tenant_near(1 / rows.TENANTS)}
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.stored: dict[str, list[float]] = defaultdict(list)

    def round(self, number: int) -> None:
        """Measure everything once."""
        self.number = number
        slugs = {name: f"round-{number}-{name}" for name in ("whole", *self.tenants)}
        self._add_tenants(slugs)
        restic = Restic(self.restic, self.folder / "restic") if self.restic else None
        for name, tenant in self.tenants.items():
            self._turns(
                {
                    f"copy {name}": partial(self.tools.copy, DATABASE, rows.copies_of(tenant)),
                    f"full {name}": partial(self._backup, slugs[name], f"full {name}", full=True),
                }
            )
        whole: dict[str, Callable[[], Run]] = {
            "zstd": lambda: self.tools.dump_zstd(DATABASE),
            "full whole": lambda: self._backup(slugs["whole"], "full whole", full=True),
        }
        if restic:
            whole["restic full"] = lambda: self._dump_restic(restic, "restic full")
        self._turns(whole)
        changed = rows.change(self.server, DATABASE, percent=PERCENT, seed=number + 1)
        self.server.execute("CHECKPOINT")
        say(f"  {changed} rows changed")
        newest = ""
        for name in ("average", "largest", "whole"):
            run = self._backup(slugs[name], f"incremental {name}", full=False)
            self.runs[f"incremental {name}"].append(run)
            newest = str(answer_of(run)["id"])
        if restic:
            self.runs["restic incremental"].append(self._dump_restic(restic, "restic incremental"))
            restic.discard()
        self._restores(newest, slugs["whole"])

    def _add_tenants(self, slugs: dict[str, str]) -> None:
        dsn = self.server.dsn(DATABASE)
        for name, slug in slugs.items():
            layout: dict[str, object] = {"layout": "database"}
            if name in self.tenants:
                layout = {"layout": "rows", "tenant_column": "tenant_id", "tenant_value": self.tenants[name]}
            self.lastro.tenant(slug, kind="postgresql", category="database", settings={"dsn": dsn, **layout})

    def _turns(self, commands: dict[str, Callable[[], Run]]) -> None:
        """Run commands one after the other, in the other order every second round."""
        for name in list(commands) if self.number % 2 == 0 else reversed(commands):
            run = commands[name]()
            self.runs[name].append(run)
            say(f"  {self.number + 1}: {name}: {run.wall_seconds:.2f} s, {run.peak_bytes >> 20} MiB")

    def _backup(self, slug: str, name: str, *, full: bool) -> Run:
        before = self.lastro.repository_bytes()
        run = self.lastro.backup(slug, full=full)
        answer_of(run)
        self.stored[name].append(self.lastro.repository_bytes() - before)
        return run

    def _dump_restic(self, restic: Restic, name: str) -> Run:
        before = restic.repository_bytes()
        run = self.tools.dump_restic(DATABASE, program=restic.program, env=restic.env)
        self.stored[name].append(restic.repository_bytes() - before)
        return run

    def _restores(self, backup: str, slug: str) -> None:
        """Restore into new databases, see that ours is equal, drop both."""
        self.tools.dump_custom(DATABASE)
        ours, peer = f"ours_{self.number}", f"peer_{self.number}"
        self.server.create_database(ours)
        self._turns(
            {
                "pg_restore": lambda: self.tools.restore_custom(peer),
                "restore": lambda: self.lastro.restore(backup, slug, f"dsn={self.server.dsn(ours)}"),
            }
        )
        if self.number == 0 and not rows.same(self.server, DATABASE, ours):
            raise CommandFailed("the restored database has other rows than the source")
        for name in (ours, peer):
            self.server.drop_database(name)
        self.server.execute("CHECKPOINT")

    def report(self, rounds: int) -> Section:
        """Put the runs beside each other."""
        runs, data = self.runs, self.data
        section = Section("postgres", "PostgreSQL")
        section.about.append(
            f"{data.rows:,} rows, {data.bytes / 1e6:.0f} MB as COPY's text, of {rows.TENANTS} tenants in shared tables "
            f"(the largest has {data.shares[0]:.0%}, the average one {data.shares[self.tenants['average'] - 1]:.1%}), "
            f"{rounds} rounds; PostgreSQL {self.server.major}, {ABOUT}; "
            f"restic {version(self.restic) if self.restic else 'is not installed'}."
        )
        for name in self.tenants:
            section.compare(
                f"backup of the {name} tenant",
                runs[f"full {name}"],
                runs[f"copy {name}"],
                name="COPY",
                target=COPY_TARGET,
            )
        section.compare(
            "backup of the database", runs["full whole"], runs["zstd"], name="pg_dump, zstd -3", target=ZSTD_TARGET
        )
        section.compare(
            "backup of the database",
            runs["full whole"],
            runs["restic full"],
            name="pg_dump, restic",
            target=RESTIC_TARGET,
        )
        section.compare(
            "restore of the database", runs["restore"], runs["pg_restore"], name="pg_restore -j2", target=RESTORE_TARGET
        )
        for name, title in (("whole", "database"), ("largest", "largest tenant"), ("average", "average tenant")):
            self._incremental(section, name, title)
        if self.restic:
            section.add(Figure("stored after 0.1 % of rows changed, pg_dump and restic", self.stored["restic incremental"],
                               self.stored["restic full"], "its first", "B"))  # fmt: skip
        for title, of, unit in (("peak memory", PEAK, "B"), ("CPU time", CPU, "s")):
            section.compare(f"{title}, backup of the database", runs["full whole"], runs["restic full"],
                            name="pg_dump, restic", of=of, unit=unit)  # fmt: skip
        section.add(Figure("peak memory, restore of the database", [PEAK(run) for run in runs["restore"]], unit="B"))
        section.add(
            Figure("repository of the database", self.stored["full whole"], self.stored["restic full"], "restic", "B")
        )
        return section

    def _incremental(self, section: Section, name: str, title: str) -> None:
        after, full = f"incremental {name}", f"full {name}"
        section.add(
            Figure(f"stored after 0.1 % of rows changed, {title}", self.stored[after], self.stored[full],
                   "our full", "B", CHANGED_SIZE_TARGET),
            Figure(f"backup after 0.1 % of rows changed, {title}", [WALL(run) for run in self.runs[after]],
                   [WALL(run) for run in self.runs[full]], "our full", "s", CHANGED_TIME_TARGET),
        )  # fmt: skip
