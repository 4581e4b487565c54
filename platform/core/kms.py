"""AWS KMS as the keeper of the root key: it wraps the key's 32 bytes, and unwraps them once per process.

Needs the rights kms:Encrypt and kms:Decrypt on one symmetric key. Credentials are found as every AWS client finds them
(environment, profile, the machine's role); nothing of them is kept by Lastro.
"""

import functools
from typing import Any

from django.conf import settings

from core.errors import CatalogueError, NotAllowed

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS_MAX = 5, 10, 3
PURPOSE = "lastro-root-key"


class KmsUnreachable(CatalogueError):
    code = "keys.kms_unreachable"
    retryable = True


class KmsDenied(NotAllowed):
    code = "keys.kms_denied"


class KmsKeyDisabled(CatalogueError):
    code = "keys.kms_key_disabled"


class KmsKeyMissing(CatalogueError):
    code = "keys.kms_key_missing"


class KmsRefused(CatalogueError):
    """Anything else that KMS says no to: what it was given was wrapped elsewhere, a wrong kind of key …"""

    code = "keys.kms_refused"


_DENIED = {
    "AccessDeniedException", "AccessDenied", "UnrecognizedClientException", "InvalidSignatureException",
    "InvalidClientTokenId", "MissingAuthenticationTokenException", "ExpiredTokenException", "ExpiredToken",
    "SignatureDoesNotMatch", "KMSAccessDeniedException",
}  # fmt: skip
_DISABLED = {"DisabledException", "KMSInvalidStateException", "KeyUnavailableException"}


def kms_wrap(secret: bytes, *, root_key_id: str) -> bytes:
    """Have the configured KMS key wrap a root key. Raises KmsUnreachable and its like."""
    asked = {"KeyId": settings.LASTRO_KMS_KEY_ID, "Plaintext": secret, "EncryptionContext": _context(root_key_id)}
    return bytes(_ask("encrypt", "Encrypt", asked)["CiphertextBlob"])


def kms_unwrap(blob: bytes, *, root_key_id: str) -> bytes:
    """Have KMS unwrap what it wrapped for this root key; the blob itself names the KMS key."""
    asked = {"CiphertextBlob": blob, "EncryptionContext": _context(root_key_id)}
    return bytes(_ask("decrypt", "Decrypt", asked)["Plaintext"])


def _context(root_key_id: str) -> dict[str, str]:
    """Bound to the wrapped key by KMS, and what its audit trail shows."""
    return {"purpose": PURPOSE, "root_key": root_key_id}


@functools.cache
def _client(region: str, endpoint: str) -> Any:
    # Here, so that nothing but a look at the root key pays for the SDK.
    from boto3.session import Session
    from botocore.config import Config

    return Session().client(
        "kms",
        region_name=region or None,
        endpoint_url=endpoint or None,
        config=Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"total_max_attempts": ATTEMPTS_MAX, "mode": "standard"},
        ),
    )


def _ask(call: str, right: str, asked: dict[str, Any]) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

    try:
        return getattr(_client(settings.LASTRO_KMS_REGION, settings.LASTRO_KMS_ENDPOINT), call)(**asked)
    except ClientError as error:
        raise _meant(error.response.get("Error", {}), error.response, right) from error
    except NoCredentialsError as error:
        raise KmsDenied(
            "no AWS credentials were found to ask KMS with",
            hint="give the machine a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ) from error
    except NoRegionError as error:
        raise KmsRefused("KMS needs a region", hint="set LASTRO_KMS_REGION") from error
    except (BotoCoreError, ValueError) as error:
        where = settings.LASTRO_KMS_ENDPOINT or f"KMS in {settings.LASTRO_KMS_REGION or 'the default region'}"
        raise KmsUnreachable(
            f"KMS, which holds the root key, does not answer: {where} ({type(error).__name__})",
            hint="nothing was changed; what needs no key goes on working. Look at the network, or LASTRO_KMS_ENDPOINT",
        ) from error


def _meant(said: dict[str, str], response: Any, right: str) -> CatalogueError:
    """What KMS's answer means to an operator."""
    code, message = said.get("Code", ""), said.get("Message", "")[:300]
    key = settings.LASTRO_KMS_KEY_ID or "the KMS key"
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _DENIED:
        hint = f"the role or user needs kms:{right} on that key; is the clock of this host right?"
        return KmsDenied(f"KMS refuses these credentials for {key}: {message or code}", hint=hint)
    if code in _DISABLED:
        hint = "enable it again in KMS, or cancel its deletion; until then nothing that is sealed can be opened"
        return KmsKeyDisabled(f"the KMS key {key} is disabled: {message or code}", hint=hint)
    if code == "NotFoundException":
        hint = "is LASTRO_KMS_KEY_ID right, and the region? When the key is gone: kit import"
        return KmsKeyMissing(f"KMS knows no key {key}: {message or code}", hint=hint)
    if status >= 500 or code in ("ThrottlingException", "LimitExceededException"):
        return KmsUnreachable(f"KMS cannot answer now: {message or code}", hint="nothing was changed; try again")
    hint = "was the wrapped key altered, or is this another account? The recovery kit holds the key, too (kit import)"
    return KmsRefused(f"KMS does not unwrap the root key: {message or code}", hint=hint)
