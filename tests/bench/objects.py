"""How close the local store comes to plain durable writes: packs of 32 MiB, against `dd conv=fsync`."""

import sys
from pathlib import Path

from tests.bench.measure import Run, pipeline, run
from tests.bench.place import remove, require
from tests.bench.programs import ROOT, plain_environment
from tests.bench.report import CPU, Section

BYTES = 1 << 30
PACK_BYTES = 32 << 20
TARGET = 1.5
PROGRAM = """
import sys
from stores.local import LocalConfig, LocalStore
store, count = LocalStore.make(LocalConfig(path=sys.argv[1])), int(sys.argv[2])
block = bytes(1 << 20)
for number in range(count):
    store.create(f"packs/{number:04x}", [block] * 32)
"""


def measure(folder: Path, *, scale: float, rounds: int) -> Section:
    """Run the section: the same number of objects by both, in turn."""
    require(folder, gigabytes=1.1 * scale)
    count = max(1, int(BYTES * scale) // PACK_BYTES)
    section = Section("objects", "Durable writes")
    section.about.append(f"{count} objects of 32 MiB through the local store, {rounds} rounds.")
    ours: list[Run] = []
    plain: list[Run] = []
    env = {**plain_environment(), "PYTHONPATH": str(ROOT / "platform")}
    for _ in range(rounds):
        ours.append(run([sys.executable, "-c", PROGRAM, folder / "store", str(count)], env=env))
        remove(folder / "store")
        (folder / "plain").mkdir()
        script = f"for n in $(seq {count}); do dd if=/dev/zero of=$n bs=1M count=32 conv=fsync status=none; done"
        plain.append(pipeline(script, env=env, cwd=folder / "plain"))
        remove(folder / "plain")
    section.compare("write", ours, plain, name="dd conv=fsync", target=TARGET)
    section.compare("CPU time", ours, plain, name="dd conv=fsync", of=CPU)
    return section
