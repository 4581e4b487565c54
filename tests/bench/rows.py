"""The database that is backed up: a shop platform, its tenants' rows in shared tables, made of varied English text.

Tenants have different sizes (the k-th a k-th of the first's), and their rows lie mixed in the tables as they do where
all tenants work at the same time. Two processes make the rows and load them by COPY; keys and indexes come after.
"""

import datetime
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import psycopg

from tests.bench.corpus import words
from tests.services.postgres import PostgresServer

TENANTS = 20
SEED = 20261122
ORDER_BYTES = 935  # rows of all tables per order, measured in COPY's text format
BATCH_ROWS = 2000
EPOCH = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
STATES = ("placed", "paid", "packed", "shipped", "delivered", "returned", "cancelled")

TABLES = """
CREATE TABLE tenant (id int PRIMARY KEY, slug text NOT NULL, name text NOT NULL, created_at timestamptz NOT NULL);
CREATE TABLE customer (id bigint NOT NULL, tenant_id int NOT NULL, email text NOT NULL, name text NOT NULL,
  phone text, address jsonb NOT NULL, vip boolean NOT NULL, created_at timestamptz NOT NULL, note text);
CREATE TABLE product (id bigint NOT NULL, tenant_id int NOT NULL, sku text NOT NULL, title text NOT NULL,
  description text, price numeric(12,2) NOT NULL, attributes jsonb, stock int NOT NULL);
CREATE TABLE orders (id bigint NOT NULL, tenant_id int NOT NULL, customer_id bigint NOT NULL, status text NOT NULL,
  placed_at timestamptz NOT NULL, total numeric(12,2) NOT NULL, shipping jsonb NOT NULL, remark text);
CREATE TABLE order_item (id bigint NOT NULL, order_id bigint NOT NULL, product_id bigint NOT NULL, quantity int NOT NULL,
  price numeric(12,2) NOT NULL, comment text);
CREATE TABLE message (id uuid NOT NULL, tenant_id int NOT NULL, customer_id bigint NOT NULL, sent_at timestamptz NOT NULL,
  subject text NOT NULL, body text NOT NULL);
"""
KEYS = """
ALTER TABLE customer ADD PRIMARY KEY (id);
ALTER TABLE product ADD PRIMARY KEY (id);
ALTER TABLE orders ADD PRIMARY KEY (id);
ALTER TABLE order_item ADD PRIMARY KEY (id);
ALTER TABLE message ADD PRIMARY KEY (id);
CREATE UNIQUE INDEX ON customer (tenant_id, email);
CREATE UNIQUE INDEX ON product (tenant_id, sku);
CREATE INDEX ON orders (tenant_id, placed_at);
CREATE INDEX ON orders (customer_id);
CREATE INDEX ON order_item (order_id);
CREATE INDEX ON message (tenant_id, sent_at);
CREATE INDEX ON message (customer_id);
ALTER TABLE customer ADD FOREIGN KEY (tenant_id) REFERENCES tenant;
ALTER TABLE product ADD FOREIGN KEY (tenant_id) REFERENCES tenant;
ALTER TABLE orders ADD FOREIGN KEY (tenant_id) REFERENCES tenant, ADD FOREIGN KEY (customer_id) REFERENCES customer;
ALTER TABLE order_item ADD FOREIGN KEY (order_id) REFERENCES orders, ADD FOREIGN KEY (product_id) REFERENCES product;
ALTER TABLE message ADD FOREIGN KEY (tenant_id) REFERENCES tenant, ADD FOREIGN KEY (customer_id) REFERENCES customer;
"""
NAMES = ("tenant", "customer", "product", "orders", "order_item", "message")
LOADED_TOGETHER = (("tenant", "orders", "message"), ("customer", "product", "order_item"))
CHANGES = {
    "customer": "note = md5(random()::text) || ' asked to be called back'",
    "product": "price = price + 1, stock = stock - 1",
    "orders": "status = 'delivered', total = total + 0.01",
    "order_item": "quantity = quantity + 1",
    "message": "body = body || ' (edited ' || clock_timestamp() || ')'",
}


