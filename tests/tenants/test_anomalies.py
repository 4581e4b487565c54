"""What is out of the ordinary: figures against those before them, and real backups that lose their rows."""

import random
import sqlite3
from typing import Any

import pytest

from core import clock
from operations.alerting.evaluating import alerts_look
from operations.alerting.rule_settings import RuleChange, levels_all, rule_set
from operations.models import Alert
from tenants.alerting.anomalies import bytes_text
from tenants.alerting.judging import backups_judge
from tenants.alerting.unusual import Tolerance, unusual
from tenants.models import Anomaly, Backup, BackupSource, Baseline, Module, Source
from tests.tenants.conftest import ACTOR, House
from tests.tenants.killing import killed

USUAL = Tolerance(deviations=8, fall_percent=30, rise_percent=200, least=100)
STEADY = [10_200, 10_180, 10_350, 10_220, 10_100, 10_210, 10_190, 10_205, 10_230, 10_215]


@pytest.mark.parametrize(
    ("value", "before", "expected"),
    [
        (312, STEADY, True),
        (0, STEADY, True),
        (10_150, STEADY, False),
        (8_000, STEADY, False),
        (31_000, STEADY, True),
        (25_000, STEADY, False),
        (312, STEADY[:6], False),  # Too little is known.
        (312, [*STEADY[:9], 300], True),  # One bad one before does not make it usual.
        (10_200, [*STEADY[:9], 300], False),  # Nor does coming back alarm.
        (2, [50] * 10, False),  # Too small to matter.
        (0, [100] * 10, True),
        (500, [500] * 10, False),
        (300, [100, 900, 200, 800, 300, 700, 400, 600], False),  # It always was so.
    ],
)
def test_what_is_unusual(value: float, before: list[float], expected: bool) -> None:
    """Goal: alarms that are right; falls, rises, noise, outliers and small numbers against those before them."""
    assert (unusual(value, before, USUAL) is not None) is expected


def test_noise_alarms_nobody(rng: random.Random) -> None:
    """Goal: no false alarm from day to day; a thousand random walks of a growing table."""
    alarms = 0
    for _ in range(1_000):
        rows, history = 10_000.0, []
        for _ in range(30):
            rows *= rng.uniform(0.99, 1.03)
            alarms += unusual(rows, history[-14:], USUAL) is not None
            history.append(rows)
    assert alarms == 0


def _history(source: Source, **figures: Any) -> None:
    """Fourteen ordinary backups, as the baseline keeps them."""
    entry = {"backup": "x", "at": clock.now().isoformat(), "size": 10**7, "rows": 0, "files": 0, "parts": {}, "together": source.name, "new": 0, "packed": 0}  # fmt: skip
    Baseline.objects.update_or_create(source=source, defaults={"window": [{**entry, **figures} for _ in range(14)]})


def _told(rule: str) -> list[Alert]:
    alerts_look()
    return list(Alert.objects.filter(rule=rule).exclude(state="resolved"))


def test_rows_that_are_gone_are_told_in_words(house: House) -> None:
    """Goal: a table that was emptied is seen the same hour; eight real backups, delete, two more, bring them back."""
    tenant = house.tenant()
    source = house.database(tenant, rows=1_000)
    path = source.config["path"]
    for number in range(8):
        with sqlite3.connect(path) as database:
            database.execute("INSERT INTO users VALUES (?, 'new')", (5_000 + number,))
        house.backup(tenant, "incremental")
        assert backups_judge(levels_all()) == 1
    assert _told("anomaly") == []
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM users WHERE id > 30")
    bad = house.backup(tenant, "incremental")
    (alert,) = _told("anomaly")
    assert alert.message == (
        "rows of users fell from about 1,004 to 31; the last 8 backups lay between 1,001 and 1,008"
    )
    assert (alert.subject, alert.occurrence, alert.tenant) == ("aurora/db", bad.pk, "aurora")
    house.backup(tenant, "incremental")
    (again,) = _told("anomaly")
    assert (again.pk, again.occurrences) == (alert.pk, 2)
    with sqlite3.connect(path) as database:
        database.executemany("INSERT INTO users VALUES (?, 'back')", [(number,) for number in range(31, 1_000)])
    house.backup(tenant, "incremental")
    assert _told("anomaly") == []


