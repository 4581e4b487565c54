"""Bodies that the SDK signs and sends as they are: in pieces that nobody joins, by a SHA-256 that is known.

Left to itself the SDK makes a file of one `bytes`, a copy of a whole pack, reads it once more for its SHA-256, and sends it in
pieces of 16 KiB. So it is given an empty file that carries our body (`Carrier`), which takes its place before the request is
made; and the request is signed by the SDK's own signature, told the digest (docs/adr/0023-fewer-larger-requests.md).
"""

import base64
import functools
import hashlib
import io
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from engine.ports import Buffer, HashedParts
from stores._body import Body

SIGNATURE = "lastro-s3v4"
"""The name under which the SDK finds our signer."""
UNASKED_BYTES_MAX = 64 << 10
"""A body that lies in the buffers of the connection when its refusal comes needs no asking first, which takes a round trip."""


class SignedBody(Body):
    """A body with the sums that stand in the headers of its request; sent again from its beginning, should it be."""

    def __init__(self, parts: Sequence[Buffer], *, pace: Callable[[int], None] | None = None) -> None:
        super().__init__(parts, pace=pace)
        self._known = parts.sha256 if isinstance(parts, HashedParts) else None

    @functools.cached_property
    def sha256(self) -> str:
        """Of the whole body, in hex."""
        if self._known is not None:
            return self._known
        digest = hashlib.sha256()
        for view in self._views:
            digest.update(view)
        return digest.hexdigest()

    @functools.cached_property
    def crc32(self) -> str:
        """As the x-amz-checksum-crc32 header wants it: big-endian, base64."""
        return base64.b64encode(functools.reduce(_crc32, self._views, 0).to_bytes(4, "big")).decode()

    def seek(self, position: int) -> None:
        """The SDK rewinds what it sends a second time (to another region); every iteration begins anew."""
        assert position == 0


class Carrier(io.BytesIO):
    """What the SDK takes for an open file until its request is made."""

    def __init__(self, body: SignedBody) -> None:
        super().__init__()
        self.body = body


def teach(client: Any) -> None:
    """Have a client of the SDK send and sign what Carriers carry."""
    from botocore.auth import AUTH_TYPE_MAPS

    AUTH_TYPE_MAPS.setdefault(SIGNATURE, _signer())
    for operation in ("PutObject", "UploadPart"):
        client.meta.events.register(f"before-call.s3.{operation}", _unpack)
        client.meta.events.register(f"choose-signer.s3.{operation}", _choose)


def _unpack(params: dict[str, Any], **rest: Any) -> None:
    """Let our body go, behind the server's consent when it is large: a refusal would be lost in a broken connection."""
    if isinstance(params["body"], Carrier):
        body = params["body"] = params["body"].body
        if body.size > UNASKED_BYTES_MAX:
            params["headers"]["Expect"] = "100-continue"


def _choose(signature_version: str, **rest: Any) -> str | None:
    """Ours for what we sign ourselves; presigned URLs and other signatures stay the SDK's."""
    return SIGNATURE if signature_version in ("v4", "s3v4") else None


@functools.cache
def _signer() -> type[Any]:
    from botocore.auth import S3SigV4Auth

    class KnownSumAuth(S3SigV4Auth):  # type: ignore[misc,unused-ignore]
        """The SDK's signature version 4, which asks the body for its digest instead of reading it."""

        def payload(self, request: Any) -> str:
            body = request.body
            return body.sha256 if isinstance(body, SignedBody) else str(super().payload(request))

    return KnownSumAuth


def _crc32(value: int, part: Buffer) -> int:
    return zlib.crc32(part, value)
