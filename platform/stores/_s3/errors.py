"""What an S3 server answers, in the words of the error tree: what happened, what is safe, what to do next."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.errors import LastroError, ObjectMissing, StoreDenied, StoreError, StoreFull, StoreUnreachable
from stores._s3.rights import rights_for

_MISSING = {"NoSuchKey", "NoSuchVersion"}
_BUSY = {
    "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "Throttling", "ThrottlingException",
    "RequestLimitExceeded", "TooManyRequests", "Busy", "BandwidthLimitExceeded",
}  # fmt: skip
_PASSING = {
    "InternalError", "InternalFailure", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "BadDigest",
    "XAmzContentSHA256Mismatch", "InvalidDigest", "IncompleteBody", "NoSuchUpload", "ExpiredToken",
}  # fmt: skip
_FULL = {
    "QuotaExceeded", "StorageFull", "XMinioStorageFull", "InsufficientStorage", "EntityTooLarge", "TotalBucketsExceeded",
}  # fmt: skip
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "Redirect"}
_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}
_CREDENTIALS = {
    "InvalidAccessKeyId": "the server does not know the access key",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "InvalidToken": "the session token is not valid",
    "TokenRefreshRequired": "the session token has run out",
    "AccountProblem": "the account is not in order",
    "NotSignedUp": "the account has not signed up for this service",
    "InvalidSecurity": "the credentials are not valid",
}
_UNSUPPORTED = {"NotImplemented", "MethodNotAllowed", "UnsupportedArgument", "InvalidArgument", "InvalidRequest"}


def code_of(error: Any) -> str:
    """The server's own code, or the status where it sends none (answers to HEAD have no body)."""
    return str(error.response.get("Error", {}).get("Code") or status_of(error))


def status_of(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)


@contextmanager
def errors_of(place: str, doing: str, operation: str, *, key: str | None = None) -> Iterator[None]:
    """Turn the SDK's errors into the error tree; `place` names bucket and endpoint, `operation` the call.

    With `key`, absence of the object is ObjectMissing.
    """
    from botocore import exceptions
    from urllib3.exceptions import HTTPError

    try:
        yield
    except LastroError:
        raise
    except exceptions.ClientError as error:
        raise mapped(error, place, doing, operation, key=key) from error
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
    ) as error:
        raise StoreDenied(
            f"{doing} in {place}: no credentials found ({error})",
            hint="set access_key and secret_key, or give the SDK's own (AWS_ACCESS_KEY_ID, a profile, a role)",
        ) from error
    except exceptions.SSLError as error:
        raise StoreUnreachable(
            f"{doing} in {place}: {error}", hint="is the endpoint's certificate valid for its name and known here?"
        ) from error
    except (exceptions.BotoCoreError, HTTPError, OSError) as error:
        raise StoreUnreachable(
            f"{doing} in {place}: {error}", hint="is the endpoint right and reachable from here? nothing was lost"
        ) from error


def mapped_answer(answer: Mapping[str, Any], place: str, doing: str, operation: str) -> StoreError:
    """The error of the tree for one item of an answer that is none as a whole."""
    from botocore.exceptions import ClientError

    return mapped(ClientError(answer, operation), place, doing, operation)  # type: ignore[arg-type,unused-ignore]


def mapped(error: Any, place: str, doing: str, operation: str, *, key: str | None = None) -> StoreError:
    """The error of the tree for what the server answered."""
    code, status = code_of(error), status_of(error)
    said = _said(error)
    if code in _MISSING or (status == 404 and code == "404" and key is not None):
        return ObjectMissing(f"there is no object {key}")
    if code == "NoSuchBucket" or (status == 404 and code == "404"):
        return StoreError(
            f"{doing}: there is no bucket like that: {place}",
            hint="check bucket, endpoint and region, as given with --set",
        )
    if code in _CREDENTIALS:
        return StoreDenied(
            f"{doing} in {place}: {_CREDENTIALS[code]}",
            hint="--set access_key=… --set secret_key=@FILE (of a store that is there: store set NAME)",
        )
    if code in _CLOCK:
        return StoreDenied(
            f"{doing} in {place}: this machine's clock and the server's differ too much{_times(error)}",
            hint="set the clock (chronyc tracking, timedatectl), then run it again",
        )
    if code in _REGION or status in (301, 307):
        return StoreError(
            f"{doing} in {place}: the bucket is in another region{_region(error)}", hint="set that region"
        )
    if code in _FULL or status == 507:
        return StoreFull(f"{doing} in {place}: {said}", hint="raise the quota or free space; nothing was lost")
    if code == "InvalidObjectState":
        return StoreError(
            f"{doing} in {place}: the object lies in an archive class and must be brought back first",
            hint="restore it with the provider's tools, or read from another copy",
        )
    if code in _BUSY or code in _PASSING or status == 429 or status >= 500:
        return StoreUnreachable(f"{doing} in {place}: {said}", hint="the server is busy or failing; try again later")
    if status == 403 or code in ("AccessDenied", "AllAccessDisabled", "403", "KMS.AccessDeniedException"):
        return _denied(place, doing, operation, said)
    if code.startswith("KMS."):
        return StoreDenied(f"{doing} in {place}: the key service refused: {said}", hint="check sse_key and its policy")
    if code in _UNSUPPORTED or status == 501:
        return StoreError(
            f"{doing} in {place}: the server does not take this request: {said}", hint="store test says more"
        )
    return StoreError(f"{doing} in {place}: {said}")


def _denied(place: str, doing: str, operation: str, said: str) -> StoreDenied:
    rights = rights_for(operation)
    return StoreDenied(
        f"{doing} in {place} is not allowed ({said})",
        hint=f"the credentials need {' and '.join(rights)}: docs/stores.md has the whole policy" if rights else "",
    )


def _said(error: Any) -> str:
    about: Mapping[str, Any] = error.response.get("Error", {})
    code, text = code_of(error), str(about.get("Message") or "").rstrip(".")
    return f"{code}: {text[:200]}" if text and text != code else code


def _region(error: Any) -> str:
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    found = error.response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    return f": {found}" if found else ""


def _times(error: Any) -> str:
    about = error.response.get("Error", {})
    there, here = about.get("ServerTime"), about.get("RequestTime")
    return f" (here {here}, there {there})" if there and here else ""
