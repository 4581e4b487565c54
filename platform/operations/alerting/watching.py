"""The watch: looks, tells and sends, beside the workers and not through them.

It runs in the process that stands by its workers (operations.supervision), so that it looks when every worker is busy
for hours or the scheduler stands still. Of several such processes one looks at a time; all send. Probes, which ask the
network, run in a thread of their own: a store that hangs delays no message. What an outside observer asks about is
`watch_silence`.
"""

import datetime
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils.module_loading import autodiscover_modules

from core import clock
from core.models import Fact
from core.outgoing import OutgoingError, Reach, http_call
from engine.errors import LastroError, UsageError
from operations.alerting.channel_settings import channels_inherit
from operations.alerting.delivering import Delivered, deliveries_send
from operations.alerting.evaluating import Looked, alerts_look
from operations.alerting.notices import report_due
from operations.alerting.telling import alerts_tell

log = logging.getLogger(__name__)

LOOK_EVERY = datetime.timedelta(seconds=60)
BEAT_SECONDS = 5.0
PING_SECONDS = 10
SILENCE_MAX = datetime.timedelta(minutes=5)
"""A watch that has not ended a look for longer than this is taken for dead."""
LOOK_BEGUN, LOOK_ENDED = "alerts_look_begun", "alerts_look_ended"


@dataclass(frozen=True)
class Watched:
    """What one round did; `looked` is None when another process was at it, or it was too early."""

    looked: Looked | None
    messages: int
    sent: Delivered


@dataclass(frozen=True)
class _Probe:
    name: str
    every: datetime.timedelta
    look: Callable[[], None]


_probes: dict[str, _Probe] = {}


def probe_register(name: str, *, minutes: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Have the decorated function called every so many minutes by one process, to write down what a network says."""

    def decorate(look: Callable[[], None]) -> Callable[[], None]:
        _probes[name] = _Probe(name, datetime.timedelta(minutes=minutes), look)
        return look

    return decorate


def watch_round(*, now_or_never: bool = False) -> Watched:
    """Look when it is time (with `now_or_never` always), make the messages that are due, send them."""
    looked, messages = None, 0
    if now_or_never or _turn_taken(LOOK_BEGUN, LOOK_EVERY):
        looked = _look()
        messages = alerts_tell()
    return Watched(looked, messages, deliveries_send())


def _look() -> Looked:
    try:
        channels_inherit()
    except UsageError as error:
        log.error("no channel could be made of the environment: %s", error)
    looked = alerts_look()
    try:
        report_due()
    except LastroError as error:
        log.error("the weekly report was not made: %s", error)
    Fact.objects.update_or_create(pk=LOOK_ENDED, defaults={"value": clock.now().isoformat()})
    if not looked.broken:
        ping()
    return looked


def ping() -> bool:
    """Tell the dead man's switch that a look ended well; whether it answered so."""
    if not settings.LASTRO_PING_URL:
        return True
    try:
        answer = http_call(settings.LASTRO_PING_URL, method="GET", reach=Reach.HOUSE, seconds=PING_SECONDS)
    except (OutgoingError, UsageError) as error:
        log.warning("LASTRO_PING_URL: %s", error.message)
        return False
    if not answer.is_success:
        log.warning("LASTRO_PING_URL answered %d", answer.status)
    return answer.is_success


def probes_run(*, now_or_never: bool = False) -> list[str]:
    """Run the probes whose time has come; their names. One that fails is logged, and the others go on."""
    autodiscover_modules("alert_rules")
    ran = []
    for probe in list(_probes.values()):
        if not now_or_never and not _turn_taken(f"probe_{probe.name}"[:60], probe.every):
            continue
        ran.append(probe.name)
        try:
            probe.look()
        except (LastroError, OSError, DatabaseError):
            log.exception("probe %s", probe.name)
    return ran


def _turn_taken(name: str, every: datetime.timedelta) -> bool:
    """Whether it is time and nobody else was faster; a clock that was set back does not silence the watch."""
    now = clock.now()
    fact, is_first = Fact.objects.get_or_create(pk=name, defaults={"value": now.isoformat()})
    if is_first:
        return True
    last = _moment(fact.value)
    if last is not None and datetime.timedelta(0) <= now - last < every:
        return False
    return bool(Fact.objects.filter(pk=name, value=fact.value).update(value=now.isoformat()))


def _moment(text: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def watch_last() -> datetime.datetime | None:
    """When a look last ended; None when none ever did."""
    value = Fact.objects.filter(pk=LOOK_ENDED).values_list("value", flat=True).first()
    return _moment(value) if value else None


def watch_silence(*, now: datetime.datetime) -> datetime.timedelta | None:
    """How long nobody has looked; None when nobody ever has."""
    last = watch_last()
    return None if last is None else max(datetime.timedelta(0), now - last)


_BEATS: tuple[tuple[str, Callable[[], object], float], ...] = (
    ("alerts", watch_round, BEAT_SECONDS),
    ("probes", probes_run, BEAT_SECONDS * 6),
)


class Watch:
    """The threads of the watch, for a process that stands by."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat, args=(work, seconds), name=f"watch-{name}", daemon=True)
            for name, work, seconds in _BEATS
        ]

    def start(self) -> None:
        """Begin to look."""
        for thread in self._threads:
            thread.start()

    def stop(self, *, seconds: float = 5.0) -> None:
        """Begin nothing further, and wait a moment for what is under way; a delivery that is cut off is sent again."""
        self._stop.set()
        until = time.monotonic() + seconds
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def _beat(self, work: Callable[[], object], seconds: float) -> None:
        while not self._stop.is_set():
            try:
                work()
            except Exception:
                log.exception("the watch stumbled")
            with suppress(DatabaseError):
                connection.close()
            self._stop.wait(seconds)
