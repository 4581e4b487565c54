"""Making masters and tokens, checking tokens."""

import datetime
import hashlib
import hmac
import secrets
from collections.abc import Sequence

from django.db import IntegrityError, transaction

import audit.services
from access.models import Account, Scope, Token
from core import clock
from core.errors import Conflict, NotFound
from core.tenancy import tenants_unknown
from engine.errors import UsageError

PASSWORD_BYTES = 18
SECRET_BYTES = 32
PREFIX_BYTES = 5
NAME_CHARS_MAX = 150
LAST_USED_STEP = datetime.timedelta(minutes=1)
"""The time of last use is kept to this step, so that reading requests do not each write a row."""


def master_add(username: str, *, actor: str) -> tuple[Account, str]:
    """Make an account with the master role and a made-up password, which is returned and kept nowhere."""
    if not username or not username.isprintable() or len(username) > NAME_CHARS_MAX or username != username.strip():
        hint = f"1 to {NAME_CHARS_MAX} printable characters"
        raise UsageError(f"{username[:60]!r} is no name for an account", hint=hint)
    password = secrets.token_urlsafe(PASSWORD_BYTES)
    account = Account(username=username, is_master=True)
    account.set_password(password)
    try:
        with transaction.atomic():
            account.save(force_insert=True)
            audit.services.record(
                "master.added", message=f"master {username} added", actor=actor, data={"account": account.pk}
            )
    except IntegrityError:
        raise Conflict(f"there is an account {username} already", hint="take another name") from None
    return account, password


def token_add(
    name: str,
    *,
    scopes: Sequence[str],
    tenants: Sequence[str] = (),
    master: str = "",
    expires_at: datetime.datetime | None = None,
    actor: str,
) -> tuple[Token, str]:
    """Make a token that acts for a master; its text `<prefix>_<secret>` is returned and kept nowhere.

    The master may be left out while there is only one. No `tenants` means all of them.
    """
    unknown = sorted(set(scopes) - set(Scope.values))
    if unknown or not scopes:
        raise UsageError(f"unknown scope {unknown[0]}" if unknown else "a token needs a scope", hint=", ".join(Scope))
    for slug in tenants_unknown(sorted(set(tenants))):
        raise NotFound(f"there is no tenant {slug[:60]!r}", hint="tenant list shows them")
    if not name.strip() or not name.isprintable() or len(name) > NAME_CHARS_MAX:
        raise UsageError(f"{name[:60]!r} is no name for a token", hint=f"1 to {NAME_CHARS_MAX} printable characters")
    account, secret = _master_get(master), secrets.token_urlsafe(SECRET_BYTES)
    token = Token(
        account=account,
        name=name,
        prefix=f"lst{secrets.token_hex(PREFIX_BYTES)}",
        secret_hash=_hash(secret),
        scopes=sorted(set(scopes)),
        tenants=sorted(set(tenants)),
        expires_at=expires_at,
    )
    with transaction.atomic():
        token.save(force_insert=True)
        audit.services.record(
            "token.added",
            message=f"token {name} added for {account.username}",
            actor=actor,
            level="warning" if Scope.ADMIN in scopes else "info",
            data={"token": token.pk, "prefix": token.prefix, "scopes": token.scopes, "tenants": token.tenants},
        )
    return token, f"{token.prefix}_{secret}"


def token_check(text: str) -> Token | None:
    """Find the live token with this text, noting its use; None for anything else."""
    prefix, _, secret = text.partition("_")
    token = Token.objects.select_related("account").filter(prefix=prefix).first()
    if token is None or not hmac.compare_digest(token.secret_hash, _hash(secret)) or not token.is_live():
        return None
    now = clock.now()
    if token.last_used_at is None or now - token.last_used_at >= LAST_USED_STEP:
        Token.objects.filter(pk=token.pk).update(last_used_at=now)
    return token


def token_revoke(prefix: str, *, actor: str) -> Token:
    """End a token for good; ending it twice is no error."""
    token = Token.objects.filter(prefix=prefix).first()
    if token is None:
        raise NotFound(f"no token {prefix[:60]!r}", hint="token list shows them")
    with transaction.atomic():
        if Token.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=clock.now()):
            audit.services.record(
                "token.revoked", message=f"token {token.name} revoked", actor=actor, data={"token": token.pk}
            )
    token.refresh_from_db()
    return token


def _master_get(username: str) -> Account:
    masters = Account.objects.filter(is_master=True, is_active=True)
    if username:
        account = masters.filter(username=username).first()
        if account is None:
            raise NotFound(f"no master {username[:60]!r}", hint="master add makes one")
        return account
    found = list(masters[:2])
    if len(found) == 1:
        return found[0]
    if not found:
        raise NotFound("there is no master for the token to act for", hint="master add makes one")
    raise UsageError("there are several masters", hint="name the token's with --master")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