def test_content_that_stops_compressing_is_suspected(house: House, rng: random.Random) -> None:
    """Goal: data that somebody else encrypted is seen; text for days, then random bytes."""
    tenant = house.tenant()
    source = house.files(tenant)
    folder = house.folder(source)
    words = ["amount", "customer", "invoice", "paid", "open", "2026-11-22", "Lisboa"]
    for day in range(4):
        text = " ".join(rng.choice(words) + str(rng.randrange(99)) for _ in range(200_000))
        (folder / f"day{day}.txt").write_text(text)
        house.backup(tenant, "incremental")
    taken = Backup.objects.order_by("-id")[0]
    assert taken.new_bytes > 1_000_000
    assert 0 < taken.new_packed_bytes < 0.7 * taken.new_bytes
    assert _told("encrypted_by_others") == []
    for path in folder.glob("day*.txt"):
        path.write_bytes(rng.randbytes(path.stat().st_size))
    house.backup(tenant, "incremental")
    (alert,) = _told("encrypted_by_others")
    assert alert.severity == "critical"
    assert "keeps 100 % of its size" in alert.message
    assert "backup hold" in alert.hint


def test_a_size_that_changes_by_half_is_told(house: House) -> None:
    """Goal: the rule of the mean of seven days; a source whose history is ten times its size, then with a threshold of its own."""
    tenant = house.tenant()
    source = house.files(tenant)
    _history(source, size=20_000_000)
    house.backup(tenant)
    (alert,) = _told("size_changed")
    assert alert.message.startswith("the size fell from 20.0 MB on average of 7 days to 6 bytes")
    rule_set("size_changed", RuleChange(values={"least_bytes": "100000000"}), actor=ACTOR, tenant="aurora")
    house.backup(tenant)
    assert _told("size_changed") == []


def test_a_module_that_is_gone_counts_as_empty(house: House) -> None:
    """Goal: a dropped table is no blind spot; a baseline with a table that the backup has not."""
    tenant = house.tenant()
    source = house.database(tenant, rows=50)
    _history(source, parts={"users": 50, "orders": 4_000}, rows=4_050)
    house.backup(tenant)
    (alert,) = _told("anomaly")
    assert alert.message.startswith("rows of orders fell from about 4,000 to 0;")
    assert Module.objects.filter(source=source, name="users").exists()


def test_a_broken_chain_and_overlooked_changes_are_told(house: House) -> None:
    """Goal: what a backup itself found wrong is an alert of the newest one only; write it into a backup, then a good one."""
    tenant = house.tenant()
    source = house.files(tenant)
    backup = house.backup(tenant)
    said = "the event log's chain is broken: event 7 has another hash; it is kept as it is"
    Backup.objects.filter(pk=backup.pk).update(missed=3, warnings=[{"code": "eventlog.chain_broken", "message": said}])
    BackupSource.objects.filter(backup=backup).update(kind="eventlog")
    (chain,) = _told("chain_broken")
    assert "event 7" in chain.message
    (missed,) = _told("incremental_missed")
    assert "3 differences" in missed.message
    house.backup(tenant)
    assert _told("chain_broken") == []
    assert source.pk in chain.fingerprint


def test_a_judgement_that_dies_is_made_once(house: House) -> None:
    """Goal: no backup counts twice in its baseline; kill in the transaction, judge again, and twice."""
    tenant = house.tenant()
    source = house.files(tenant)
    house.backup(tenant)
    killed(lambda: backups_judge(levels_all()), label="alert.judged")
    assert not Baseline.objects.exists()
    assert backups_judge(levels_all()) == 1
    assert backups_judge(levels_all()) == 0
    assert len(Baseline.objects.get(source=source).window) == 1
    assert not Anomaly.objects.exists()


def test_sizes_are_readable() -> None:
    """Goal: figures that people take in; some of each size."""
    assert [bytes_text(each) for each in (12, 1_234, 5.6e6, 7e9, 3e12)] == [
        "12 bytes",
        "1.2 kB",
        "5.6 MB",
        "7.0 GB",
        "3.0 TB",
    ]
