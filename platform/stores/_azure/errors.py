"""What Azure answers, in the words of the error tree: what happened, what is safe, what to do next."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.errors import (
    LastroError,
    ObjectExists,
    ObjectLocked,
    ObjectMissing,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnreachable,
)

RIGHTS: Mapping[str, str] = {
    "put": "write (w)", "create": "create (c) or write (w)", "get": "read (r)", "list": "list (l)", "delete": "delete (d)",
}  # fmt: skip
"""Permissions of a shared access signature by what is asked."""
_QUERY = re.compile(r"\?[^\s'\"()]*")
_ABSENT = {"BlobNotFound", "ResourceNotFound"}
_TAKEN = {"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite"}
_HELD = {"BlobImmutableDueToPolicy", "BlobImmutableDueToLegalHold"}
_BUSY = {"ServerBusy", "OperationTimedOut", "InternalError", "ContainerBeingDeleted", "BlobBeingRehydrated"}
_FULL = {"AccountQuotaExceeded", "StorageQuotaExceeded", "QuotaExceeded", "RequestBodyTooLarge", "InsufficientStorage"}
_CREDENTIALS = {"AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation"}
_CLOCK = (
    "Request date header too old",
    "is not in the valid",
    "not valid in the specified time frame",
    "Signature not valid",
)


@contextmanager
def errors_of(place: str, doing: str, operation: str, *, key: str | None = None) -> Iterator[None]:
    """Turn the SDK's errors into the error tree; with `key`, absence of the blob is ObjectMissing."""
    import requests
    from azure.core import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except LastroError:
        raise
    except exceptions.HttpResponseError as error:
        raise mapped(error, place, doing, operation, key=key) from error
    except (exceptions.AzureError, requests.RequestException, HTTPError, OSError) as error:
        raise StoreUnreachable(
            f"{doing} in {place}: {_first_line(error)}",
            hint="are account and endpoint right and reachable from here? nothing was lost",
        ) from None  # Its text has the URL with the signature in it, which a log would print along.
    except (
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:  # What the SDK makes of an answer it cannot read.
        raise StoreError(
            f"{doing}: {place} does not answer as Azure's storage does ({type(error).__name__})",
            hint="check endpoint; is a proxy or a login page in between?",
        ) from error


def mapped(error: Any, place: str, doing: str, operation: str, *, key: str | None = None) -> StoreError:
    """The error of the tree for what the server answered."""
    status, code, text = int(error.status_code or 0), code_of(error), _first_line(error)
    about = f"{doing} in {place}: {code or status}: {text}"
    if code == "ContainerNotFound" or (code == "ResourceNotFound" and key is None):
        return StoreError(
            f"{doing}: there is no container like that: {place}",
            hint="check container and account, as given with --set",
        )
    if (code in _ABSENT or (status == 404 and not code)) and key is not None:
        return ObjectMissing(f"there is no object {key}")
    if code in _TAKEN:
        return ObjectExists(f"{key} exists already")
    if code in _HELD:
        return ObjectLocked(
            about, hint="an immutability policy or a legal hold of the container keeps it; nothing was changed"
        )
    if code in _FULL or status == 507:
        return StoreFull(about, hint="raise the account's limit; nothing was lost")
    if code == "BlobArchived":
        return StoreError(
            about, hint="it lies in the archive tier: rehydrate it with Azure's tools, or read another copy"
        )
    if status in (408, 429) or status >= 500 or code in _BUSY or status < 300:  # An answer that broke off is below.
        return StoreUnreachable(about, hint="the server is busy or failing; try again later")
    if status in (401, 403) or code in _CREDENTIALS:
        return _denied(place, doing, operation, code, text, str(error))
    return StoreError(about, hint="store test says more")


def _denied(place: str, doing: str, operation: str, code: str, text: str, whole: str) -> StoreDenied:
    if any(words in whole for words in _CLOCK):
        return StoreDenied(
            f"{doing} in {place}: the signature is not valid at this time",
            hint="set this machine's clock (chronyc tracking, timedatectl); has the shared access signature run out?",
        )
    if code in _CREDENTIALS:
        return StoreDenied(
            f"{doing} in {place}: the server does not accept the credentials ({code})",
            hint="--set account_key=@FILE, sas=@FILE or connection_string=@FILE (of a store that is there: store set NAME); is the clock right?",
        )
    return StoreDenied(
        f"{doing} in {place} is not allowed ({code or text})",
        hint=f"the credentials need {RIGHTS[operation]} and must be valid now: docs/stores.md; is this address let through?",
    )


def code_of(error: Any) -> str:
    """Azure's own code; empty where it sent none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _first_line(error: Exception) -> str:
    """The first line, without what stands behind the path of a URL: that is where a shared access signature is."""
    return _QUERY.sub("?…", str(error).splitlines()[0])[:200] if str(error) else type(error).__name__
