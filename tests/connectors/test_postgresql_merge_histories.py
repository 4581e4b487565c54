"""Random histories: two sides change what they had in common, then the tenant is merged, restored in part, undone.

Three groups of tables are worked at once, one for each policy, and each counts: LASTRO_TEST_HISTORIES=1000 asks for 300
histories, the soak for 10,000.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors._postgresql.config import PostgresqlConfig
from engine.plans import POLICIES
from tests.connectors.merge_model import Child, Parent, State, merged, selected
from tests.connectors.postgres_changes import apply, contents, preview, undo
from tests.connectors.postgres_views import MemoryView, take
from tests.services.postgres import PostgresServer

GROUPS = len(POLICIES)
HISTORIES = int(os.environ.get("LASTRO_TEST_HISTORIES", "60")) * 3 // 10
SOAK_HISTORIES = 10_000
KEYS = st.integers(1, 3)
CODES = st.one_of(st.none(), st.integers(1, 5))
TIMES = st.one_of(st.none(), st.integers(1, 4))
PARENTS = st.builds(Parent, CODES, st.integers(1, 3), TIMES)
CHILDREN = st.builds(Child, st.one_of(KEYS, KEYS, KEYS, st.none()), st.integers(1, 3), TIMES)
STATES = st.builds(
    State,
    st.dictionaries(KEYS, PARENTS, min_size=2, max_size=3),
    st.dictionaries(KEYS, CHILDREN, min_size=1, max_size=3),
    st.lists(st.integers(1, 3), max_size=4).map(Counter),
)
TOUCHES = st.tuples(st.integers(1, 3), TIMES)
"""New values for what is not a reference nor a unique value: the row stays the same thing."""
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("p"), KEYS, st.one_of(st.none(), st.none(), TOUCHES, TOUCHES, PARENTS)),
        st.tuples(st.just("c"), KEYS, st.one_of(st.none(), st.none(), TOUCHES, TOUCHES, CHILDREN)),
        st.tuples(st.just("b"), st.integers(1, 3), st.sampled_from([-1, 1])),
    ),
    min_size=3,
    max_size=10,
)
NEIGHBOURS = st.builds(State, st.dictionaries(KEYS, PARENTS, max_size=2), st.dictionaries(KEYS, CHILDREN, max_size=2))


def valid(state: State, others: State) -> State:
    """Drop what the constraints would refuse."""
    state = state.copy()
    codes = {row.code for row in others.parents.values() if row.code is not None}
    for key in sorted(state.parents):
        code = state.parents[key].code
        if key in others.parents or (code is not None and code in codes):
            del state.parents[key]
        elif code is not None:
            codes.add(code)
    for key in sorted(state.children):
        parent = state.children[key].parent
        if key in others.children or (parent is not None and parent not in state.parents):
            del state.children[key]
    state.bag = +state.bag
    return state


def edited(state: State, edits: list[tuple[str, int, Any]]) -> State:
    state = state.copy()
    for table, key, row in edits:
        if table == "b":
            state.bag[key] = max(0, state.bag[key] + row)
            continue
        rows: dict[int, Any] = state.parents if table == "p" else state.children
        was = rows.pop(key, None)
        if isinstance(row, (Parent, Child)):
            rows[key] = row
        elif row is not None and was is not None:
            rows[key] = type(was)(was[0], *row)
    return valid(state, State())


def _text(value: int | None) -> bytes:
    return b"\\N" if value is None else b"%d" % value


def _time(value: int | None) -> bytes:
    return b"\\N" if value is None else b"2026-01-01 00:00:0%d" % value


def _literal(text: bytes) -> str:
    return "null" if text == b"\\N" else f"'{text.decode()}'"


def fields(state: State) -> dict[str, list[list[bytes]]]:
    """The rows as COPY prints them, without key made up and without tenant."""
    return {
        "p": [[_text(k), _text(r.code), _text(r.name), _time(r.at)] for k, r in sorted(state.parents.items())],
        "c": [[_text(k), _text(r.parent), _text(r.v), _time(r.at)] for k, r in sorted(state.children.items())],
        "b": [[_text(value)] for value in sorted(state.bag.elements())],
    }


class World:
    """Three groups of tables in one database, loaded and read as states."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.session = psycopg.connect(dsn, autocommit=True)
        for g in range(GROUPS):
            self.session.execute(
                f"create table p{g}(id int primary key, tenant int, code int unique, name int, updated_at timestamp);"
                f"create table c{g}(id int primary key, tenant int, parent int references p{g}, v int, updated_at timestamp);"
                f"create table b{g}(tenant int, v int)".encode()
            )
        self.config = PostgresqlConfig(
            dsn=dsn, layout="rows", tenant_column="tenant", tenant_value="1", definitions=False
        )
        self.template = take(self.config)

    def load(self, states: list[State], others: list[State]) -> None:
        statements = [f"delete from {t}{g};" for g in range(GROUPS) for t in "cpb"]
        for g in range(GROUPS):
            for tenant, state in ((1, states[g]), (2, others[g])):
                for table, rows in fields(state).items():
                    for row in rows:
                        key, *rest = map(_literal, row)
                        values = [str(tenant), key] if table == "b" else [key, str(tenant), *rest]
                        statements.append(f"insert into {table}{g} values ({', '.join(values)});")
        self.session.execute("".join(statements).encode())

    def view(self, states: list[State]) -> MemoryView:
        """A backup of these states, as `take` would have read it."""
        tables = []
        for table in self.template.tables:
            kind, group = table.name.split(".")[1]
            made = object.__new__(type(table))
            made.__dict__.update(table.__dict__)
            rows = fields(states[int(group)])[kind]
            if kind == "b":
                made.rows_only = [b"x\t1\t1\t" + row[0] for row in rows]
            else:
                made.rows_only = [b"\t".join([row[0], b"1", *row[1:]]) for row in rows]
            made.row_count, made.byte_count, made.sha256 = len(rows), 0, None  # type: ignore[assignment]
            tables.append(made)
        return MemoryView(self.template.position, self.template.facts, tuple(tables), self.template.documents)

    def states(self, tenant: int = 1) -> list[State]:
        found = []
        for g in range(GROUPS):
            state = State()
            seconds = "extract(second from updated_at)::int"
            for key, *rest in self.session.execute(
                f"select id, code, name, {seconds} from p{g} where tenant = {tenant}".encode()
            ):
                state.parents[key] = Parent(*rest)
            for key, *rest in self.session.execute(
                f"select id, parent, v, {seconds} from c{g} where tenant = {tenant}".encode()
            ):
                state.children[key] = Child(*rest)
            for (value,) in self.session.execute(f"select v from b{g} where tenant = {tenant}".encode()):
                state.bag[value] += 1
            found.append(state)
        return found


