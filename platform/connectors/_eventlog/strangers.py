"""Files in a log's folder that belong to no log: no backup holds them, and so no restore may lose them."""

import os
from collections.abc import Sequence
from pathlib import Path

from connectors._eventlog.segment import LOG_FOLDER
from connectors._eventlog.target import target_errors
from engine.tree_carry import carry_apart
from engine.tree_folders import FOLDER_FLAGS, Folders


def carry_strangers(root: Path, stage: Path, names: Sequence[str]) -> None:
    """Link them from the log under `root` into the staged one. Raises TargetError."""
    if not names:
        return
    with target_errors(root):
        old = os.open(root / LOG_FOLDER, FOLDER_FLAGS)
        new = os.open(stage / LOG_FOLDER, FOLDER_FLAGS)
        try:
            with Folders(old) as sources, Folders(new) as targets:
                carry_apart(sources, targets, [os.fsencode(name) for name in names])
        finally:
            os.close(old)
            os.close(new)