@dataclass(frozen=True)
class Rows:
    """A loaded database: how many rows, how many bytes they are as COPY's text, and each tenant's share of orders."""

    database: str
    rows: int
    bytes: int
    shares: tuple[float, ...]

    def tenant_near(self, share: float) -> int:
        """The tenant whose share of the rows comes closest to the given one."""
        return min(range(1, TENANTS + 1), key=lambda tenant: abs(self.shares[tenant - 1] - share))


def load(server: PostgresServer, *, database: str, bytes_wanted: int) -> Rows:
    """Make and fill a database, with its keys, indexes and statistics."""
    server.create_database(database)
    server.execute(TABLES, database=database)
    orders = max(1000, bytes_wanted // ORDER_BYTES)
    with ProcessPoolExecutor(2) as pool:
        done = list(pool.map(_fill, [server.dsn(database)] * 2, [orders] * 2, LOADED_TOGETHER))
    for statement in filter(str.strip, KEYS.split(";")):
        server.execute(statement, database=database)
    settle(server, database)
    return Rows(database, sum(rows for rows, _ in done), sum(size for _, size in done), tuple(_shares()))


def settle(server: PostgresServer, database: str) -> None:
    """Vacuum, gather statistics and write everything out, so that nothing of it happens while we measure."""
    server.execute("VACUUM (ANALYZE)", database=database)
    server.execute("CHECKPOINT", database=database)


def change(server: PostgresServer, database: str, *, percent: float, seed: int) -> int:
    """Change a share of every table's rows, drawn at random; returns how many."""
    changed = 0
    with server.connect(database) as connection, connection.transaction():
        for table, assignments in CHANGES.items():
            sample = f"SELECT id FROM {table} TABLESAMPLE BERNOULLI ({percent}) REPEATABLE ({seed})"
            changed += connection.execute(f"UPDATE {table} SET {assignments} WHERE id IN ({sample})".encode()).rowcount
    return changed


def same(server: PostgresServer, one: str, other: str) -> bool:
    """Whether two databases hold the same rows, by counts and sums of hashes."""
    query = " UNION ALL ".join(
        f"SELECT '{name}', count(*), sum(hashtextextended(t::text, 0)::numeric) FROM {name} t" for name in NAMES
    )
    return sorted(server.execute(query, database=one)) == sorted(server.execute(query, database=other))


def copies_of(tenant: int) -> str:
    """psql's script that reads one tenant's rows by bare COPY."""
    of = f"WHERE tenant_id = {tenant}"
    queries = [
        f"SELECT * FROM tenant WHERE id = {tenant}",
        *(f"SELECT * FROM {name} {of}" for name in ("customer", "product", "orders", "message")),
        f"SELECT i.* FROM order_item i JOIN orders o ON o.id = i.order_id WHERE o.tenant_id = {tenant}",
    ]
    return "\n".join(f"COPY ({query}) TO STDOUT;" for query in queries)


# ---------------------------------------------------------------- making rows


def _shares() -> list[float]:
    whole = sum(1 / rank for rank in range(1, TENANTS + 1))
    return [1 / rank / whole for rank in range(1, TENANTS + 1)]


class _Maker:
    """Makes rows as lines of COPY's text format. What tables share is drawn from the seed alone."""

    def __init__(self, orders: int) -> None:
        self.orders, self.customers, self.products = orders, orders // 5, max(TENANTS * 5, orders // 20)
        self.items, self.messages = orders * 3 // 2, orders // 2
        shared = random.Random(SEED)
        tenants = range(1, TENANTS + 1)
        self.customer_tenant = shared.choices(tenants, _shares(), k=self.customers)
        self.order_customer = shared.choices(range(self.customers), k=orders)
        self.product_tenant = [number % TENANTS + 1 for number in range(self.products)]
        self._words, weights = words()
        self._weights = [sum(weights[: index + 1]) for index in range(len(weights))]
        self._stream: list[str] = []
        self._rng = random.Random(SEED + 1)

    def _text(self, count: int) -> str:
        if len(self._stream) < count:
            self._stream = self._rng.choices(self._words, cum_weights=self._weights, k=200_000)
        taken = self._stream[-count:]
        del self._stream[-count:]
        return " ".join(taken)

    def _time(self) -> str:
        return (EPOCH + datetime.timedelta(milliseconds=self._rng.randrange(80_000_000_000))).isoformat()

    def _address(self) -> str:
        number = self._rng.randrange(100_000)
        street = self._text(2).title()
        return f'{{"street": "{street} {number % 300}", "city": "{self._text(1).title()}", "zip": "{number:05d}", "floor": {number % 9}}}'

    def tenant(self) -> Iterator[str]:
        for number in range(1, TENANTS + 1):
            yield f"{number}\ttenant-{number}\t{self._text(2).title()}\t{EPOCH.isoformat()}\n"

    def customer(self) -> Iterator[str]:
        chance = self._rng.random
        for number, tenant in enumerate(self.customer_tenant):
            first, last = self._text(1), self._text(1)
            vip, phone = "ft"[chance() < 0.05], f"+55 {chance() * 1e9:.0f}"
            note = self._text(12) if chance() < 0.4 else "\\N"
            yield (
                f"{number}\t{tenant}\t{first}.{last}.{number}@example.org\t{first.title()} {last.title()}\t{phone}\t"
                f"{self._address()}\t{vip}\t{self._time()}\t{note}\n"
            )

    def product(self) -> Iterator[str]:
        for number, tenant in enumerate(self.product_tenant):
            price = self._rng.random() * 900
            yield (
                f"{number}\t{tenant}\tSKU-{tenant}-{number:07d}\t{self._text(4).capitalize()}\t{self._text(70)}\t{price:.2f}\t"
                f'{{"colour": "{self._text(1)}", "weight": {price:.0f}, "tags": ["{self._text(1)}", "{self._text(1)}"]}}\t{number % 400}\n'
            )

    def orders_(self) -> Iterator[str]:
        chance = self._rng.random
        for number, customer in enumerate(self.order_customer):
            remark = self._text(8) if chance() < 0.5 else "\\N"
            yield (
                f"{number}\t{self.customer_tenant[customer]}\t{customer}\t{STATES[int(chance() * 7)]}\t{self._time()}\t"
                f"{chance() * 2000:.2f}\t{self._address()}\t{remark}\n"
            )

    def order_item(self) -> Iterator[str]:
        chance, per_tenant = self._rng.random, self.products // TENANTS
        for number in range(self.items):
            order = int(chance() * self.orders)
            tenant = self.customer_tenant[self.order_customer[order]]
            product = int(chance() * per_tenant) * TENANTS + tenant - 1
            comment = self._text(24) if chance() < 0.7 else "\\N"
            yield f"{number}\t{order}\t{product}\t{int(chance() * 9) + 1}\t{chance() * 900:.2f}\t{comment}\n"

    def message(self) -> Iterator[str]:
        for _ in range(self.messages):
            bits, customer = self._rng.getrandbits(128), int(self._rng.random() * self.customers)
            yield (
                f"{bits:032x}\t{self.customer_tenant[customer]}\t{customer}\t{self._time()}\t"
                f"{self._text(6).capitalize()}\t{self._text(130 + bits % 40)}\n"
            )


def _fill(dsn: str, orders: int, tables: tuple[str, ...]) -> tuple[int, int]:
    """Load tables in a process of its own; returns rows and bytes."""
    maker = _Maker(orders)
    rows = size = 0
    with psycopg.connect(dsn) as connection:
        for table in tables:
            make: Callable[[], Iterator[str]] = getattr(maker, "orders_" if table == "orders" else table)
            with connection.cursor().copy(f"COPY {table} FROM STDIN".encode()) as copy:
                for lines in _batches(make()):
                    data = "".join(lines).encode()
                    rows, size = rows + len(lines), size + len(data)
                    copy.write(data)
    return rows, size


def _batches(lines: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for line in lines:
        batch.append(line)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
