"""What differs between the schema at the backup and now, and what a restore does about it."""

from collections.abc import Mapping, Sequence

from connectors._sqlite.catalog import Catalog, Table, TableColumn
from connectors._sqlite.changes import TableChanges
from connectors._sqlite.matching import ELSEWHERE
from engine.errors import SchemaMismatch
from engine.plans import Drift


def _shown(column: TableColumn) -> str:
    default = "" if column.default is None else f" DEFAULT {column.default}"
    return f"{column.type or 'any'}{' NOT NULL' if column.not_null else ''}{default}"


def drift_of(
    then: Catalog, now: Catalog, names: Sequence[str], missing: Mapping[str, Table], *, whole: bool
) -> list[Drift]:
    """Differences of the tables that a backup holds, and tables made since."""
    found = []
    for name in names:
        old, new = then.tables.get(name), now.tables.get(name)
        if name in missing:
            found.append(Drift(name, "table", None, "made anew, with its indexes"))
        elif old is not None and new is not None:
            found += _columns(old, new)
            found += _constraints(old, new)
            if checks_differ(old, new):
                found.append(Drift(name, "checks", "other checks", "rows that are written must fit them"))
    if whole:
        found += [
            Drift(each.name, None, "table", "left alone: the backup does not know it")
            for each in now.plain
            if each.name not in then.tables and each.sort == "table"
        ]
    return found


def checks_differ(old: Table, new: Table) -> bool:
    """Whether CHECK constraints may say something else than at the backup."""
    return old.sql != new.sql and "CHECK" in new.sql.upper()


def _columns(old: Table, new: Table) -> list[Drift]:
    found = []
    for column in old.stored:
        now = new.column(column.name)
        if now is None or now.generated:
            action = "left out: the table has no such column any more"
            found.append(Drift(f"{new.name}.{column.name}", _shown(column), _shown(now) if now else None, action))
        elif _shown(now) != _shown(column):
            action = "values are written as they were; refused if the column would change one"
            found.append(Drift(f"{new.name}.{column.name}", _shown(column), _shown(now), action))
    for column in new.stored:
        if old.column(column.name) is None:
            action = f"rows that exist keep their value, others get the default ({column.default or 'NULL'})"
            found.append(Drift(f"{new.name}.{column.name}", None, _shown(column), action))
    return found


def _constraints(old: Table, new: Table) -> list[Drift]:
    found = []
    if old.primary != new.primary:
        found.append(
            Drift(
                new.name, f"key {', '.join(old.primary)}", f"key {', '.join(new.primary)}", "rows must fit the new key"
            )
        )
    before, after = ({tuple(each.columns) for each in table.uniques} for table in (old, new))
    found += [
        Drift(new.name, None, f"unique {', '.join(each)}", "restored rows must fit it")
        for each in sorted(after - before)
    ]
    found += [
        Drift(new.name, f"unique {', '.join(each)}", None, "not asked for any more") for each in sorted(before - after)
    ]
    links = [{(key.columns, key.parent, key.parent_columns) for key in table.foreign_keys} for table in (old, new)]
    for columns, parent, _ in sorted(links[1] - links[0]):
        found.append(Drift(new.name, None, f"{', '.join(columns)} refers to {parent}", "restored rows must fit it"))
    for columns, parent, _ in sorted(links[0] - links[1]):
        found.append(Drift(new.name, f"{', '.join(columns)} refers to {parent}", None, "not asked for any more"))
    return found


def values_check(changes: TableChanges) -> None:
    """Raise SchemaMismatch when rows that are to be written lack a value that the table now asks for."""
    table, names = changes.table, {each.lower() for each in changes.columns}
    for column in table.stored:
        if not column.not_null:
            continue
        if column.name.lower() not in names:
            sql = f"SELECT 1 FROM {changes.temp} WHERE act = 1 AND op = 0 LIMIT 1"
            if column.default is None and changes.connection.execute(sql).fetchone():
                raise SchemaMismatch(
                    f"table {table.name} has a new column {column.name} that must have a value",
                    hint="give it a default, or restore to another place (path=FILE)",
                )
            continue
        value = changes.value(column.name, changes.temp.removeprefix("temp."))
        sql = f"SELECT count(*) FROM {changes.temp} WHERE act = 1 AND op <> 1 AND {value} IS NULL"
        if column.name != table.alias and (count := changes.connection.execute(sql).fetchone()[0]):
            raise SchemaMismatch(
                f"{count} rows of {table.name} have no {column.name}, which it now asks for", hint=ELSEWHERE
            )
