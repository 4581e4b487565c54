"""The same thing asked several times at the same moment."""

import hashlib
import threading
from collections import Counter
from typing import Any

from django.db import connection

from api.models import Repeat
from operations.models import Operation
from tests.api.conftest import Asker, Desk

THREADS = 6


def at_once(asker: Asker, method: str, address: str, body: Any = None, **headers: str) -> list[Any]:
    """The answers, read whole."""
    barrier, answers = threading.Barrier(THREADS), []

    def ask(number: int) -> None:
        mine = Asker()
        mine.headers = asker.headers
        barrier.wait()
        try:
            answer = mine(method, address, body, **{name: text.format(number) for name, text in headers.items()})
            answer.whole = answer.getvalue()
            answers.append(answer)
        finally:
            connection.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(answers) == THREADS
    return answers


def test_one_key_at_once_does_one_thing(desk: Desk) -> None:
    """Goal: whoever comes second is told so or waits, and never begins anything; one key from many threads."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    answers = at_once(desk.asker("admin"), "POST", "/api/v1/backups", {"tenant": "aurora"}, Idempotency_Key="one")
    assert Operation.objects.count() == Repeat.objects.count() == 1
    codes = Counter(each.status_code for each in answers)
    assert codes[202] >= 1
    assert set(codes) <= {202, 409}, codes
    assert {each.json()["id"] for each in answers if each.status_code == 202} == {Operation.objects.get().pk}
    assert {each.json()["code"] for each in answers if each.status_code == 409} <= {"request.still_running"}


def test_restores_at_once_are_one_restore(desk: Desk) -> None:
    """Goal: keys of their own do not let two restores in; as many keys as threads."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    body = {"backup": desk.house.backup(tenant).pk}
    answers = at_once(desk.asker("admin"), "POST", "/api/v1/restores", body, Idempotency_Key="key-{}")
    assert Counter(each.status_code for each in answers) == {202: 1, 409: THREADS - 1}
    assert Operation.objects.filter(kind="restore").count() == 1


def test_downloads_at_once_give_one_archive(desk: Desk) -> None:
    """Goal: nobody gets half an archive or a broken one; the first download of a backup from many threads."""
    tenant = desk.house.tenant()
    desk.house.files(tenant)
    backup = desk.house.backup(tenant)
    ask, address = desk.asker("restore:write"), f"/api/v1/backups/{backup.pk}/download"
    answers = at_once(ask, "GET", address)
    codes = Counter(each.status_code for each in answers)
    assert codes[200] >= 1
    assert set(codes) <= {200, 202, 409}, [each.whole[:300] for each in answers]
    whole = ask.get(address)
    assert whole.headers["ETag"] == f'"{hashlib.sha256(whole.getvalue()).hexdigest()}"'
    for each in answers:
        if each.status_code == 200:
            assert f'"{hashlib.sha256(each.whole).hexdigest()}"' == each.headers["ETag"] == whole.headers["ETag"]
