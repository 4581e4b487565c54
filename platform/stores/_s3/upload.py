"""Bring an object into a bucket: in one request, or in parts side by side when it is large."""

import datetime
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from engine.ports import Buffer
from stores._s3.body import Carrier, SignedBody, teach

SINGLE_BYTES_MAX = 64 << 20
"""Up to here one request is enough: the engine's packs are smaller, and several are on their way at once."""
PART_BYTES = 16 << 20
PARTS_MAX = 10_000
PART_THREADS = 4
UPLOAD_AGE_MAX = datetime.timedelta(hours=24)


class Uploader:
    """Writes whole objects; a large one that fails leaves no parts behind that it could have removed."""

    def __init__(self, client: Any, bucket: str, kept_as: Callable[[], dict[str, Any]]) -> None:
        self._client, self._bucket, self._kept_as = client, bucket, kept_as
        teach(client)
        self.pace: Callable[[int], None] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def write(self, key: str, parts: Sequence[Buffer], condition: Mapping[str, str]) -> None:
        """Raises what the SDK raises."""
        size = sum(memoryview(part).nbytes for part in parts)
        if size > SINGLE_BYTES_MAX:
            self._write_parts(key, parts, size, condition)
            return
        body = SignedBody(parts, pace=self.pace)
        # Given, the checksum goes in a header; left to the SDK it becomes a trailer that not every server takes.
        self._client.put_object(
            Bucket=self._bucket,
            Key=key,
            Body=Carrier(body),
            ChecksumCRC32=body.crc32,
            **self._kept_as(),
            **condition,
        )

    def clear_stale(self, prefix: str, older_than: datetime.timedelta) -> int:
        """Abort unfinished uploads below the prefix that are older; how many."""
        oldest = datetime.datetime.now(datetime.UTC) - older_than
        cleared = 0
        more: dict[str, str] = {}
        while True:
            page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=prefix, **more)
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < oldest:
                    self._abort(upload["Key"], upload["UploadId"])
                    cleared += 1
            if not page.get("IsTruncated"):
                return cleared
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    # ------------------------------------------------------------ inner parts

    def _write_parts(self, key: str, parts: Sequence[Buffer], size: int, condition: Mapping[str, str]) -> None:
        place = {"Bucket": self._bucket, "Key": key}
        began = self._client.create_multipart_upload(**place, ChecksumAlgorithm="CRC32", **self._kept_as())
        place["UploadId"] = began["UploadId"]
        try:
            etags = self._send(place, _pieces(parts, max(PART_BYTES, -(-size // PARTS_MAX))))
            self._client.complete_multipart_upload(**place, MultipartUpload={"Parts": etags}, **condition)
        except BaseException:
            with suppress(Exception):  # What cannot be aborted now is cleared as stale a day later.
                self._abort(key, began["UploadId"])
            raise

    def _send(self, place: Mapping[str, str], pieces: Iterator[bytes]) -> list[dict[str, Any]]:
        """Upload the pieces, PART_THREADS at a time, no more of them in memory than are on their way."""
        room = threading.Semaphore(PART_THREADS)

        def send(number: int, piece: bytes) -> dict[str, Any]:
            try:
                body = SignedBody([piece], pace=self.pace)
                answer = self._client.upload_part(
                    **place, PartNumber=number, Body=Carrier(body), ChecksumCRC32=body.crc32
                )
                return {"PartNumber": number, "ETag": answer["ETag"], "ChecksumCRC32": body.crc32}
            finally:
                room.release()

        sent: list[Future[dict[str, Any]]] = []
        for number, piece in enumerate(pieces, start=1):
            room.acquire()
            if any(future.done() and future.exception() for future in sent):
                room.release()
                break
            sent.append(self._threads().submit(send, number, piece))
        errors = [error for future in sent if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in sent]

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(PART_THREADS, "s3-part")
            return self._pool

    def _abort(self, key: str, upload_id: str) -> None:
        self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)


def _pieces(parts: Sequence[Buffer], size: int) -> Iterator[bytes]:
    """The concatenated parts cut anew, every piece but the last of `size` bytes."""
    have = bytearray()
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            taken = view[: size - len(have)]
            have += taken
            view = view[len(taken) :]
            if len(have) == size:
                yield bytes(have)
                have = bytearray()
    if have:
        yield bytes(have)
