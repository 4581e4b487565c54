"""Empty a database that is to be built anew: also of what lies in no schema, as a server made it and no more."""

from collections.abc import Callable

import psycopg

from connectors._postgresql.connection import Connection, clean_message, rows, run
from connectors._postgresql.quoting import ident

_USERS = "oid >= 16384"

# First what would see or carry away the dropping of the rest.
_WATCHERS = (
    (
        "SELECT format('DROP EVENT TRIGGER %I CASCADE', evtname) FROM pg_event_trigger t WHERE NOT EXISTS"
        " (SELECT FROM pg_depend e WHERE e.classid = 'pg_event_trigger'::regclass AND e.objid = t.oid AND e.deptype = 'e')"
    ),
    "SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication",
)
_SUBSCRIPTIONS = """
SELECT subname, subslotname FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_REST = (
    "SELECT format('DROP SCHEMA %I CASCADE', nspname) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'",
    "SELECT format('DROP EXTENSION %I CASCADE', extname) FROM pg_extension WHERE extname <> 'plpgsql'",
    f"SELECT format('DROP FOREIGN DATA WRAPPER %I CASCADE', fdwname) FROM pg_foreign_data_wrapper WHERE {_USERS}",
    f"SELECT format('DROP CAST (%s AS %s) CASCADE', castsource::regtype, casttarget::regtype) FROM pg_cast WHERE {_USERS}",
    (
        "SELECT format('DROP TRANSFORM FOR %s LANGUAGE %I CASCADE', trftype::regtype, lanname)"
        " FROM pg_transform t JOIN pg_language l ON l.oid = trflang WHERE t.oid >= 16384"
    ),
    f"SELECT format('DROP LANGUAGE %I CASCADE', lanname) FROM pg_language WHERE {_USERS}",
    f"SELECT format('DROP ACCESS METHOD %I CASCADE', amname) FROM pg_am WHERE {_USERS}",
)

_KINDS = "CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS' WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END"
_DEFAULT_PRIVILEGES = f"""
SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I REVOKE ALL ON %s FROM %s', r.rolname, {_KINDS},
              CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE format('%I', pg_get_userbyid(a.grantee)) END)
  FROM pg_default_acl d JOIN pg_roles r ON r.oid = d.defaclrole CROSS JOIN LATERAL aclexplode(d.defaclacl) a
 WHERE d.defaclnamespace = 0
UNION ALL
SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I GRANT ALL ON %s TO %s', r.rolname, {_KINDS}, g.name)
  FROM pg_default_acl d JOIN pg_roles r ON r.oid = d.defaclrole
  CROSS JOIN LATERAL (SELECT format('%I', r.rolname) AS name
                      UNION ALL SELECT 'PUBLIC' WHERE d.defaclobjtype IN ('f', 'T')) g
 WHERE d.defaclnamespace = 0
"""
"""What was granted is taken back, and what the server grants by itself given again: then it forgets the entry."""


def clear(connection: Connection, warn: Callable[[str], None]) -> None:
    """Drop everything in the database inside the caller's transaction; what the role may not drop is said."""
    for query in _WATCHERS:
        _run_all(connection, query, warn)
    for name, slot in rows(connection, _SUBSCRIPTIONS):
        _drop_subscription(connection, name, slot, warn)
    _run_all(connection, _DEFAULT_PRIVILEGES, warn)
    for query in _REST:
        _run_all(connection, query, warn)
    run(connection, "SELECT count(lo_unlink(oid)) FROM pg_largeobject_metadata")
    _create_public(connection, warn)


def _run_all(connection: Connection, query: str, warn: Callable[[str], None]) -> None:
    """Run the statements that a query gives; one object may have gone with another."""
    for (statement,) in rows(connection, query):
        _attempt(connection, statement, warn)


def _attempt(connection: Connection, statement: str, warn: Callable[[str], None]) -> None:
    run(connection, "SAVEPOINT lastro_clear")
    try:
        run(connection, statement)
    except (psycopg.errors.UndefinedObject, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction):
        run(connection, "ROLLBACK TO SAVEPOINT lastro_clear")
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.DependentObjectsStillExist) as error:
        run(connection, "ROLLBACK TO SAVEPOINT lastro_clear")
        warn(f"{statement}: {clean_message(error)}")
    run(connection, "RELEASE SAVEPOINT lastro_clear")


def _drop_subscription(connection: Connection, name: str, slot: str | None, warn: Callable[[str], None]) -> None:
    """Drop it here; its slot at the publisher can only be dropped there."""
    quoted = ident(name)
    for statement in (
        f"ALTER SUBSCRIPTION {quoted} DISABLE",
        f"ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)",
        f"DROP SUBSCRIPTION {quoted}",
    ):
        _attempt(connection, statement, warn)
    if slot:
        warn(f"subscription {name} is gone from the target; its slot {slot} stays at the publisher: drop it there")


def _create_public(connection: Connection, warn: Callable[[str], None]) -> None:
    """The schema public as a new database has it."""
    run(connection, "CREATE SCHEMA public")
    if connection.info.server_version >= 150000:
        statements = ["ALTER SCHEMA public OWNER TO pg_database_owner", "GRANT USAGE ON SCHEMA public TO PUBLIC"]
    else:
        (owner,) = rows(connection, "SELECT rolname FROM pg_roles WHERE oid = 10")[0]
        statements = [f"ALTER SCHEMA public OWNER TO {ident(owner)}", "GRANT ALL ON SCHEMA public TO PUBLIC"]
    for statement in [*statements, "COMMENT ON SCHEMA public IS 'standard public schema'"]:
        _attempt(connection, statement, warn)
