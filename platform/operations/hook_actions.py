"""What a hook does: an HTTP call, or a command from the operator's allow-list; both within a time limit.

A hook is configured by people with the master role, and yet it must not become a way into the host: only commands
that the host's own administrator has listed in a file can be run (never through a shell), and no call goes to
addresses by which clouds hand out credentials.
"""

import json
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from core import outgoing
from engine.adapters import setting
from engine.errors import UsageError

OUTPUT_BYTES_MAX = 16 << 10
TERM_SECONDS = 2
_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_METHODS = ("POST", "GET", "PUT")
_FRAMING = ("content-length", "transfer-encoding", "connection")


@dataclass(frozen=True, slots=True)
class HttpHook:
    """An HTTP call; an answer from 200 to 299 is a success, redirects are not followed."""

    url: str = setting(label="URL", help="http:// or https://; https certificates are checked.")
    method: str = setting(
        label="Method", help="POST and PUT carry a JSON body about the operation.", default="POST", choices=_METHODS
    )
    headers: str = setting(
        label="Headers",
        help="Further headers, one `Name: value` a line, for example a token. Write-only.",
        default="",
        secret=True,
    )
    until_ok: bool = setting(
        label="Repeat until it succeeds",
        help="Repeat every second until the time limit, for example a health address after a restart.",
        default=False,
    )

    def validate(self) -> None:
        """Raises UsageError."""
        outgoing.url_checked(self.url, reach=outgoing.Reach.HOUSE)
        header_lines(self.headers)


@dataclass(frozen=True, slots=True)
class CommandHook:
    """A command by its name in the allow-list, the JSON file that LASTRO_HOOK_COMMANDS names."""

    command: str = setting(label="Command", help="Its name in the allow-list.")

    def validate(self) -> None:
        """Raises UsageError when the allow-list does not have it."""
        command_line(self.command)


