"""What channels that call an address share: the call, and what its answer means."""

from collections.abc import Mapping

from core.outgoing import HttpAnswer, Reach, http_call, url_checked
from engine.errors import UsageError
from operations.alerting.channels import ChannelError

RETRY_AFTER_SECONDS_MAX = 3_600
_LATER = (408, 425, 429)


def address_checked(url: str, *, plain_http: bool) -> None:
    """Raise UsageError for what is no address that a channel may call."""
    parts = url_checked(url, reach=Reach.INTERNET)
    if parts.scheme == "http" and not plain_http:
        raise UsageError(
            "http:// sends alerts in clear", hint="give the https:// address, or --set plain_http=yes if it is meant"
        )


def posted(url: str, body: bytes, headers: Mapping[str, str], *, seconds: float) -> HttpAnswer:
    """POST JSON; an answer from 200 to 299 is a success. Raises ChannelError for every other, OutgoingError."""
    answer = http_call(
        url,
        method="POST",
        body=body,
        headers={"Content-Type": "application/json", **headers},
        reach=Reach.INTERNET,
        seconds=seconds,
    )
    if answer.is_success:
        return answer
    said = " ".join(answer.text.split())[:200]
    if 300 <= answer.status < 400:
        raise ChannelError(
            f"it answered {answer.status}: a redirect, which is not followed",
            hint="give the address that it leads to: channel set NAME --set url=@FILE",
            retryable=False,
        )
    later = answer.status in _LATER or answer.status >= 500
    hint = "is the address still right?" if not later else ""
    raise ChannelError(
        f"it answered {answer.status}{f': {said}' if said else ''}",
        hint=hint,
        retryable=later,
        retry_after=_after(answer),
    )


def _after(answer: HttpAnswer) -> float:
    text = answer.headers.get("retry-after", "").strip()
    return min(float(text), RETRY_AFTER_SECONDS_MAX) if text.isascii() and text.isdigit() else 0.0
