"""Sending what is queued: every channel by itself, so that one that hangs holds up no other; at least once.

A delivery is claimed (compare-and-swap) until a time by which its try is surely over. A sender that dies in between
leaves it to the next, which sends it again under the same id: receivers can tell. The network is used in threads, the
catalogue in the caller's thread alone.
"""

import datetime
import logging
import random
import socket
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.db.models import F, Min, Q

from core import clock
from core.errors import InternalError, StateConflict
from core.logs import redact
from engine.errors import LastroError
from engine.faults import kill_point
from operations.alerting.channel_settings import channel_config
from operations.alerting.channels import SEND_SECONDS, ChannelError, Sent, Stamp, channel_kind
from operations.alerting.evaluating import one_line
from operations.alerting.transitions import delivery_to
from operations.alerting.wording import words_of
from operations.models import AlertDelivery, Channel, DeliveryState, MessageKind

log = logging.getLogger(__name__)

THREADS = 8
TURN_SECONDS = 60.0
"""After this no further delivery is begun; those under way end within SEND_SECONDS."""
CLAIM = datetime.timedelta(seconds=SEND_SECONDS * 2 + 30)
ATTEMPTS_MAX = 12
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 30.0, 3_600.0
LOG_MAX = ATTEMPTS_MAX
RATE_WINDOW = datetime.timedelta(minutes=1)


@dataclass
class Delivered:
    """What one turn did."""

    delivered: int = 0
    retried: int = 0
    failed: int = 0


@dataclass(frozen=True)
class _Try:
    delivery: AlertDelivery
    began: float


