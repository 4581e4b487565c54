"""Roles and database properties from a backup, created where the restoring role may."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psycopg

from connectors._postgresql.connection import Connection, clean_message, rows, run
from connectors._postgresql.quoting import ident, literal

_FLAGS = (
    ("superuser", "SUPERUSER"), ("inherit", "INHERIT"), ("createrole", "CREATEROLE"), ("createdb", "CREATEDB"),
    ("login", "LOGIN"), ("replication", "REPLICATION"), ("bypassrls", "BYPASSRLS"),
)  # fmt: skip


def attempt(connection: Connection, sql: str, warn: Callable[[str], None], what: str) -> bool:
    """Run a statement that may fail without harm; say so when it does."""
    try:
        run(connection, sql)
    except psycopg.OperationalError:
        raise
    except psycopg.Error as error:
        warn(f"{what}: {clean_message(error)}")
        return False
    return True


def create_roles(connection: Connection, roles: Iterable[Mapping[str, Any]], warn: Callable[[str], None]) -> None:
    """Create the roles that are missing; those that exist stay as they are."""
    known = {row[0] for row in rows(connection, "SELECT rolname FROM pg_roles")}
    created = set()
    roles = list(roles)
    for role in roles:
        if role["name"] in known:
            continue
        flags = " ".join(word if role[field] else f"NO{word}" for field, word in _FLAGS)
        password = f" PASSWORD {literal(role['password'])}" if role.get("password") else ""
        until = f" VALID UNTIL {literal(role['valid_until'])}" if role.get("valid_until") else ""
        limit = f" CONNECTION LIMIT {int(role['connection_limit'])}"
        sql = f"CREATE ROLE {ident(role['name'])} WITH {flags}{limit}{until}{password}"
        if attempt(connection, sql, warn, f"role {role['name']} is not created"):
            created.add(role["name"])
    for role in roles:
        for group in role["member_of"]:
            if role["name"] in created and group not in known | created and not group.startswith("pg_"):
                continue
            if role["name"] in created:
                sql = f"GRANT {ident(group)} TO {ident(role['name'])}"
                attempt(connection, sql, warn, f"role {role['name']} is no member of {group}")


def apply_database(connection: Connection, document: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Owner, settings, grants and comment of the database itself."""
    here = ident(connection.info.dbname)
    facts = document["database"]
    owner = f"ALTER DATABASE {here} OWNER TO {ident(facts['owner'])}"
    attempt(connection, owner, warn, "the database's owner is not kept")
    for setting in facts["settings"]:
        name, _, text = setting.partition("=")
        sql = f"ALTER DATABASE {here} SET {_setting(name, text)}"
        attempt(connection, sql, warn, f"the database's setting {name} is not kept")
    if facts.get("comment"):
        attempt(connection, f"COMMENT ON DATABASE {here} IS {literal(facts['comment'])}", warn, "comment")
    for grantee, privilege, grantable in grants(facts["grants"]):
        sql = f"GRANT {privilege} ON DATABASE {here} TO {grantee}{grantable}"
        attempt(connection, sql, warn, f"a grant on the database to {grantee} is not kept")
    for role in document["roles"]:
        for setting in role["settings"]:
            name, _, text = setting.partition("=")
            sql = f"ALTER ROLE {ident(role['name'])} IN DATABASE {here} SET {_setting(name, text)}"
            attempt(connection, sql, warn, f"setting {name} of role {role['name']} is not kept")


_LISTS = {"search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries", "datestyle"}


def _setting(name: str, text: str) -> str:
    """A stored setting as SET understands it; list settings are stored ready to be written."""
    quoted_name = ".".join(ident(part) for part in name.split("."))
    return f"{quoted_name} TO {text if name.lower() in _LISTS and text else literal(text)}"


def grants(stored: Iterable[str]) -> Iterable[tuple[str, str, str]]:
    """(grantee, privilege, option) of stored grants, ready for a GRANT; privileges are checked to be words."""
    for text in stored:
        grantee, privilege, grantable = json.loads(text)
        assert privilege.replace(" ", "").isalpha(), "privileges are words of PostgreSQL's own"
        yield (
            ("PUBLIC" if grantee == "public" else ident(grantee)),
            privilege,
            " WITH GRANT OPTION" if grantable else "",
        )
