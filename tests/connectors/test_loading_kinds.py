"""Connectors are found by kind, and a backup imports its own kind alone."""

import subprocess
import sys

import pytest

import connectors
from engine.errors import UsageError


def test_every_kind_is_found_by_itself() -> None:
    """Goal: one file a kind. Method: load each kind that all files together register."""
    for adapter in connectors.load_all():
        assert connectors.load(adapter.kind) is adapter


def test_a_kind_imports_no_other() -> None:
    """Goal: a command does not wait for kinds it has no use for. Method: a fresh interpreter that loads one."""
    script = "import sys; sys.path.insert(0, 'platform'); import connectors; connectors.load('postgresql'); print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "connectors.postgresql" in said
    assert not {"connectors.sqlite", "connectors.eventlog", "connectors.files", "psycopg"} & set(said)


@pytest.mark.parametrize("kind", ["nothing", "_sqlite", "", "os.path", "../files"])
def test_another_word_is_refused(kind: str) -> None:
    """Goal: a kind is a word of ours. Method: words that are none, some of them names of modules."""
    with pytest.raises(UsageError, match="unknown source kind"):
        connectors.load(kind)
