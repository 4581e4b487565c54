"""Waking workers through Redis, where there is one: a list of tokens, one for each thing that was queued.

The tokens carry nothing and decide nothing. An operation waits in the catalogue, so that a Redis which is lost, emptied or
lying costs a few seconds and no operation; and workers of many machines ask the catalogue only when there is something.
"""

import logging
from typing import Any

from django.conf import settings

from operations.uptime import uptime

log = logging.getLogger(__name__)

KEY = "lastro:waiting"
TOKENS_MAX = 1_000
"""More tokens than this wake nobody who is not awake already."""
PATIENCE_SECONDS = 5
"""Between two looks at the catalogue without a token: one may have been lost."""
TIMEOUT_SECONDS = 1.0
RETRY_SECONDS = 10.0
"""After a failure Redis is left alone for so long."""

_away_until = 0.0


def wake() -> None:
    """Leave a token for a resting worker. Never raises: whoever queued something must not fail by this."""
    global _away_until
    if not settings.LASTRO_REDIS_URL or uptime() < _away_until:
        return
    try:
        client = _client()
        with client.pipeline(transaction=False) as pipe:
            pipe.lpush(KEY, "1")
            pipe.ltrim(KEY, 0, TOKENS_MAX - 1)
            pipe.execute()
        client.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the operation is queued
        _away_until = uptime() + RETRY_SECONDS
        log.warning(
            "Redis could not be told that something waits (%s); workers look for themselves", type(error).__name__
        )


class Waker:
    """A worker's side: rests until a token comes."""

    def __init__(self) -> None:
        self._client: Any = None
        self._away_until = 0.0

    def wait(self) -> bool:
        """Rest until something may wait in the catalogue; False, at once, when Redis cannot tell."""
        if not settings.LASTRO_REDIS_URL or uptime() < self._away_until:
            return False
        try:
            if self._client is None:
                self._client = _client(timeout=PATIENCE_SECONDS + TIMEOUT_SECONDS)
            self._client.brpop([KEY], timeout=PATIENCE_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is, the catalogue can be asked
            self._client = None
            self._away_until = uptime() + RETRY_SECONDS
            log.warning("Redis is away (%s); this worker looks for work by itself", type(error).__name__)
            return False
        return True


def _client(*, timeout: float = TIMEOUT_SECONDS) -> Any:
    import redis

    return redis.Redis.from_url(
        settings.LASTRO_REDIS_URL, socket_connect_timeout=TIMEOUT_SECONDS, socket_timeout=timeout
    )
