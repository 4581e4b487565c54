"""Write a backup as SQL that the sqlite3 shell reads."""

from collections.abc import Iterator
from typing import Any

from connectors._sqlite.catalog import quote
from connectors._sqlite.lines import RawText, tuples_of
from connectors._sqlite.stored import StoredSchema
from engine.ports import SourceView, TableView


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)
        return {"inf": "9e999", "-inf": "-9e999"}.get(text, text)
    if isinstance(value, RawText):
        return f"CAST(X'{value.hex()}' AS TEXT)"
    if isinstance(value, bytes):
        return f"X'{value.hex()}'"
    if "\0" in value or "\r" in value:
        return f"CAST(X'{value.encode().hex()}' AS TEXT)"
    return "'" + str(value).replace("'", "''") + "'"


def _inserts(table: TableView, name: str) -> Iterator[str]:
    synthetic = table.key.synthetic
    with_rowid = table.facts["mode"] == "rowid"
    columns = [*(["rowid"] if with_rowid else []), *(quote(each.name) for each in table.columns)]
    into = f"INSERT INTO {quote(name)}({','.join(columns)}) VALUES("
    for rows in table.rows():
        for values in tuples_of(rows, skip=0 if with_rowid else synthetic):
            yield into + ",".join(map(_literal, values)) + ");\n"


def dump(view: SourceView) -> Iterator[str]:
    """The statements, table by table; pieces of text of moderate size.

    Virtual tables are entered into the schema as the shell's own `.dump` does, their shadow tables
    follow as ordinary ones.
    """
    schema = StoredSchema.of(view)
    names = {table.name for table in view.tables}
    whole = view.facts["layout"] == "database"
    yield f"PRAGMA encoding = '{schema.pragmas['encoding']}';\nPRAGMA foreign_keys = OFF;\nBEGIN TRANSACTION;\n"
    for each in schema.of_type("table"):
        if schema.sorts.get(each["name"]) != "virtual" and each["name"] in names:
            yield each["sql"] + ";\n"
    for table in view.tables:
        yield from _inserts(table, table.name)
    if schema.sequences:
        yield "DELETE FROM sqlite_sequence;\n"
        for name, value in schema.sequences.items():
            if name in names:
                yield f"INSERT INTO sqlite_sequence(name,seq) VALUES({_literal(name)},{value});\n"
    virtual = [each for each in schema.of_type("table") if whole and schema.sorts.get(each["name"]) == "virtual"]
    if virtual:
        yield "PRAGMA writable_schema = ON;\n"
        for each in virtual:
            fields = ",".join(_literal(text) for text in ("table", each["name"], each["name"]))
            yield f"INSERT INTO sqlite_schema(type,name,tbl_name,rootpage,sql) VALUES({fields},0,{_literal(each['sql'])});\n"
        yield "PRAGMA writable_schema = OFF;\n"
    for sort in ("index", "view", "trigger"):
        for each in schema.of_type(sort):
            if whole or (sort == "index" and each["table"] in names):
                yield each["sql"] + ";\n"
    yield f"PRAGMA user_version = {int(schema.pragmas['user_version'])};\n"
    yield f"PRAGMA application_id = {int(schema.pragmas['application_id'])};\nCOMMIT;\n"
