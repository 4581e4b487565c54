"""`token add|list|revoke`."""

import datetime

from access.models import Scope, Token
from access.services import token_add, token_revoke
from core import clock
from core.cli import Call, NounCommand, Verb, argument, count

DAYS_MAX = 3650


def add(call: Call) -> dict:
    options = call.options
    expires_at = clock.now() + datetime.timedelta(days=options.days) if options.days else None
    token, text = token_add(
        options.name,
        scopes=[scope for group in options.scope for scope in group],
        tenants=options.tenant or (),
        master=options.master,
        expires_at=expires_at,
        actor=call.actor,
    )
    call.terminal.note("the token is shown this once")
    return {
        "token": text,
        "prefix": token.prefix,
        "scopes": token.scopes,
        "tenants": token.tenants,
        "expires_at": expires_at,
    }


def list_(call: Call) -> dict:
    rows = Token.objects.select_related("account").order_by("id")
    return {
        "data": [
            {
                "prefix": row.prefix,
                "name": row.name,
                "master": row.account.username,
                "scopes": row.scopes,
                "tenants": row.tenants,
                "live": row.is_live(),
                "expires_at": row.expires_at,
                "last_used_at": row.last_used_at,
            }
            for row in rows
        ]
    }


def revoke(call: Call) -> dict:
    token = token_revoke(call.options.prefix, actor=call.actor)
    return {"prefix": token.prefix, "revoked_at": token.revoked_at}


class Command(NounCommand):
    help = "Tokens of programs that use the API."
    verbs = (
        Verb(
            "add",
            add,
            "make a token; prints it once",
            (
                argument("name", metavar="NAME"),
                argument("--scope", nargs="+", action="append", required=True, choices=Scope.values, metavar="SCOPE"),
                argument("--tenant", action="append", metavar="SLUG", help="only this tenant; may be repeated"),
                argument("--master", default="", metavar="NAME", help="whom it acts for, where there are several"),
                argument(
                    "--days", type=count(DAYS_MAX), default=0, help=f"expires after so many days (1 to {DAYS_MAX})"
                ),
            ),
        ),
        Verb("list", list_, "all tokens, without their secrets"),
        Verb("revoke", revoke, "end a token", (argument("prefix", metavar="PREFIX"),)),
    )