def deliveries_send(*, only: str = "", seconds: float = TURN_SECONDS) -> Delivered:
    """Send what is due, at most one delivery of a channel at a time; `only` is the id of a delivery.

    Safe to call by several processes at once.
    """
    done, until = Delivered(), time.monotonic() + seconds
    under_way: dict[Future[Sent], _Try] = {}
    resting: set[str] = set()
    pool = ThreadPoolExecutor(THREADS, "channel")
    try:
        while True:
            if time.monotonic() < until:
                _begin(pool, under_way, resting, done, only)
            if not under_way:
                return done
            ended, _ = wait(under_way, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in ended:
                _end(under_way.pop(future), future, done)
    finally:
        pool.shutdown(wait=False)


def _begin(
    pool: ThreadPoolExecutor,
    under_way: dict[Future[Sent], _Try],
    resting: set[str],
    done: Delivered,
    only: str,
) -> None:
    now = clock.now()
    busy = {each.delivery.channel_id for each in under_way.values()} | resting
    # What lies further ahead than we ever put anything was written by a clock that has been set back since.
    free = Q(claimed_until=None) | Q(claimed_until__lte=now) | Q(claimed_until__gt=now + 2 * CLAIM)
    ready = Q(due_at__lte=now) | Q(due_at__gt=now + datetime.timedelta(seconds=2 * BACKOFF_SECONDS_MAX))
    due = AlertDelivery.objects.filter(free, ready, state=DeliveryState.QUEUED, channel__isnull=False)
    due = due.filter(pk=only) if only else due.filter(channel__enabled=True)
    first = due.exclude(channel__in=busy).values("channel").annotate(first=Min("pk")).values_list("first", flat=True)
    for pk in sorted(first)[: THREADS - len(under_way)]:
        delivery = AlertDelivery.objects.select_related("channel", "message").get(pk=pk)
        channel = delivery.channel
        if channel is None or not (only or _rate_allows(channel, now)):
            resting.add(str(delivery.channel_id))
            continue
        if not _claimed(delivery, now):
            continue
        began = time.monotonic()
        try:
            work = _prepared(delivery, channel)
        except LastroError as error:
            _failed(delivery, error, began, done)
            continue
        under_way[pool.submit(*work)] = _Try(delivery, began)


def _rate_allows(channel: Channel, now: datetime.datetime) -> bool:
    recent = AlertDelivery.objects.filter(channel=channel, tried_at__gt=now - RATE_WINDOW).count()
    return recent < channel.per_minute


def _claimed(delivery: AlertDelivery, now: datetime.datetime) -> bool:
    """Whether we are the one that sends it: nobody else changed it since it was read."""
    mine = AlertDelivery.objects.filter(
        pk=delivery.pk, state=DeliveryState.QUEUED, attempts=delivery.attempts, claimed_until=delivery.claimed_until
    ).update(claimed_until=now + CLAIM, attempts=F("attempts") + 1, tried_at=now)
    if mine:
        delivery.refresh_from_db(fields=["attempts", "claimed_until", "tried_at"])
    return bool(mine)


def _prepared(delivery: AlertDelivery, channel: Channel) -> tuple[Any, ...]:
    """What a thread has to do; everything from the catalogue is read here."""
    kind, config, words = channel_kind(channel.kind), channel_config(channel), words_of(delivery.message)
    stamp = Stamp(delivery.message_id, delivery.message.created_at, socket.gethostname()[:200])
    return _send, kind, config, words, stamp


def _send(kind: Any, config: Any, words: Any, stamp: Stamp) -> Sent:
    try:
        sent: Sent = kind.send(config, words, stamp, seconds=SEND_SECONDS)
        return sent
    except LastroError:
        raise
    except Exception as error:
        log.exception("channel of kind %s", kind.kind)
        raise ChannelError(f"{type(error).__name__}: {redact(str(error))}"[:300], retryable=True) from None


def _end(each: _Try, future: "Future[Sent]", done: Delivered) -> None:
    error = future.exception()
    kill_point("alert.sent")
    if error is None:
        _taken(each, future.result(), done)
    else:
        known = error if isinstance(error, LastroError) else InternalError(f"{type(error).__name__}: {error}")
        _failed(each.delivery, known, each.began, done)


def _taken(each: _Try, sent: Sent, done: Delivered) -> None:
    delivery = each.delivery
    with transaction.atomic():
        try:
            delivery_to(
                delivery,
                DeliveryState.DELIVERED,
                finished_at=clock.now(),
                claimed_until=None,
                log=_logged(delivery, sent.status, sent.said, each.began),
            )
        except StateConflict:
            return  # The channel was removed meanwhile.
        Channel.objects.filter(pk=delivery.channel_id).update(failing_since=None, error="")
    done.delivered += 1


def _failed(delivery: AlertDelivery, error: LastroError, began: float, done: Delivered) -> None:
    now = clock.now()
    kept = _logged(delivery, error.code, f"{error.message}{f' ({error.hint})' if error.hint else ''}", began)
    is_test = delivery.message.kind == MessageKind.TEST
    again = error.retryable and delivery.attempts < ATTEMPTS_MAX and not is_test
    with transaction.atomic():
        if again:
            wait_seconds = max(_backoff(delivery.attempts), getattr(error, "retry_after", 0.0))
            AlertDelivery.objects.filter(pk=delivery.pk, state=DeliveryState.QUEUED).update(
                due_at=now + datetime.timedelta(seconds=wait_seconds), claimed_until=None, log=kept
            )
            done.retried += 1
        else:
            try:
                delivery_to(
                    delivery, DeliveryState.FAILED, reason=error.code, finished_at=now, claimed_until=None, log=kept
                )
            except StateConflict:
                return
            done.failed += 1
        failing = Channel.objects.filter(pk=delivery.channel_id)
        failing.update(error=one_line(f"{error.message}{f' ({error.hint})' if error.hint else ''}", 500))
        failing.filter(failing_since=None).update(failing_since=now)
    log.warning("channel %s: delivery %s failed: %s", delivery.channel_name, delivery.pk, error.message)


def _backoff(attempts: int) -> float:
    """Doubling, with jitter: what failed together does not come back together."""
    most = min(BACKOFF_SECONDS * 2 ** (attempts - 1), BACKOFF_SECONDS_MAX)
    return most * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _logged(delivery: AlertDelivery, status: str, said: str, began: float) -> list[dict[str, Any]]:
    entry = {
        "at": clock.now().isoformat(timespec="seconds").replace("+00:00", "Z"),
        "status": status[:60],
        "duration_ms": round((time.monotonic() - began) * 1000),
        "said": one_line(said, 500),
    }
    return [*delivery.log, entry][-LOG_MAX:]
