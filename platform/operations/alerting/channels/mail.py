"""E-mail by SMTP: TLS or STARTTLS with checked certificates, refused recipients told, no header that a text could forge."""

import re
import smtplib
import socket
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from django.conf import settings
from django.template.loader import render_to_string

from core.outgoing import Line, Reach, line_open, tls_context
from engine.adapters import setting
from engine.errors import UsageError
from operations.alerting.channels import ChannelError, Sent, Stamp
from operations.alerting.wording import Words

RECIPIENTS_MAX = 50
_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_SECURITIES = ("starttls", "tls", "none")
_PORTS = {"starttls": 587, "tls": 465, "none": 25}
_SCHEMES = {"smtp": "starttls", "smtps": "tls", "smtp+plain": "none"}


@dataclass(frozen=True, slots=True)
class EmailConfig:
    """Whom to write to, and by which server; without one LASTRO_SMTP_URL says."""

    to: str = setting(label="To", help="Addresses, joined by commas.")
    sender: str = setting(label="From", help="Address of the sender; at first lastro@ this host.", default="")
    host: str = setting(label="Mail server", help="At first the one of LASTRO_SMTP_URL.", default="")
    port: int = setting(label="Port", help="At first 587, with tls 465, with none 25.", default=0)
    security: str = setting(
        label="Encryption",
        help="starttls, tls, or none (then without a password).",
        default="starttls",
        choices=_SECURITIES,
    )
    user: str = setting(label="User", default="")
    password: str = setting(label="Password", default="", secret=True)

    def validate(self) -> None:
        """Raises UsageError."""
        recipients = self.recipients
        if not 1 <= len(recipients) <= RECIPIENTS_MAX:
            raise UsageError(f"to: 1 to {RECIPIENTS_MAX} addresses, joined by commas")
        for address in [*recipients, *([self.sender] if self.sender else [])]:
            if not _ADDRESS.fullmatch(address):
                raise UsageError(f"{address[:80]!r} is no e-mail address", hint="for example ops@example.org")
        if not 0 <= self.port <= 65_535:
            raise UsageError("port: 1 to 65535")
        if self.host and not re.fullmatch(r"[A-Za-z0-9.:-]{1,253}", self.host):
            raise UsageError(f"{self.host[:80]!r} is no host")
        if self.security == "none" and (self.user or self.password):
            raise UsageError("a password is not sent without encryption", hint="security=starttls or tls")
        if bool(self.user) != bool(self.password):
            raise UsageError("user and password go together")

    @property
    def recipients(self) -> list[str]:
        return [each.strip() for each in self.to.replace("\n", ",").split(",") if each.strip()]


@dataclass(frozen=True, slots=True)
class _Server:
    host: str
    port: int
    security: str
    user: str
    password: str
    reach: Reach


def smtp_url_read(text: str) -> _Server:
    """Take LASTRO_SMTP_URL apart. Raises UsageError without repeating it: it may hold a password."""
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in _SCHEMES or not url.hostname:
        raise UsageError(
            "LASTRO_SMTP_URL is no address of a mail server",
            hint="smtp://USER:PASSWORD@HOST:587, smtps:// or smtp+plain://",
        )
    security = _SCHEMES[url.scheme]
    if security == "none" and url.password:
        raise UsageError("LASTRO_SMTP_URL: a password is not sent without encryption", hint="smtp:// or smtps://")
    # Named by the host's own administrator, not by somebody with a role in the program: it may be a relay of the house.
    return _Server(
        url.hostname,
        port or _PORTS[security],
        security,
        unquote(url.username or ""),
        unquote(url.password or ""),
        Reach.HOUSE,
    )


def _server(config: EmailConfig) -> _Server:
    if config.host:
        port = config.port or _PORTS[config.security]
        return _Server(config.host, port, config.security, config.user, config.password, Reach.INTERNET)
    if not settings.LASTRO_SMTP_URL:
        raise ChannelError(
            "there is no mail server to send by",
            hint="set LASTRO_SMTP_URL, or: channel set NAME --set host=HOST",
            retryable=True,
        )
    return smtp_url_read(settings.LASTRO_SMTP_URL)


