"""Read back what a restore has staged and compare it with the backup."""

from itertools import compress

from engine.ports import Check
from engine.progress import Progress
from engine.tree_digest import entry_sum
from engine.tree_folders import Folders
from engine.tree_format import STAT, show_path
from engine.tree_view import TreeView


def prove_taken(view: TreeView, root: int, take: bytearray, progress: Progress) -> Check:
    """Compare the content of every entry that was taken from the backup, below the folder behind the descriptor."""
    wanted = good = number = 0
    first_bad = ""
    with Folders(root) as folders:
        for ref in view.refs():
            progress.check()
            taken = take[number : number + ref.entries]
            number += ref.entries
            for row in compress(view.leaf(ref).rows(), taken) if 1 in taken else ():
                wanted += 1
                same = _sum_at(folders, row.path, STAT.unpack(row.stat)[0]) == row.sum
                good += same
                first_bad = first_bad or ("" if same else show_path(row.path))
    detail = f"{first_bad} differs" if first_bad else "content of what came back, read again from the target's disk"
    return Check("data_integrity", good == wanted, wanted, good, detail)


def _sum_at(folders: Folders, path: bytes, mode: int) -> bytes:
    try:
        return entry_sum(folders, path, mode)
    except OSError:
        return b""
