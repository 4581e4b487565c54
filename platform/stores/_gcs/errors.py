"""What Google's storage answers, in the words of the error tree: what happened, what is safe, what to do next."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.errors import LastroError, ObjectLocked, StoreDenied, StoreError, StoreFull, StoreUnreachable

RIGHTS: Mapping[str, str] = {
    "put": "storage.objects.create and storage.objects.delete",
    "create": "storage.objects.create",
    "get": "storage.objects.get",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
}
"""IAM permissions by what is asked; docs/stores.md prints the roles."""
_BUSY = {"rateLimitExceeded", "userRateLimitExceeded", "backendError", "internalError", "conditionNotMet"}
_HELD = {"retentionPolicyNotMet", "objectUnderActiveHold", "objectRetentionPolicyNotMet"}
_FULL = {"quotaExceeded", "storageQuotaExceeded", "insufficientQuota"}


@contextmanager
def errors_of(place: str, doing: str) -> Iterator[None]:
    """Turn what the SDK and the connection raise into the error tree."""
    import requests
    from google.auth import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except LastroError:
        raise
    except exceptions.RefreshError as error:
        raise _no_token(place, doing, error) from error
    except exceptions.TransportError as error:
        raise StoreUnreachable(
            f"{doing} in {place}: Google's token server does not answer ({error})", hint="is it reachable from here?"
        ) from error
    except exceptions.GoogleAuthError as error:
        raise StoreDenied(
            f"{doing} in {place}: {error}", hint="--set key=@FILE with a service account's key"
        ) from error
    except requests.exceptions.SSLError as error:
        raise StoreUnreachable(
            f"{doing} in {place}: {error}", hint="is the endpoint's certificate valid for its name and known here?"
        ) from error
    except (requests.RequestException, HTTPError, OSError, ValueError) as error:
        raise StoreUnreachable(
            f"{doing} in {place}: {error}", hint="is the endpoint right and reachable from here? nothing was lost"
        ) from error


def was_closed(error: OSError) -> bool:
    """Whether the connection ended before an answer began, as one does that the server closed while nobody asked."""
    import requests
    from urllib3.exceptions import ProtocolError

    return isinstance(error, requests.ConnectionError) and bool(error.args) and isinstance(error.args[0], ProtocolError)


def _no_token(place: str, doing: str, error: Exception) -> StoreError:
    said = str(error)
    if getattr(error, "retryable", False):
        return StoreUnreachable(f"{doing} in {place}: the token server failed ({said[:200]})", hint="try again later")
    if "short-lived token" in said or "reasonable timeframe" in said:
        return StoreDenied(
            f"{doing} in {place}: this machine's clock and Google's differ too much",
            hint="set the clock (chronyc tracking, timedatectl), then run it again",
        )
    return StoreDenied(
        f"{doing} in {place}: Google gives no token for this key ({said[:200]})",
        hint="was the key deleted or its account disabled? make a new one: --set key=@FILE",
    )


def mapped(answer: Any, place: str, doing: str, operation: str) -> StoreError:
    """The error of the tree for an answer that is none of the expected ones; absence is the caller's to know."""
    status, (reason, text) = answer.status_code, said(answer)
    about = f"{doing} in {place}: {text or f'status {status}'}"
    if reason in _HELD:
        return ObjectLocked(about, hint="a retention policy or a hold of the bucket keeps it; nothing was changed")
    if reason in _FULL or status == 507:
        return StoreFull(about, hint="raise the quota; nothing was lost")
    if status in (408, 429) or status >= 500 or reason in _BUSY:
        return StoreUnreachable(about, hint="the server is busy or failing; try again later")
    if status == 401:
        return StoreDenied(about, hint="the credentials are refused: --set key=@FILE with a key that is valid")
    if status == 403:
        return StoreDenied(
            f"{doing} in {place} is not allowed ({text})",
            hint=f"the credentials need {RIGHTS[operation]}: docs/stores.md has the roles; a wrong clock is refused too",
        )
    return StoreError(about, hint="store test says more")


def no_bucket(place: str, doing: str) -> StoreError:
    return StoreError(
        f"{doing}: there is no bucket like that: {place}", hint="check bucket and endpoint, as given with --set"
    )


def said(answer: Any) -> tuple[str, str]:
    """Reason and message of an error's JSON; empty and the body's beginning where there is none."""
    try:
        error = answer.json()["error"]
        reasons = [str(each.get("reason", "")) for each in error.get("errors", [])]
        return (reasons or [""])[0], str(error.get("message", ""))[:300]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", answer.text[:200].strip()