KINDS: dict[str, type] = {"http": HttpHook, "command": CommandHook}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went: `status` is an HTTP status, an exit code or a word.

    `output` is what the application said, cut to OUTPUT_BYTES_MAX, `reason` our own words on why it failed.
    """

    passed: bool
    status: str
    output: str = ""
    reason: str = ""


Check = Callable[[], None]
"""Raises when the work is to stop."""


def perform(config: Any, about: Mapping[str, str], *, seconds: float, check: Check) -> Outcome:
    """Do what the hook is configured to do. Raises only what `check` raises."""
    if isinstance(config, HttpHook):
        return _call_repeatedly(config, about, seconds, check)
    return _run(config, about, seconds, check)


# ---------------------------------------------------------------- HTTP


def header_lines(text: str) -> dict[str, str]:
    """Parse `Name: value` lines. Raises UsageError, also for those that say where a request ends: we say that."""
    headers = {}
    for line in filter(None, (line.strip() for line in text.splitlines())):
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not (colon and line.isascii() and name.replace("-", "").replace("_", "").isalnum() and value.isprintable()):
            raise UsageError("a header is `Name: value` in ASCII", hint="one a line")
        if name.lower() in _FRAMING:
            raise UsageError(f"the header {name} is ours to give", hint="leave it out")
        headers[name] = value
    return headers


def _call_repeatedly(hook: HttpHook, about: Mapping[str, str], seconds: float, check: Check) -> Outcome:
    deadline = time.monotonic() + seconds
    while True:
        check()
        outcome = _call(hook, about, deadline)
        if outcome.passed or not hook.until_ok or time.monotonic() + _RETRY_SECONDS >= deadline:
            return outcome
        time.sleep(_RETRY_SECONDS)


def _call(hook: HttpHook, about: Mapping[str, str], deadline: float) -> Outcome:
    body = None if hook.method == "GET" else json.dumps(dict(about)).encode()
    headers = header_lines(hook.headers)
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        answer = outgoing.http_call(
            hook.url,
            method=hook.method,
            body=body,
            headers=headers,
            reach=outgoing.Reach.HOUSE,
            seconds=max(0.1, deadline - time.monotonic()),
            answer_bytes_max=OUTPUT_BYTES_MAX,
        )
        return Outcome(answer.is_success, str(answer.status), answer.text)
    except (outgoing.OutgoingRefused, UsageError) as error:
        return Outcome(False, "refused", reason=error.message)
    except outgoing.OutgoingTimeout as error:
        return Outcome(False, "timed out", reason=error.message)
    except outgoing.OutgoingError as error:
        return Outcome(False, "failed", reason=error.message[:500])


# ---------------------------------------------------------------- commands


def command_line(name: str) -> list[str]:
    """The allow-listed argument vector. Raises UsageError with the way to list it."""
    path = settings.LASTRO_HOOK_COMMANDS
    if not path:
        raise UsageError(
            "no commands are allowed on this host",
            hint='list them in a JSON file {"NAME": ["/path", "argument"…]} and name it in LASTRO_HOOK_COMMANDS',
        )
    listed = commands_read(Path(path))
    if name not in listed:
        raise UsageError(
            f"command {name[:60]!r} is not in the allow-list", hint=f"{path} has: {', '.join(sorted(listed)) or 'none'}"
        )
    return listed[name]


def commands_read(path: Path) -> dict[str, list[str]]:
    """Read the allow-list. Raises UsageError when it cannot be trusted or is not of the right form."""
    try:
        info = path.stat()
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or info.st_uid not in (0, os.geteuid()):
            raise UsageError(f"{path} can be changed by others", hint=f"chmod 640 {path}, and own it")
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"LASTRO_HOOK_COMMANDS: cannot read {path}: {error}") from None
    right = isinstance(listed, dict) and all(
        isinstance(line, list) and line and all(isinstance(part, str) for part in line) and os.path.isabs(line[0])
        for line in listed.values()
    )
    if not right:
        raise UsageError(
            f"{path} is no allow-list",
            hint='{"NAME": ["/absolute/path", "argument", "{tenant}"…]}, each line a list of texts',
        )
    return dict(listed)


def _run(hook: CommandHook, about: Mapping[str, str], seconds: float, check: Check) -> Outcome:
    try:
        line = [_filled(part, about) for part in command_line(hook.command)]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        environment |= {f"HOOK_{name.upper()}": value for name, value in about.items()}
        process = subprocess.Popen(  # From the host's own allow-list, without a shell.
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=environment,
        )
    except UsageError as error:
        return Outcome(False, "refused", reason=str(error))
    except OSError as error:
        return Outcome(False, "failed", reason=f"cannot start {hook.command}: {error.strerror}")
    output = _Output(process)
    try:
        status = _wait(process, seconds, check)
    finally:
        _end(process)
    text = output.text()
    if status is None:
        return Outcome(False, "timed out", text)
    return Outcome(status == 0, str(status), text)


def _filled(part: str, about: Mapping[str, str]) -> str:
    for name, value in about.items():
        if name == "dsn":  # It has a password, and everybody may read a process's arguments.
            continue
        part = part.replace("{" + name + "}", value)
    return part


def _wait(process: "subprocess.Popen[bytes]", seconds: float, check: Check) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            check()
            if time.monotonic() > deadline:
                return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the command and all that it started."""
    for number, seconds in ((signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, TERM_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


class _Output:
    """Reads all that a process writes, so that it never blocks, and keeps the beginning."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._pipe: Any = process.stdout
        self._kept = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while piece := self._pipe.read1(1 << 16):
            self._kept += piece[: OUTPUT_BYTES_MAX - len(self._kept)]

    def text(self) -> str:
        """What was kept; a grandchild that holds the pipe open is not waited for."""
        self._thread.join(TERM_SECONDS)
        return outgoing.printable(self._kept[:OUTPUT_BYTES_MAX])
