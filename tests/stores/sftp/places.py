"""What tests of the sftp store share: stores of every sort on a place, and an ear on the wire."""

import time
from collections.abc import Callable, Mapping

import pytest

from engine.adapters import parse_config
from engine.ports import Store
from stores._retry import RetryStore
from stores._sftp import wire as sftp
from stores._sftp.config import SftpConfig
from stores._sftp.wire import Wire
from stores.sftp import SftpStore

WRITERS = ("put", "create")
NEW = b"new" * 14_000  # two blocks of the wire


def config(values: Mapping[str, str]) -> SftpConfig:
    parsed: SftpConfig = parse_config(SftpConfig, values)
    return parsed


def made(values: Mapping[str, str]) -> SftpStore:
    return SftpStore.make(config(values))


def opened(values: Mapping[str, str]) -> SftpStore:
    return SftpStore(config(values))


def retried(store: Store) -> RetryStore:
    return RetryStore(store, sleep=lambda seconds: time.sleep(min(seconds, 0.05)))


class Asked:
    """What went over the wire: kinds of requests, and how often an answer was waited for with nothing more to send."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: list[str] = []
        self.round_trips = 0
        self.before: Callable[[Wire, int], None] = lambda wire, number: None
        self._sent = False
        send, packet = Wire.send, Wire._packet
        names = {sftp.WRITE: "write", sftp.MKDIR: "mkdir", sftp.OPEN: "open"}

        def send_watched(wire: Wire, body: bytes) -> int:
            self._sent = True
            kind = names.get(body[0], str(body[0]))
            if body[0] == sftp.EXTENDED:
                kind = body[5 : 5 + body[4]].decode()
            self.kinds.append("fsync" if kind == "fsync@openssh.com" else kind)
            self.before(wire, len(self.kinds))
            return send(wire, body)

        def packet_watched(wire: Wire) -> tuple[int, bytes]:
            self.round_trips += self._sent
            self._sent = False
            return packet(wire)

        monkeypatch.setattr(Wire, "send", send_watched)
        monkeypatch.setattr(Wire, "_packet", packet_watched)
