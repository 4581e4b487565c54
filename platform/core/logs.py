"""Logging as lines of JSON, with the operation they belong to and without secrets.

Standard library only: every command pays for what is imported here.
"""

import contextvars
import json
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.durable import private_folder
from core.origin import acting, origin_field

LOG_BYTES_MAX = 32 << 20
"""A log file that has grown beyond this becomes `lastro.log.1`; one older file is kept."""

_operation: contextvars.ContextVar[str] = contextvars.ContextVar("operation", default="")

# The last fence only: messages are written without secrets. Passwords in URLs and our own key texts are what
# foreign libraries put into their exceptions.
_SECRETS = (
    (re.compile(r"(://[^/\s:@]*):[^/\s@]+@"), r"\1:***@"),
    (re.compile(r"lastro-root-v1:[0-9a-fA-F:]+"), "lastro-root-v1:***"),
    (re.compile(r"\b(lst[0-9a-f]{10}_|whsec_)[A-Za-z0-9_+/=-]{8,}"), r"\1***"),
    (re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]{16,}"), r"\1 ***"),
    (re.compile(r"(?i)\b(password|passwd|secret|token|api_key|access_key)(\s*[=:]\s*)[^\s,;&)]+"), r"\1\2***"),
)


def redact(text: str) -> str:
    """Cut passwords of URLs, root keys and `password=…` out of a foreign text."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


@contextmanager
def operation_named(operation_id: str) -> Iterator[None]:
    """Mark the log lines and audit entries of this thread as belonging to the operation."""
    token = _operation.set(operation_id)
    try:
        with acting(operation=operation_id):
            yield
    finally:
        _operation.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message; operation, request, command and exception where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        seconds, fraction = divmod(record.created, 1)
        line = {
            "at": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(fraction * 1000):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            "process": record.process,
        }
        if operation := _operation.get():
            line["operation"] = operation
        if request := origin_field("request"):
            line["request"] = request
        if command := origin_field("command"):
            line["command"] = command
        if reference := getattr(record, "reference", ""):
            line["reference"] = reference
        if (duration := getattr(record, "duration_ms", None)) is not None:
            line["duration_ms"] = duration
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class BoundedFile(logging.handlers.WatchedFileHandler):
    """Appends to a file that several processes share; opened at the first line, moved aside when it is full."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self._complained = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            private_folder(Path(self.baseFilename).parent)
            self._move_aside_when_full()
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say once that the log cannot be written (a full or read-only disk), and let the work go on."""
        if not self._complained:
            self._complained = True
            with suppress(OSError, ValueError):  # stderr may be gone, too.
                sys.stderr.write(f"note: the log cannot be written: {self.baseFilename}: {sys.exc_info()[1]}\n")

    def _move_aside_when_full(self) -> None:
        # The size is asked of the path, not of the open file: after another process has moved the file, the path
        # is a small new one and must not be moved as well.
        try:
            if os.stat(self.baseFilename).st_size > LOG_BYTES_MAX:
                os.replace(self.baseFilename, f"{self.baseFilename}.1")
        except FileNotFoundError:
            pass


def configure(folder: Path, *, level: str, stderr: bool) -> None:
    """Send everything to `folder`/lastro.log, and to stderr too when asked (worker, server)."""
    handlers: list[logging.Handler] = [BoundedFile(folder / "lastro.log")]
    if stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if getattr(handler, "of_lastro", False)]:
        root.removeHandler(old)
    for handler in handlers:
        handler.setFormatter(JsonLines())
        handler.of_lastro = True  # type: ignore[attr-defined]
        root.addHandler(handler)
    root.setLevel(level)
    # SQL texts hold the values of rows.
    logging.getLogger("django.db.backends").setLevel(logging.WARNING)
    logging.getLogger("django.utils.autoreload").setLevel(logging.WARNING)