@pytest.fixture(scope="module")
def world(postgres: PostgresServer) -> Iterator[World]:
    name = postgres.create_database()
    made = World(postgres.dsn(name))
    yield made
    made.session.close()
    postgres.drop_database(name)


SIDES = st.tuples(STATES, EDITS, EDITS, NEIGHBOURS)


def sides(drawn: tuple[State, Any, Any, State]) -> tuple[State, State, State, State]:
    """Base, backup, live and the neighbour's rows, each as the constraints allow."""
    base, one, two, others = drawn
    base = valid(base, State())
    backup, others = edited(base, one), valid(others, State())
    live = valid(edited(base, two), others)
    return base, backup, live, others


def check_merge(world: World, drawn: list[tuple[State, Any, Any, State]], *, three_way: bool) -> None:
    groups = [sides(each) for each in drawn]
    bases, backups, lives, others = ([group[n] for group in groups] for n in range(4))
    world.load(lives, others)
    before, theirs = contents(world.dsn), world.states(2)
    view = world.view(backups)
    policies = {f"{table}{g}": POLICIES[g] for g in range(GROUPS) for table in "pcb"}
    request: dict[str, Any] = {"mode": "merge", "policies": policies, "base": world.view(bases) if three_way else None}
    said = preview(world.config, view, **request)
    done = apply(world.config, view, digest=said.digest, **request)
    assert (done.report.tables, done.report.digest) == (said.tables, said.digest)
    after = world.states()
    assert world.states(2) == theirs
    for g in range(GROUPS):
        base = bases[g] if three_way else None
        assert after[g] == merged(backups[g], lives[g], base, POLICIES[g], others[g]), POLICIES[g]
        check_promises(POLICIES[g], base, backups[g], lives[g], after[g])
    undo(world.config, done.image)
    assert contents(world.dsn) == before


