"""Three tenants in shared tables of a real PostgreSQL: one is restored, the others' rows stay as they are."""

from collections.abc import Callable

import psycopg
import pytest

from tests.e2e.program import Program

pytestmark = pytest.mark.postgres
SLUGS = ("aurora", "boreal", "cobre")


@pytest.fixture
def shared(program: Program, postgres_database: str) -> Callable[[str], list[str]]:
    """Fill the tables, add the tenants; the value gives all rows of one tenant as text."""
    with psycopg.connect(postgres_database) as connection:
        connection.execute(
            """
            CREATE TABLE guest (id serial PRIMARY KEY, hotel text NOT NULL, email text UNIQUE);
            CREATE TABLE booking (id serial PRIMARY KEY, hotel text NOT NULL, guest_id int REFERENCES guest, price numeric);
            CREATE TABLE item (id serial PRIMARY KEY, booking_id int REFERENCES booking ON DELETE CASCADE, what text);
            INSERT INTO guest (hotel, email) SELECT (ARRAY['aurora','boreal','cobre'])[1 + g % 3], 'g' || g FROM generate_series(1, 600) g;
            INSERT INTO booking (hotel, guest_id, price) SELECT hotel, id, id / 7.0 FROM guest, generate_series(1, 3);
            INSERT INTO item (booking_id, what) SELECT id, E'tab\\t' || id FROM booking;
            """
        )
    for slug in SLUGS:
        program("tenant", "add", slug, "--name", slug)
        program(
            "source", "add", slug, "db", "--kind", "postgresql", "--category", "database", "--set", f"dsn={postgres_database}",
            "--set", "layout=rows", "--set", "tenant_column=hotel", "--set", f"tenant_value={slug}",
        )  # fmt: skip

    def rows(slug: str) -> list[str]:
        with psycopg.connect(postgres_database) as connection:
            found: list[str] = []
            for query in (
                "SELECT 'g' || t::text FROM guest t WHERE hotel = %s",
                "SELECT 'b' || t::text FROM booking t WHERE hotel = %s",
                "SELECT 'i' || i::text FROM item i JOIN booking b ON b.id = booking_id WHERE b.hotel = %s",
            ):
                found += [text for (text,) in connection.execute(query, (slug,))]
        return sorted(found)

    return rows


def test_one_tenant_comes_back_and_the_others_stay(
    program: Program, shared: Callable[[str], list[str]], postgres_database: str
) -> None:
    """Goal: exactly one tenant changes; damage two, restore one, compare the rows of all three."""
    full = program.backup("boreal")
    with psycopg.connect(postgres_database) as connection:
        connection.execute("UPDATE booking SET price = price + 1 WHERE hotel = 'boreal' AND id % 100 = 1")
    incremental = program.backup("boreal", "incremental")
    want = shared("boreal")
    with psycopg.connect(postgres_database) as connection:
        connection.execute("DELETE FROM booking WHERE hotel = 'boreal' AND id % 2 = 0")
        connection.execute("UPDATE guest SET email = NULL WHERE hotel IN ('boreal', 'cobre')")
        connection.execute("INSERT INTO guest (hotel, email) VALUES ('boreal', 'stray'), ('aurora', 'mine')")
    others = {slug: shared(slug) for slug in ("aurora", "cobre")}
    assert shared("boreal") != want
    restored = program.restore(incremental["id"], "boreal", "--prove")
    assert shared("boreal") == want
    assert {slug: shared(slug) for slug in others} == others
    changes = {table["name"].rpartition(".")[2]: table for table in restored["sources"][0]["tables"]}
    assert changes["guest"]["delete"] == 1
    assert changes["guest"]["update"] == 200
    assert changes["booking"]["insert"] == changes["item"]["insert"] == 300
    assert restored["sources"][0]["neighbours"]
    assert incremental["stored_bytes"] < full["stored_bytes"]


def test_each_tenant_has_its_own_repository(program: Program, shared: Callable[[str], list[str]]) -> None:
    """Goal: nothing is shared between tenants; back up all of them and compare what each stored."""
    backups = {slug: program.backup(slug) for slug in SLUGS}
    assert all(backup["stored_bytes"] > 0 for backup in backups.values())
    assert len({backup["key_id"] for backup in backups.values()}) == 3
    assert shared("aurora")
