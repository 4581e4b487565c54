"""Random histories of tables: incremental backups and a restore against COPY at the same snapshot.

One history works five related tables at once (keys of several kinds, a partitioned one, one without a key), so
LASTRO_TEST_HISTORIES=1000 asks for 200 runs; each is repeated by its seed, which a failure prints.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from connectors._postgresql.config import PostgresqlConfig
from connectors.postgresql import PostgresqlConnector
from engine.errors import TargetError
from engine.progress import NullProgress
from engine.table_backup import backup_table
from engine.table_view import TableView
from tests.connectors.postgres_views import MemoryView, put_back, take
from tests.engine.table_sources import MemoryChunks

HISTORIES = int(os.environ.get("LASTRO_TEST_HISTORIES", "60"))
SHARDS = 10
TABLES = ("acct", "item", "sub", "ev", "log")
STEPS = 14
TENANTS = (1, 2, 3)
CREATE = """
create schema {s}; set search_path = {s}, public;
create type mood as enum ('sad', 'ok', 'glad'); create type pair as (a int, b text);
create domain cents as numeric check (value is null or value = value);
create table acct(id int primary key, tenant int, label mood, amt cents, c pair, f float8);
create table item(id serial primary key, acct_id int references acct on delete cascade, note text, price numeric, unique (note));
create table sub(item_id int references item on delete cascade, n text, v jsonb, primary key (item_id, n));
create table ev(tenant int, id int, e mood[], v text, primary key (tenant, id)) partition by range (id);
create table ev_0 partition of ev for values from (0) to (50);
create table ev_1 partition of ev for values from (50) to (100);
create table log(tenant int, msg text, at interval);
insert into acct select g, 1 + g % 3, 'ok', g, row(g, 'x')::pair, g from generate_series(1, 12) g;
insert into item(acct_id, note, price) select 1 + g % 12, 'n' || g, g from generate_series(1, 30) g;
insert into sub select g, 'k' || g, '{{"a": 1}}' from generate_series(1, 30) g;
insert into ev select 1 + g % 3, g, '{{ok,sad}}', 'v' from generate_series(1, 90, 3) g;
insert into log select 1 + g % 3, 'm' || g % 4, '1 day' from generate_series(1, 20) g;
"""
TRUTH = {
    "acct": "{s}.acct t where tenant = 1",
    "item": "{s}.item t where acct_id in (select id from {s}.acct where tenant = 1)",
    "sub": "{s}.sub t where item_id in (select i.id from {s}.item i join {s}.acct a on a.id = acct_id where tenant = 1)",
    "ev": "{s}.ev t where tenant = 1",
    "log": "{s}.log t where tenant = 1",
}


class History:
    """A schema, two sessions that write to it, and backups of tenant 1 with what COPY said at each."""

    def __init__(self, dsn: str, rng: random.Random) -> None:
        self.dsn, self.rng = dsn, rng
        self.schema = f"h{rng.randrange(10**9)}"
        self.main = psycopg.connect(dsn, autocommit=True)
        self.other = psycopg.connect(dsn, autocommit=True)
        self.main.execute(CREATE.format(s=self.schema).encode())
        self.other.execute(f"set search_path = {self.schema}, public; set lock_timeout = '50ms'".encode())
        self.main.execute("set lock_timeout = '50ms'")
        self.config = PostgresqlConfig(
            dsn=dsn, layout="rows", schema=self.schema, tenant_column="tenant", tenant_value="1", definitions=False
        )
        self.chunks = MemoryChunks()
        self.nodes: dict[str, Any] = {}
        self.labels, self.added, self.parts = ["sad", "ok", "glad"], 0, 2
        self.detached = False
        self.saved: list[tuple[MemoryView, dict[str, Any]]] = []
        self.log: list[str] = []

    def close(self) -> None:
        self.other.close()
        self.main.rollback()
        self.main.execute(f"drop schema {self.schema} cascade".encode())
        self.main.close()

    # ------------------------------------------------ writing

    def sql(self, text: str, session: "psycopg.Connection[Any] | None" = None) -> None:
        """Run a statement; one that the other session's open transaction or a constraint hinders changes nothing."""
        session = session or self.main
        self.log.append(("other: " if session is self.other else "") + text)
        opened = session.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        try:
            if opened:
                session.execute("savepoint s")
            session.execute(text.encode())
        except (psycopg.errors.LockNotAvailable, psycopg.IntegrityError, psycopg.errors.DataError):
            self.log.append("  refused")
            if opened:
                session.execute("rollback to savepoint s")

    def value(self) -> str:
        return self.rng.choice(["'1.0'", "'1.00'", "'1'", "'-0'", "'NaN'", "null", "'7e3'"])

    def change(self, session: "psycopg.Connection[Any] | None" = None) -> None:
        """One random change of rows."""
        r = self.rng
        some, tenant, label = r.randint(1, 14), r.choice(TENANTS), r.choice(self.labels)
        choices: list[Callable[[], str]] = [
            lambda: (
                f"update acct set amt = {self.value()}, f = '{r.choice(['0', '-0', 'NaN', '0.1'])}' where id = {some}"
            ),
            lambda: f"update acct set tenant = {tenant}, label = '{label}' where id = {some}",
            lambda: f"update acct set c.b = e't\\t\\\\{tenant}' where id = {some}",
            lambda: f"insert into acct values ({some}, {tenant}, '{label}', {self.value()}, null, 0)",
            lambda: f"delete from acct where id = {some} and id % 4 = 0",
            lambda: f"update item set acct_id = {r.randint(1, 12)} where id = {r.randint(1, 30)}",
            lambda: (
                f"update item set price = {self.value()}, note = 'n' || {r.randint(1, 40)} where id = {r.randint(1, 30)}"
            ),
            lambda: f"insert into item(acct_id, note) values ({r.randint(1, 12)}, 'i' || {r.randint(1, 99)})",
            lambda: f"insert into sub values ({r.randint(1, 30)}, chr({r.randint(32, 900)}), '[1, {some}]')",
            lambda: f"delete from sub where item_id = {r.randint(1, 30)}",
            lambda: f"update sub set v = '{{\"b\": {some}}}' where item_id % 7 = {r.randint(0, 6)}",
            lambda: f"insert into ev values ({tenant}, {r.randint(0, 99)}, '{{{label}}}', 'w')",
            lambda: f"update ev set id = id + 1 where tenant = {tenant} and id = {r.randint(0, 98)}",
            lambda: f"delete from ev where id % 9 = {r.randint(0, 8)} and tenant = {tenant}",
            lambda: (
                f"insert into log values ({tenant}, 'm{r.randint(0, 4)}', '{r.choice(['1 day', '24:00', '1 mon'])}')"
            ),
            lambda: f"delete from log where ctid in (select ctid from log where tenant = {tenant} limit 1)",
            lambda: f"update log set tenant = {tenant} where msg = 'm{r.randint(0, 4)}'",
        ]
        self.sql(r.choice(choices)(), session)

    def savepoints(self) -> None:
        """A transaction with a subtransaction kept and one taken back."""
        self.main.execute("begin")
        self.change()
        self.main.execute("savepoint kept")
        self.change()
        self.main.execute("savepoint lost")
        self.change()
        self.main.execute("rollback to savepoint lost")
        self.main.execute(self.rng.choice(["commit", "commit", "rollback"]).encode())

    def other_session(self) -> None:
        """Open, go on with or end a transaction that lives through backups."""
        if self.other.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.other.execute("begin")
            self.change(self.other)
        elif self.rng.random() < 0.5:
            self.change(self.other)
        else:
            self.other.execute(self.rng.choice(["commit", "commit", "rollback"]).encode())

    def alter(self) -> None:
        """One random change of schema."""
        r = self.rng
        kind = r.choice(["column", "drop", "enum", "detach", "attribute", "rewrite", "swap"])
        if kind == "column":
            self.added += 1
            self.sql(f"alter table {r.choice(['acct', 'item', 'log'])} add x{self.added} text default 'd{self.added}'")
        elif kind == "drop" and self.added:
            self.sql(f"alter table acct drop column if exists x{r.randint(1, self.added)}")
        elif kind == "enum":
            at = r.randrange(len(self.labels))
            name = f"l{r.randrange(10**6)}"
            self.sql(f"alter type mood rename value '{self.labels[at]}' to '{name}'")
            self.labels[at] = name
        elif kind == "detach":
            self._attach_or_detach()
        elif kind == "attribute":
            self.added += 1
            self.sql(f"alter type pair add attribute y{self.added} int cascade")
        elif kind == "rewrite" and self.other.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
            self.sql(f"vacuum full {r.choice(TABLES)}")
        elif kind == "swap":
            self.sql("alter table item alter price type text using price::text || ''")
            self.sql("alter table item alter price type numeric using price::numeric")

    def _attach_or_detach(self) -> None:
        if self.detached:
            self.sql("update ev_1 set v = v || 'while away' where id % 4 = 0")
            self.sql("alter table ev attach partition ev_1 for values from (50) to (100)")
        else:
            self.sql("alter table ev detach partition ev_1")
        query = "select count(*) from pg_inherits where inhrelid = 'ev_1'::regclass"
        self.detached = not self.main.execute(query).fetchone()[0]  # type: ignore[index]

    # ------------------------------------------------ backing up

    def backup(self) -> None:
        """An incremental of every table, compared with COPY in the same snapshot."""
        truth: dict[str, Any] = {}
        with PostgresqlConnector(self.config).open(NullProgress()) as reader:
            parts = {part.name.split(".")[1]: part for part in reader.tables()}
            with psycopg.connect(self.dsn, autocommit=True) as witness:
                witness.execute("begin isolation level repeatable read read only; set timezone = 'UTC'")
                witness.execute(f"set transaction snapshot '{reader.position['snapshot']}'".encode())
                for name in TABLES:
                    truth[name] = self._copy(witness, name, [column.name for column in parts[name].columns])
            for name, part in parts.items():
                parent = self.nodes.get(name)
                self.nodes[name] = backup_table(
                    self.chunks, part, parent=parent, reader=self.chunks, full=False, progress=NullProgress()
                )
            facts = {**reader.facts, **reader.finish()}
        views: list[Any] = []
        for name in parts:
            view = TableView(self.chunks, self.nodes[name])
            views.append(view)
            lines = [line.split(b"\t", view.key.synthetic)[-1] for batch in view.rows() for line in batch]
            if name in truth:
                assert sorted(lines) == truth[name], f"{name} differs from COPY\n" + "\n".join(self.log)
        self.saved.append((MemoryView(reader.position, facts, tuple(views), {}), truth))

    def _copy(self, session: "psycopg.Connection[Any]", name: str, columns: list[str]) -> list[bytes]:
        listed = ", ".join(f't."{column}"' for column in columns)
        session.execute("set search_path = ''")
        with session.cursor().copy(
            f"copy (select {listed} from {TRUTH[name].format(s=self.schema)}) to stdout".encode()
        ) as out:
            return sorted(bytes(line)[:-1] for line in out)

    # ------------------------------------------------ restoring

    def restore(self) -> None:
        """Go back to the newest backup; compare tenant 1 with it and the others with themselves."""
        if self.other.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            self.other.execute("commit")
        self.change()
        view, _ = self.saved[-1]
        schema_same = {t.name: t.columns for t in view.tables} == {t.name: t.columns for t in take(self.config).tables}
        others, own = self._others(), take(self.config).digests()
        try:
            put_back(self.config, view, prove=True)
        except TargetError:
            assert collision(self), "refused without a reason\n" + "\n".join(self.log)
            assert (self._others(), take(self.config).digests()) == (others, own), "\n".join(self.log)
            return
        assert self._others() == others, "\n".join(self.log)
        if schema_same:
            now = {table.name: sorted(table.rows_only) for table in take(self.config).tables}
            then = {t.name: sorted(line for batch in t.rows() for line in batch) for t in view.tables}
            assert now == then, "\n".join(self.log)

    def _others(self) -> list[Any]:
        tenant = "tenant is distinct from 1"
        foreign = {
            "acct": tenant, "ev": tenant, "log": tenant,
            "item": f"acct_id in (select id from acct where {tenant})",
            "sub": f"item_id in (select i.id from item i join acct a on a.id = acct_id where {tenant})",
        }  # fmt: skip
        return [
            self.main.execute(f"select t::text from {name} t where {where} order by 1".encode()).fetchall()
            for name, where in foreign.items()
        ]


