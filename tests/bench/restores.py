"""A million lost rows of one tenant, in a table of five million: preview, restore in place, and the others meanwhile.

Peers: `pg_restore` of the whole database, which is what an operator without Lastro would do, and a bare COPY FROM of the lost
rows into the live table with its indexes, which is the least that any way back must do.
"""

import random
import threading
import time
from pathlib import Path
from typing import Any

import psycopg

from tests.bench.measure import Run, run
from tests.bench.place import require
from tests.bench.programs import Lastro, answer_of
from tests.bench.report import PEAK, WALL, Figure, Section, say
from tests.bench.server import ABOUT, Tools, serving
from tests.services.postgres import PostgresServer

ROWS = 5_000_000
TENANTS = 5
DATABASE = "hotels"
WRITES_PER_SECOND = 200
QUIET_SECONDS = 10.0
PREVIEW_SECONDS, PREVIEW_BYTES = 30.0, 300e6
COPY_TARGET, RESTORE_TARGET, KEPT_TARGET = 2.0, 1.0, 0.8

SCHEMA = """
CREATE TABLE booking (id bigint PRIMARY KEY, tenant_id int NOT NULL, guest text NOT NULL, room int NOT NULL,
  price numeric(10,2) NOT NULL, note text, updated_at timestamptz NOT NULL);
INSERT INTO booking SELECT g, 1 + g % {tenants}, 'guest ' || md5(g::text), g % 400, (g % 90000) / 100.0,
  md5((g * 7)::text) || ' ' || md5((g * 11)::text), '2026-01-01'::timestamptz + g * interval '3 seconds'
  FROM generate_series(1, {rows}) g;
CREATE INDEX ON booking (tenant_id, updated_at);
CREATE INDEX ON booking (room);
VACUUM ANALYZE booking;
"""


