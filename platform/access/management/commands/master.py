"""`master add|list`."""

from access.models import Account
from access.services import master_add
from core.cli import Call, NounCommand, Verb, argument


def add(call: Call) -> dict:
    account, password = master_add(call.options.name, actor=call.actor)
    call.terminal.note("the password is shown this once")
    return {"name": account.username, "password": password}


def list_(call: Call) -> dict:
    rows = Account.objects.filter(is_master=True).order_by("username")
    return {"data": [{"name": row.username, "active": row.is_active, "last_login": row.last_login} for row in rows]}


class Command(NounCommand):
    help = "People with the master role."
    verbs = (
        Verb("add", add, "make a master; prints the password once", (argument("name", metavar="NAME"),)),
        Verb("list", list_, "who has the role"),
    )
