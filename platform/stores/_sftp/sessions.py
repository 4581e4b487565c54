"""SFTP sessions over one connection: one for each thread that needs one now, opened again when the connection is lost."""

import logging
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from engine.errors import LastroError, StoreDenied, StoreError, StoreUnreachable, UsageError
from stores._sftp.config import SftpConfig, fingerprint, private_key
from stores._sftp.wire import FSYNC, HARDLINK, POSIX_RENAME, STATVFS, ProtocolError, Status, Wire

SESSIONS_MAX = 8  # sshd's MaxSessions is 10 unless changed
WINDOW_BYTES = 4 << 20
"""What the server may send before it must wait: 200 MB/s at a round trip of 20 ms, in memory at the most once a session."""
KEEPALIVE_SECONDS = 30
CIPHERS = ("aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "aes256-ctr", "aes192-ctr", "aes128-ctr")
"""Fastest first: authenticated ciphers pass twice as many bytes here as AES-CTR with HMAC."""
NEEDED = (HARDLINK, POSIX_RENAME, FSYNC, STATVFS)


class Sessions:
    """A pool of sessions; thread-safe. Nothing is connected before the first is asked for."""

    def __init__(self, config: SftpConfig) -> None:
        """Raises UsageError for a private key that cannot be read, StoreError without the SDK or a host key."""
        self._config = config
        self._key = private_key(config.key, config.key_passphrase) if config.key else None
        self._transport: Any = None
        self._connecting = threading.Lock()
        self._changed = threading.Condition()
        self._idle: list[Wire] = []
        self._open = 0
        self._open_max = SESSIONS_MAX
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # What it would say is in the error.

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        """A session for the block. One that fails in the middle of an answer is closed, and the next is a new one."""
        with lost_means_unreachable(self._config.place):
            wire = self._borrow()
            try:
                yield wire
            finally:
                if wire.usable:  # Whatever was refused in words, all answers are read.
                    self._give_back(wire)
                else:
                    self._drop(wire)

    def close(self) -> None:
        """End all sessions and the connection."""
        with self._changed:
            self._idle.clear()
        if self._transport is not None:
            self._transport.close()

    # ------------------------------------------------------------ inner parts

    def _borrow(self) -> Wire:
        while True:
            with self._changed:
                while self._idle:
                    wire = self._idle.pop()
                    channel: Any = wire.channel
                    if not channel.closed and channel.get_transport().is_active():
                        return wire
                    self._open -= 1
                if self._open >= self._open_max:
                    if not self._changed.wait(self._config.answer_seconds):
                        raise StoreUnreachable(
                            f"{self._config.place}: every session is busy", hint="run it again later"
                        )
                    continue
                self._open += 1
            wire_or_none = self._opened()
            if wire_or_none is not None:
                return wire_or_none

    def _give_back(self, wire: Wire) -> None:
        with self._changed:
            self._idle.append(wire)
            self._changed.notify()

    def _drop(self, wire: Wire) -> None:
        try:
            wire.close()
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify()

    def _opened(self) -> Wire | None:
        """A new session; None when the server lets no more be open at once, and others are."""
        import paramiko

        try:
            channel = self._connected().open_session(
                window_size=WINDOW_BYTES, max_packet_size=1 << 15, timeout=self._config.connect_seconds
            )
            channel.settimeout(self._config.answer_seconds)
            channel.invoke_subsystem("sftp")
            wire = Wire(channel)
            _check_extensions(wire, self._config.place)
            return wire
        except BaseException as error:
            with self._changed:
                self._open -= 1
                self._changed.notify()
                if isinstance(error, paramiko.ChannelException) and self._open > 0:
                    self._open_max = self._open
                    return None
            raise

    def _connected(self) -> Any:
        with self._connecting:
            if self._transport is None or not self._transport.is_active():
                self._transport = self._connect()
            return self._transport

    def _connect(self) -> Any:
        """A new connection whose server is the one that is known; nothing secret is sent before that is sure."""
        import paramiko

        config, known = self._config, self._config.host_keys()
        strange: dict[str, Any] = {}
        while True:  # Each round meets a type of key that was not met before, or is the last.
            try:
                transport = self._greeted(known, set(strange))
            except paramiko.ssh_exception.IncompatiblePeer as error:
                for key in strange.values():
                    _check_host_key(config, key)
                raise StoreDenied(
                    f"{config.place}: {error}: the server shows no host key of the known type, or is too old",
                    hint="ssh-keyscan shows its keys; if one was changed on purpose, set host_key to it",
                ) from error
            try:
                key = transport.get_remote_server_key()
                if fingerprint(key.asbytes()) in known or not _may_be_another(known, set(strange), key.get_name()):
                    _check_host_key(config, key)
                    self._authenticate(transport)
                    transport.set_keepalive(KEEPALIVE_SECONDS)
                    return transport
            except BaseException:
                transport.close()
                raise
            transport.close()
            strange[key.get_name()] = key  # A fingerprint does not tell its key's type: ask for the server's others.

    def _greeted(self, known: Mapping[str, str], strange: set[str]) -> Any:
        """A connection that has agreed on keys, before anybody logs in."""
        import paramiko

        config = self._config
        plug = socket.create_connection((config.host, config.port), timeout=config.connect_seconds)
        # Else a request waits for the acknowledgement of the one before it: 40 ms each.
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport = paramiko.Transport(plug)
        try:
            transport.banner_timeout = transport.handshake_timeout = config.connect_seconds
            transport.auth_timeout = transport.channel_timeout = config.answer_seconds
            options = transport.get_security_options()
            options.ciphers = tuple(name for name in CIPHERS if name in options.ciphers)
            options.digests = tuple(name for name in options.digests if "md5" not in name and "sha1" not in name)
            options.key_types = _key_types(options.key_types, known, strange)
            transport.start_client(timeout=config.connect_seconds)
        except BaseException:
            transport.close()
            raise
        return transport

    def _authenticate(self, transport: Any) -> None:
        import paramiko

        config = self._config
        how = "private key" if self._key is not None else "password"
        try:
            if self._key is not None:
                transport.auth_publickey(config.user, self._key)
            if not transport.is_authenticated() and config.password:
                transport.auth_password(config.user, config.password)
        except paramiko.BadAuthenticationType as error:
            raise StoreDenied(
                f"{config.place}: the server takes no {how} ({', '.join(error.allowed_types)} only)",
                hint="--set what it takes (of a store that is there: store set NAME)",
            ) from error
        except paramiko.AuthenticationException as error:
            if not transport.is_active() or "timeout" in str(error):  # The SDK has one error for both.
                raise StoreUnreachable(f"{config.place}: {error}", hint="the server went away; run it again") from error
            raise StoreDenied(
                f"{config.place}: the server refuses user {config.user} with this {how}",
                hint="is the public half in the user's authorized_keys, and the user allowed to log in?"
                if self._key is not None
                else "check user and password; sshd allows passwords only with PasswordAuthentication yes",
            ) from error
        if not transport.is_authenticated():
            raise StoreDenied(f"{config.place}: the server wants more than a {how}", hint="it asks for a second factor")


_RSA = {"rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"}
"""An RSA key is asked for under other names than its own."""


def _key_types(offered: Sequence[str], known: Mapping[str, str], strange: set[str]) -> tuple[str, ...]:
    """Algorithms by which the server may show a host key: of the known types if all are known, none that was strange."""
    wanted = {*known.values()} if known and all(known.values()) else set(offered)
    wanted |= _RSA if "ssh-rsa" in wanted else set()
    wanted -= {*strange, *(_RSA if "ssh-rsa" in strange else ())}
    return tuple(name for name in offered if name in wanted) or tuple(offered)


def _may_be_another(known: Mapping[str, str], strange: set[str], kind: str) -> bool:
    """Whether the server may have the known key beside the one it showed: where only a fingerprint is known."""
    return bool(known) and not all(known.values()) and kind not in strange


def _check_host_key(config: SftpConfig, key: Any) -> None:
    found, line = fingerprint(key.asbytes()), f"{key.get_name()} {key.get_base64()}"
    known = config.host_keys()
    if found in known:
        return
    if not known:
        raise UsageError(
            f"the host key of {config.host} is not set; the server shows {key.get_name()} {found}",
            hint=f"compare it with `ssh-keygen -lf /etc/ssh/ssh_host_…_key.pub` on the server; if it is the same: "
            f"--set host_key='{line}'",
        )
    raise StoreDenied(
        f"{config.host} is not the server that is known: it shows {key.get_name()} {found}, "
        f"known is {' or '.join(known)}; nothing was sent to it",
        hint="somebody may stand in between; if its key was changed on purpose, set host_key to the new one",
    )


def _check_extensions(wire: Wire, place: str) -> None:
    missing = [name.decode() for name in NEEDED if name not in wire.extensions]
    if missing:
        wire.close()
        raise StoreError(
            f"the server of {place} has no {', '.join(missing)}: it cannot decide between two writers or make what it "
            "stored durable",
            hint="OpenSSH from 6.5 on has all of them (sftp-server or internal-sftp); or mount the folder and use kind local",
        )


@contextmanager
def lost_means_unreachable(place: str) -> Iterator[None]:
    """Turn what the SDK and the socket raise into the error tree; Status passes."""
    import paramiko

    try:
        yield
    except (LastroError, Status):
        raise
    except socket.gaierror as error:
        raise StoreUnreachable(
            f"{place}: the host's name is not known ({error.strerror})", hint="check host"
        ) from error
    except TimeoutError as error:
        raise StoreUnreachable(
            f"{place}: the server does not answer in time", hint="is it up, and host, port and firewall right?"
        ) from error
    except (paramiko.SSHException, EOFError, OSError, ProtocolError, struct.error) as error:
        raise StoreUnreachable(
            f"{place}: {str(error) or 'the connection was lost'}",
            hint="is the server up, and host and port right? nothing that was acknowledged is lost",
        ) from error