def check_promises(policy: str, base: State | None, backup: State, live: State, after: State) -> None:
    """No newer row is lost, no deleted one comes back, said without the model."""
    for table in ("parents", "children"):
        b = getattr(base, table) if base else {}
        s, t, now = (getattr(state, table) for state in (backup, live, after))
        for key, row in t.items():
            only_ours = base is None or b.get(key) != row
            if key not in s and only_ours and policy != "take_backup":
                assert now[key] == row, "a row that the tenant made or changed is gone"
            if policy == "only_missing" and only_ours:
                assert now[key] == row, "what exists was changed"
        for key in now.keys() - t.keys():
            assert now[key] == s[key], "a row came from nowhere"
            assert base is None or b.get(key) != s[key], "a row that the tenant deleted came back"


def check_selection(world: World, drawn: list[tuple[State, Any, Any, State]], tables: frozenset[str]) -> None:
    groups = [sides(each) for each in drawn]
    backups, lives = ([group[n] for group in groups] for n in (1, 2))
    nobody = [State()] * GROUPS
    world.load(lives, nobody)
    before = contents(world.dsn)
    view = world.view(backups)
    request: dict[str, Any] = {"mode": "selective", "modules": tuple(f"{t}{g}" for t in tables for g in range(GROUPS))}
    said = preview(world.config, view, **request)
    done = apply(world.config, view, digest=said.digest, **request)
    assert (done.report.tables, done.report.digest) == (said.tables, said.digest)
    assert world.states() == [selected(backups[g], lives[g], tables, nobody[g]) for g in range(GROUPS)]
    undo(world.config, done.image)
    assert contents(world.dsn) == before


def run_histories(world: World, count: int) -> None:
    """A share of each kind."""
    runs = max(1, count // GROUPS)
    shares = {"merge": runs * 2 // 5, "three_way": runs * 2 // 5, "selective": max(1, runs // 5)}

    def setup(examples: int) -> Any:
        quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
        return settings(max_examples=max(1, examples), deadline=None, suppress_health_check=quiet)

    groups = st.lists(SIDES, min_size=GROUPS, max_size=GROUPS)

    @setup(shares["merge"])
    @given(groups)
    def merge(drawn: list[Any]) -> None:
        check_merge(world, drawn, three_way=False)

    @setup(shares["three_way"])
    @given(groups)
    def three_way(drawn: list[Any]) -> None:
        check_merge(world, drawn, three_way=True)

    @setup(shares["selective"])
    @given(groups, st.sampled_from([frozenset("p"), frozenset("c"), frozenset("pc"), frozenset("cb")]))
    def selective(drawn: list[Any], tables: frozenset[str]) -> None:
        check_selection(world, drawn, tables)

    merge()
    three_way()
    selective()


def test_histories_come_out_as_the_model_says(world: World) -> None:
    """Goal: merges lose nothing newer and revive nothing against the policy. Method: random sides, a model in Python, undo."""
    run_histories(world, HISTORIES)


@pytest.mark.soak
def test_many_histories(world: World) -> None:
    """Goal: the same, 10,000 times."""
    run_histories(world, SOAK_HISTORIES)
