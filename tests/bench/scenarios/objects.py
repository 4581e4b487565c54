"""How close the local store comes to plain durable writes: packs of 32 MiB, against `dd conv=fsync`."""

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.measure import run, version
from tests.bench.scenario import OURS, Bound, Sample, register

PACK_BYTES = 32 << 20
SOURCE_ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys
from stores.local import LocalConfig, LocalStore
store, count = LocalStore(LocalConfig(path=sys.argv[1])), int(sys.argv[2])
block = bytes(1 << 20)
for number in range(count):
    store.create(f"packs/{number:04x}", [block] * 32)
"""


@register
class Objects:
    """Writes packs through the store and through dd."""

    name = "objects"
    about = "durable writes of 32 MiB objects: local store and dd conv=fsync"
    bounds = (Bound("write", "wall_seconds", "dd", ratio=1.5),)

    def missing(self) -> str:
        """Name the peer that is not installed."""
        return "" if version("dd") else "dd is not installed"

    def prepare(self, place: Path, size: int) -> None:
        """There is nothing to read; both write zeros."""
        self.count = max(1, size // PACK_BYTES)

    def round(self, place: Path, number: int) -> Iterator[Sample]:
        """Write the same number of objects by both."""
        here = place / str(number)
        here.mkdir()
        ours = run(
            [sys.executable, "-c", PROGRAM, here / "store", str(self.count)],
            env={"PYTHONPATH": str(SOURCE_ROOT / "platform")},
        )
        script = f'for n in $(seq {self.count}); do dd if=/dev/zero of="{here}/$n" bs=1M count=32 conv=fsync status=none; done'
        theirs = run(["sh", "-c", script])
        for who, usage in ((OURS, ours), ("dd", theirs)):
            yield Sample("write", who, "wall_seconds", usage.wall_seconds)
            yield Sample("write", who, "cpu_seconds", usage.cpu_seconds)
            yield Sample("write", who, "peak_bytes", usage.peak_bytes)