class EmailKind:
    """See the module."""

    kind: ClassVar[str] = "email"
    label: ClassVar[str] = "E-mail by SMTP"
    Config: ClassVar[type] = EmailConfig

    def send(self, config: EmailConfig, words: Words, stamp: Stamp, *, seconds: float) -> Sent:
        """Send to every recipient; those that were refused are told, all refused is a failure."""
        server = _server(config)
        message = letter(config, words, stamp)
        with line_open(server.host, server.port, reach=server.reach, seconds=seconds) as line:
            try:
                refused = _handed_over(server, line, message, config)
            except smtplib.SMTPRecipientsRefused as error:
                raise _all_refused(error) from None
            except smtplib.SMTPResponseException as error:
                raise _answered(error, server) from None
            except smtplib.SMTPNotSupportedError as error:
                raise ChannelError(
                    f"{server.host} offers no such thing: {_said(str(error))}; nothing was sent",
                    hint="security=tls speaks TLS from the start; security=none sends in clear, without a password",
                    retryable=False,
                ) from None
            except smtplib.SMTPServerDisconnected as error:
                line.check()
                raise ChannelError(f"{server.host} hung up: {_said(str(error))}") from None
        if refused:
            told = "; ".join(f"{address}: {code} {_said(said)}" for address, (code, said) in sorted(refused.items()))
            return Sent("250", f"refused for {told}"[:400])
        return Sent("250", f"taken for {len(config.recipients)}")


class _Smtp(smtplib.SMTP):
    """Speaks over a line that was opened, and judged, before."""

    def __init__(self, line: Line, server: _Server) -> None:
        super().__init__(timeout=line.left, local_hostname=socket.gethostname()[:200] or "localhost")
        self._line, self._host = line, server.host

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        return self._line.sock


def _handed_over(server: _Server, line: Line, message: EmailMessage, config: EmailConfig) -> dict[str, Any]:
    line.sock.settimeout(line.left)
    if server.security == "tls":
        line.sock = tls_context().wrap_socket(line.sock, server_hostname=server.host)
    smtp = _Smtp(line, server)
    code, said = smtp.connect(server.host, server.port)
    if code != 220:
        raise smtplib.SMTPResponseException(code, said)
    smtp.ehlo_or_helo_if_needed()
    if server.security == "starttls":
        code, said = smtp.starttls(context=tls_context())
        if code != 220:
            raise smtplib.SMTPResponseException(code, said)
        smtp.ehlo_or_helo_if_needed()
    if server.user:
        smtp.login(server.user, server.password)
    sender = str(message["From"].addresses[0].addr_spec)
    refused: dict[str, Any] = smtp.sendmail(sender, config.recipients, message.as_bytes())
    try:
        smtp.quit()
    except (smtplib.SMTPException, OSError):
        pass  # It was taken: how the server says goodbye does not matter.
    return refused


def _all_refused(error: smtplib.SMTPRecipientsRefused) -> ChannelError:
    told = "; ".join(f"{address}: {code} {_said(said)}" for address, (code, said) in sorted(error.recipients.items()))
    later = any(400 <= code < 500 for code, _ in error.recipients.values())
    return ChannelError(
        f"every recipient was refused: {told}"[:450],
        hint="are the addresses right? channel set NAME --set to=…",
        retryable=later,
    )


def _answered(error: smtplib.SMTPResponseException, server: _Server) -> ChannelError:
    login = isinstance(error, smtplib.SMTPAuthenticationError)
    hint = "user or password are wrong: channel set NAME --set user=… --set password=@FILE" if login else ""
    said = f"{server.host} answered {error.smtp_code} {_said(error.smtp_error)}"
    return ChannelError(said, hint=hint, retryable=not 500 <= error.smtp_code < 600)


def _said(text: bytes | str) -> str:
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return " ".join("".join(c if c.isprintable() else " " for c in plain).split())[:200]


def letter(config: EmailConfig, words: Words, stamp: Stamp) -> EmailMessage:
    """The message as it is sent: text and HTML, marked as automatic, with an id that a retry repeats."""
    message = EmailMessage(policy=SMTP)
    sender = config.sender or f"lastro@{_domain(stamp.host)}"
    message["From"] = Address("Lastro", addr_spec=sender)
    message["To"] = ", ".join(config.recipients)
    # The policy refuses a line break in a header; there is none left to refuse.
    message["Subject"] = words.subject
    message["Date"] = stamp.at
    message["Message-ID"] = f"<{stamp.id}@{_domain(stamp.host)}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Lastro-Kind"] = words.kind
    about = {"words": words, "report": words.report}
    template = "report" if words.report else "alert"
    text = render_to_string("email/report.txt", about) if words.report else words.text
    # Quoted-printable passes through servers that know no eight bits.
    message.set_content(text, cte="quoted-printable")
    message.add_alternative(render_to_string(f"email/{template}.html", about), subtype="html", cte="quoted-printable")
    return message


def _domain(host: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9.-]", "-", host).strip("-.")[:200] or "localhost"
    return plain if "." in plain else f"{plain}.localdomain"


KIND = EmailKind()
