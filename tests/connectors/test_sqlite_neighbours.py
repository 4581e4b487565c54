"""What a restore must not do to anybody else's rows, where SQLite itself would not notice."""

from pathlib import Path

import pytest

from engine.errors import TargetError
from tests.connectors.sqlite_samples import Bench, everything, run, tenant


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "bench")


UNIQUE = "id INTEGER PRIMARY KEY, tenant_id INT, v TEXT UNIQUE ON CONFLICT REPLACE"


IGNORED = "id INT PRIMARY KEY, tenant_id INT, v TEXT, UNIQUE (v) ON CONFLICT IGNORE"


ROWID = "id INTEGER PRIMARY KEY ON CONFLICT REPLACE, tenant_id INT, v TEXT"


PRIMARY = "id INT, tenant_id INT, v TEXT, PRIMARY KEY (id) ON CONFLICT REPLACE"


KEY_TAKEN, VALUE_TAKEN = "(1, 2, 'new')", "(4, 2, 'a')"


@pytest.mark.parametrize(
    ("columns", "taken"),
    [(UNIQUE, VALUE_TAKEN), (IGNORED, VALUE_TAKEN), (ROWID, KEY_TAKEN), (PRIMARY, KEY_TAKEN)],
)
@pytest.mark.parametrize("later", ["", "ALTER TABLE door ADD COLUMN later DEFAULT 1;"])
def test_conflict_clauses_of_the_schema_do_not_count(
    bench: Bench, tmp_path: Path, columns: str, taken: str, later: str
) -> None:
    """Goal: ON CONFLICT REPLACE never deletes another tenant's row. Method: key or value were taken since the backup."""
    path = tmp_path / "shared.db"
    run(path, f"CREATE TABLE door({columns}); INSERT INTO door VALUES (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c')")
    connector = tenant(path, "1")
    manifest = bench.backup(connector)
    run(path, f"DELETE FROM door WHERE id = 1; INSERT INTO door VALUES {taken}; {later}")
    live = everything(path)
    with pytest.raises(TargetError):
        bench.restore(connector, manifest)
    assert everything(path) == live


BETWEEN = """
CREATE TABLE account(id INTEGER PRIMARY KEY, tenant_id INT);
CREATE TABLE transfer(id INTEGER PRIMARY KEY, payer INT REFERENCES account, payee INT REFERENCES account, sum INT);
CREATE TABLE entry(transfer INT REFERENCES transfer, n INT, above INT, PRIMARY KEY (transfer, n)) WITHOUT ROWID;
CREATE TABLE box(id INTEGER PRIMARY KEY, account INT REFERENCES account, inside INT REFERENCES box);
INSERT INTO account VALUES (1, 1), (2, 2), (3, 1);
INSERT INTO transfer VALUES (1, 1, 3, 10), (2, 1, 2, 20), (3, 2, NULL, 30), (4, 3, NULL, 40);
INSERT INTO entry VALUES (1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 0);
INSERT INTO box VALUES (1, 1, NULL), (2, NULL, 1), (3, 2, NULL), (4, NULL, 3), (5, 1, 3), (6, NULL, 5);
"""