class Writers(threading.Thread):
    """Other tenants' application: small transactions at a fixed demand; counts what it gets done."""

    def __init__(self, dsn: str, rows: int) -> None:
        super().__init__(daemon=True)
        self._dsn, self._rows, self._ending = dsn, rows, threading.Event()
        self.done = 0
        self.slowest = 0.0
        self.seconds = 0.0

    def run(self) -> None:
        draw = random.Random(1)
        begun = time.monotonic()
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            while not self._ending.is_set():
                key = draw.randrange(self._rows // TENANTS) * TENANTS + 1  # Never a row of tenant 1: 1 + g % 5 is 2.
                asked = time.monotonic()
                connection.execute("UPDATE booking SET note = md5(note), updated_at = now() WHERE id = %s", (key,))
                self.slowest = max(self.slowest, time.monotonic() - asked)
                self.done += 1
                ahead = begun + self.done / WRITES_PER_SECOND - time.monotonic()
                if ahead > 0:
                    self._ending.wait(ahead)
        self.seconds = time.monotonic() - begun

    def stop(self) -> float:
        """End it; transactions per second."""
        self._ending.set()
        self.join()
        return self.done / self.seconds


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section."""
    require(folder, gigabytes=8 * scale + 1)
    count = int(ROWS * scale)
    with serving(folder) as server:
        say(f"restores: loading {count:,} rows")
        server.create_database(DATABASE)
        for statement in SCHEMA.format(tenants=TENANTS, rows=count).split(";\n"):
            if statement.strip():
                server.execute(statement, database=DATABASE)
        bench = _Bench(server, folder, count)
        for number in range(rounds):
            bench.round(number)
        return bench.report()


class _Bench:
    """The rounds and what they gave."""

    def __init__(self, server: PostgresServer, folder: Path, count: int) -> None:
        self.server, self.folder, self.count = server, folder, count
        self.tools = Tools(server, folder)
        self.lastro = Lastro(folder / "ours")
        settings: dict[str, object] = {
            "dsn": server.dsn(DATABASE), "layout": "rows", "tenant_column": "tenant_id", "tenant_value": 1,
        }  # fmt: skip
        self.lastro.tenant("one", kind="postgresql", category="database", settings=settings)
        self.backup = str(answer_of(self.lastro.backup("one", full=True))["id"])
        self.lost = folder / "lost.copy"
        self._copy(f"COPY (SELECT * FROM booking WHERE tenant_id = 1) TO '{self.lost}'")
        self.tools.dump_custom(DATABASE)
        self.previews: list[Run] = []
        self.restores: list[Run] = []
        self.whole: list[Run] = []
        self.by_two: list[Run] = []
        self.applied: list[float] = []
        self.copied: list[float] = []
        self.kept: list[tuple[float, float]] = []
        self.slowest = 0.0

    def _copy(self, sql: str) -> float:
        # The server writes and reads the file itself, as its own user.
        self.folder.chmod(0o777)
        begun = time.monotonic()
        self.server.execute(sql, database=DATABASE)
        return time.monotonic() - begun

    def _lose(self) -> None:
        self.server.execute("DELETE FROM booking WHERE tenant_id = 1", database=DATABASE)
        self.server.execute("VACUUM ANALYZE booking", database=DATABASE)
        self.server.execute("CHECKPOINT")

    def round(self, number: int) -> None:
        """Lose the rows and bring them back in three ways."""
        self._lose()
        self.copied.append(self._copy(f"COPY booking FROM '{self.lost}'"))
        self._lose()
        self.previews.append(self.lastro.measure("restore", "plan", self.backup, "--mode", "full", "--here"))
        found = answer_of(self.previews[-1])["tables"][0]
        assert found["insert"] == self.count // TENANTS, found
        quiet = self._writing(lambda: time.sleep(QUIET_SECONDS))
        busy = self._writing(self._restore)
        self.kept.append((busy, quiet))
        for jobs, into in ((1, self.whole), (2, self.by_two)):
            into.append(self.tools.restore_custom(f"peer_{number}", jobs=jobs))
            self.server.drop_database(f"peer_{number}")
        say(f"  {number + 1}: preview {WALL(self.previews[-1]):.1f} s, restore {WALL(self.restores[-1]):.1f} s "
            f"(apply {self.applied[-1]:.1f} s, COPY {self.copied[-1]:.1f} s), pg_restore {WALL(self.whole[-1]):.1f} s, "
            f"writers {busy:.0f} of {quiet:.0f} a second")  # fmt: skip

    def _writing(self, work: Any) -> float:
        writers = Writers(self.server.dsn(DATABASE), self.count)
        writers.start()
        try:
            work()
        finally:
            rate = writers.stop()
        self.slowest = max(self.slowest, writers.slowest)
        return rate

    def _restore(self) -> None:
        done = run(
            self.lastro.argv("restore", "run", self.backup, "--mode", "full", "--confirm", "one", "--here", "--json"),
            env=self.lastro.env, cwd=Path.cwd(),
        )  # fmt: skip
        answer_of(done)
        self.restores.append(done)
        shown = self.lastro.measure("operation", "show", str(done.answer["operation"])).answer
        phases = shown["result"]["phases_ms"]
        self.applied.append(sum(took for name, took in phases.items() if name == "apply") / 1000)

    def report(self) -> Section:
        """Put the runs beside each other."""
        section = Section("restores", "One tenant's way back in a shared table")
        lost = self.count // TENANTS
        section.about.append(
            f"A table of {self.count:,} rows of {TENANTS} tenants with a primary key and two indexes; all {lost:,} rows of one "
            f"tenant are deleted, then previewed and restored in place while other tenants' application asks for {WRITES_PER_SECOND} small "
            f"transactions a second (the slowest took {self.slowest * 1000:.0f} ms). The restore includes its safety backup, the change image "
            f"for the undo, all checks, and the start of the program. {ABOUT}."
        )
        section.add(
            Figure(f"preview of {lost:,} changed rows", [WALL(one) for one in self.previews], target=PREVIEW_SECONDS),
            Figure("peak memory of the preview", [PEAK(one) for one in self.previews], unit="B", target=PREVIEW_BYTES),
        )
        section.compare(
            "restore in place", self.restores, self.whole, name="pg_restore of everything", target=RESTORE_TARGET
        )
        section.compare("restore in place", self.restores, self.by_two, name="pg_restore -j2 of everything")
        section.add(
            Figure("its apply phase (changing the rows)", self.applied, self.copied, "COPY FROM", "s", COPY_TARGET),
            Figure("peak memory of the restore", [PEAK(one) for one in self.restores], unit="B"),
            Figure("time that other tenants' writes take, beside a quiet server", [1 / busy for busy, _ in self.kept],
                   [1 / quiet for _, quiet in self.kept], "quiet", "s", 1 / KEPT_TARGET),
        )  # fmt: skip
        return section
