"""What a restore must not do to anybody else's rows, where PostgreSQL itself would not notice."""

import pytest

from connectors._postgresql.config import PostgresqlConfig
from engine.errors import TargetError
from tests.connectors.postgres_views import execute, put_back, table_text, take

SHARED = """
create table tenant(id int primary key);
create table note(id int primary key, tenant int references tenant, v text);
insert into tenant values (1), (2);
"""


def rows_of(dsn: str, **more: object) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False, **more)  # type: ignore[arg-type]


def schema_of(dsn: str, name: str) -> PostgresqlConfig:
    return PostgresqlConfig(dsn=dsn, layout="schema", schema=name)


@pytest.mark.parametrize(
    "constraint",
    [
        "unique (code) deferrable",
        "unique (code) deferrable initially deferred",
        "exclude using btree (code with =) deferrable",
    ],
)
def test_deferrable_constraints_hold(postgres_database: str, constraint: str) -> None:
    """Goal: silenced triggers do not silence a deferrable constraint. Method: another tenant takes the value."""
    execute(postgres_database, SHARED + f"create table door(id int primary key, tenant int, code text, {constraint});"
            "insert into door values (1, 1, 'a'), (2, 1, 'b'), (3, 2, 'c'), (5, 1, null), (6, 2, null)")  # fmt: skip
    view = take(rows_of(postgres_database))
    execute(postgres_database, "delete from door where id = 1; insert into door values (4, 2, 'a')")
    live = table_text(postgres_database, "door")
    with pytest.raises(TargetError, match="door"):
        put_back(rows_of(postgres_database), view)
    assert table_text(postgres_database, "door") == live
    execute(postgres_database, "delete from door where id = 4; update door set code = 'x' where id = 2;"
            "update door set code = 'a' where id = 3; update door set code = 'c' where id = 3")  # fmt: skip
    put_back(rows_of(postgres_database), view, prove=True)
    assert table_text(postgres_database, "door", "tenant = 1") == ["(1,1,a)", "(2,1,b)", "(5,1,)"]
