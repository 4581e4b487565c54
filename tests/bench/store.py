"""A store of a million objects and ten thousand backups: lists, structure and prune, within fixed time and memory."""

import subprocess
import sys
from pathlib import Path

from tests.bench.measure import CommandFailed, Run
from tests.bench.place import require
from tests.bench.programs import ROOT, Lastro, answer_of
from tests.bench.report import CPU, PEAK, WALL, Figure, Section, say

BACKUPS, OBJECTS = 10_000, 1_000_000
LIST_SECONDS_MAX = 0.1
MEMORY_BYTES_MAX = 500_000_000
PAGE = """
import sys, time
sys.path[:0] = [{root!r}, {platform!r}]
import django
django.setup()
from tenants import outputs, selectors
tenant = selectors.tenant_get("bench")
times = []
for _ in range({rounds}):
    begun = time.perf_counter()
    rows = [outputs.backup(row) for row in selectors.backup_list(tenant, limit=50)]
    times.append(time.perf_counter() - begun)
assert len(rows) == 50
print(min(times[1:]))
"""


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section."""
    backups, objects = max(100, int(BACKUPS * scale)), max(2_000, int(OBJECTS * scale))
    require(folder, gigabytes=6 * scale, files=objects)
    lastro = _installation(folder / "ours", backups, objects)
    section = Section("store", "A very full store")
    section.about.append(
        f"{objects:,} objects, of which {backups:,} are backups that need {objects // backups - 1:,} packs each; "
        "one tenant, a local store, each command a process of its own."
    )
    section.add(Figure("catalogue list page of 50", [_page(lastro, rounds)], target=LIST_SECONDS_MAX))
    for title, run in (
        ("prune, dry run", _good(lastro.measure("backup", "prune", "bench", "--dry-run"))),
        ("verify of the structure", _good(lastro.measure("copy", "verify", "bench", "--here"))),
        ("retention, dry run", _good(lastro.measure("retention", "run", "bench", "--dry-run", "--here"))),
    ):
        section.add(
            Figure(title, [WALL(run)]),
            Figure(f"{title}, CPU time", [CPU(run)]),
            Figure(f"{title}, peak memory", [PEAK(run)], unit="B", target=MEMORY_BYTES_MAX),
        )
    return section


def _good(run: Run) -> Run:
    answer_of(run)
    return run


def _installation(folder: Path, backups: int, objects: int) -> Lastro:
    lastro = Lastro(folder)
    tree = folder.with_name("tree")
    tree.mkdir()
    (tree / "file").write_text("next to nothing")
    lastro.tenant("bench", kind="files", category="assets", settings={"path": tree})
    answer_of(lastro.backup("bench", full=True))
    say(f"store: making {objects:,} objects")
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.full_store", "bench", str(backups), str(objects)],
        env=lastro.env, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise CommandFailed(f"full_store: {done.stderr[-1500:]}")
    return lastro


def _page(lastro: Lastro, rounds: int) -> float:
    """Seconds that a page of the list takes in a running server: without the start of a process."""
    script = PAGE.format(root=str(ROOT), platform=str(ROOT / "platform"), rounds=max(3, rounds))
    env = {**lastro.env, "DJANGO_SETTINGS_MODULE": "config.settings"}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CommandFailed(done.stderr[-1500:])
    return float(done.stdout)
