"""A real SFTP server for tests: OpenSSH's sshd on loopback, with keys, users and folders of its own (docs/testing.md).

As root it runs in a mount namespace where /etc/passwd and /etc/shadow are the test's: its user has a password and no rights
beyond a folder. As anybody else it serves that account alone, by key.
"""

import contextlib
import functools
import getpass
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.services import cached_programs
from tests.services.shared import SharedServer, answers, die_with_parent, free_port

USER, PASSWORD, UID = "lastro-sftp", "a password for tests", 29_871
PASSWORD_HASH = (
    "$6$N7ywIAVqmYc.BAee$oyr0615.9m7YUf8uQjLerMCv/fUKjjajm.Ha7g09blT4Npn2NJmw87BHoIDw5BuZYjKRMfrDaGGwxbDmERjmW1"
)
START_SECONDS_MAX = 30.0
CONFIG = """\
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PrintMotd no
UseDNS no
LogLevel VERBOSE
MaxStartups 100
Subsystem sftp internal-sftp {options}
{extra}
"""
_numbers = itertools.count(1)


def as_root() -> bool:
    """Whether the server can have a user and a password of its own."""
    return os.getuid() == 0


def new_key(passphrase: str = "") -> tuple[str, str]:
    """A private key in OpenSSH's form, and its public line."""
    key = Ed25519PrivateKey.generate()
    how = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, how)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


class Sshd:
    """A server in a folder; `values` gives the settings of an sftp store for a place that nobody else has."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self.home = folder / "home"
        self.user = USER if as_root() else getpass.getuser()
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    def prepared(cls, folder: Path, port: int, *, options: str = "", extra: str = "") -> "Sshd":
        """Write keys, configuration and users of a new server; `options` go to the sftp-server, `extra` to sshd."""
        server = cls(folder, port)
        folder.chmod(0o755)
        server.home.mkdir(mode=0o700)
        for name in ("host_key", "user_key"):
            private, public = new_key()
            (folder / name).write_text(private)
            (folder / name).chmod(0o600)
            (folder / f"{name}.pub").write_text(public)
        shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
        (folder / "config").write_text(CONFIG.format(folder=folder, options=options, extra=extra))
        if as_root():
            os.chown(server.home, UID, UID)
            (folder / "authorized_keys").chmod(0o644)
            others = "root:x:0:0:root:/root:/bin/sh\nsshd:x:103:65534::/run/sshd:/usr/sbin/nologin\n"
            (folder / "passwd").write_text(f"{others}{USER}:x:{UID}:{UID}::{server.home}:/bin/sh\n")
            (folder / "shadow").write_text(f"root:*:19000::::::\n{USER}:{PASSWORD_HASH}:19000::::::\n")
        return server

    @classmethod
    def start(cls, *, options: str = "", extra: str = "") -> "Sshd":
        """A server of this test's own, to be stopped and killed; `discard` ends it."""
        server = cls.prepared(
            Path(tempfile.mkdtemp(prefix=f"lastro-sshd-{os.getpid()}-")), free_port(), options=options
        )
        server.launch()
        return server

    def launch(self) -> None:
        """Start it, again after a `stop`, on the same port."""
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that could deadlock
            )  # fmt: skip
        until = time.monotonic() + START_SECONDS_MAX
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"sshd does not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def command(self) -> Sequence[str]:
        """How the server is started."""
        program, environment = cached_programs.sshd() or ("/usr/sbin/sshd", {})
        set_first = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
        command = [*set_first, str(program), "-D", "-e", "-p", str(self.port), "-f", str(self.folder / "config")]
        if not as_root():
            return command
        mounts = " && ".join(
            [
                "mount -t tmpfs -o mode=755 none /run",
                "mkdir /run/sshd",
                *(f'mount --bind "$0/{name}" /etc/{name}' for name in ("passwd", "shadow")),
            ]
        )
        script = f'{mounts} && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(self.folder), *command]

    def cut(self) -> None:
        """Break every connection as a crash of the server's processes does."""
        assert self._process is not None, "only a server of this test's own is cut"
        for pid in _below(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def add_host_keys(self) -> list[str]:
        """Give the server an ECDSA and an RSA host key too, start it again, and return their public lines."""
        keys: dict[str, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]
        keys = {"ecdsa": ec.generate_private_key(ec.SECP256R1()), "rsa": rsa.generate_private_key(65537, 2048)}
        lines = []
        for name, key in keys.items():
            path = self.folder / f"host_{name}"
            path.write_bytes(
                key.private_bytes(
                    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
                )
            )
            path.chmod(0o600)
            with open(self.folder / "config", "a") as config:
                config.write(f"HostKey {path}\n")
            public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            lines.append(public.decode())
        self.stop()
        self.launch()
        return lines

    def mount_small(self, values: Mapping[str, str], *, size: str) -> None:
        """Mount a small file system where the folder of these settings will be; root only, gone with the server."""
        assert self._process is not None, "only a server of this test's own has mounts of its own"
        path = self.path(values)
        path.mkdir()
        options = f"size={size},uid={UID},gid={UID},mode=700"
        subprocess.run(
            ["nsenter", "-t", str(self._process.pid), "-m", "mount", "-t", "tmpfs", "-o", options, "none", str(path)],
            check=True,
        )

    def stop(self) -> None:
        """End the server and all its connections."""
        if self._process is not None:
            self.cut()
            self._process.kill()
            self._process.wait()
            self._process = None

    def discard(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ------------------------------------------------------------ settings

    @property
    def host_key(self) -> str:
        return (self.folder / "host_key.pub").read_text()

    def values(self, **more: str) -> dict[str, str]:
        """Settings of `--kind sftp` in a fresh folder; `more` adds or replaces."""
        return {
            "host": "127.0.0.1", "port": str(self.port), "user": self.user, "host_key": self.host_key,
            "key": (self.folder / "user_key").read_text(), "folder": f"t{os.getpid()}-{next(_numbers)}", **more,
        }  # fmt: skip

    def path(self, values: Mapping[str, str]) -> Path:
        """Where the folder of these settings lies on this machine."""
        return self.home / values["folder"] if as_root() else Path.home() / values["folder"]


def _below(pid: int) -> list[int]:
    """Process ids of all descendants, the deepest first."""
    try:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [each for child in children for each in [*_below(child), child]]


def _prepare(folder: Path, facts: Mapping[str, Any]) -> None:
    Sshd.prepared(folder, facts["port"])


@functools.cache
def sshd() -> Sshd | None:
    """The server of this run, started by the first test that asks; None where the program is missing."""
    if cached_programs.sshd() is None:
        return None
    server = SharedServer(
        "sshd", command=lambda folder, facts: Sshd(folder, facts["port"]).command(), ports=("port",),
        ready=lambda facts: answers(facts["port"]), prepare=_prepare,
    )  # fmt: skip
    facts = server.facts()
    return Sshd(server.folder / "data", facts["port"])