def collision(history: History) -> bool:
    """Whether a row of the newest backup has moved to another tenant, so that a restore is rightly refused."""
    view = {table.name.split(".")[1]: table for table in history.saved[-1][0].tables}
    for name in ("acct", "item", "sub", "ev"):
        kept = {view[name].key.text(row) for batch in view[name].rows() for row in batch}
        where = TRUTH[name].format(s=history.schema).partition("where ")[2]
        columns = {"acct": "id", "item": "id", "sub": "item_id, n", "ev": "tenant, id"}[name]
        with history.main.cursor().copy(
            f"copy (select {columns} from {name} t where not coalesce({where}, false)) to stdout".encode()
        ) as out:
            if kept & {bytes(line)[:-1] for line in out}:
                return True
    notes = {
        row
        for (row,) in history.main.execute(
            "select note from item where acct_id in (select id from acct where tenant <> 1)"
        )
    }
    where = [column.name for column in view["item"].columns].index("note")
    return bool(notes & {row.split(b"\t")[where].decode() for batch in view["item"].rows() for row in batch})


def run(dsn: str, seed: int) -> None:
    """One history: changes and backups in random order, then a restore of the newest backup."""
    history = History(dsn, random.Random(seed))
    try:
        history.backup()
        for _ in range(STEPS):
            draw = history.rng.random()
            if draw < 0.5:
                history.change()
            elif draw < 0.62:
                history.savepoints()
            elif draw < 0.75:
                history.other_session()
            elif draw < 0.84:
                history.alter()
            else:
                history.backup()
        history.backup()
        history.restore()
    except BaseException as error:
        error.add_note(f"seed {seed}\n" + "\n".join(history.log))
        raise
    finally:
        history.close()


@pytest.mark.seeded
@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_histories(shard: int, postgres_database: str, seed: int) -> None:
    """Goal: incremental and restore are exact whatever happens between. Method: seeded histories against COPY."""
    for number in range(-(-HISTORIES // (len(TABLES) * SHARDS))):
        run(postgres_database, seed + number)
