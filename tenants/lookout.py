"""The verbs `backup diff` and `backup browse`: what they take and how people read their answers."""

from collections.abc import Mapping
from typing import Any

from core.cli import Answer, Call, Verb, argument, count

_BACKUP = argument("backup", metavar="BACKUP")
_FIELDS_SHOWN = 4


def _diff(call: Call) -> Answer:
    from tenants.selectors import backup_usable
    from tenants.services.comparing import backups_compare

    options = call.options
    data = backups_compare(
        backup_usable(options.backup),
        backup_usable(options.other),
        actor=call.actor,
        source=options.source,
        samples=options.samples,
    )
    return Answer(data, _diff_text(data))


def _diff_text(data: Mapping[str, Any]) -> list[str]:
    lines = [f"from {data['from']} to {data['to']} of {data['tenant']}"]
    for source in data["sources"]:
        before = len(lines)
        lines += [line for table in source["tables"] for line in _table_text(source, table)]
        files = source["files"]
        if files and (files["added"] or files["removed"] or files["changed"]):
            lines.append(
                f"{source['source']}: {files['added']} added, {files['changed']} changed, {files['removed']} removed"
            )
            lines += [f"    {_sign(each['change'])} {each['path']}{_aspects(each)}" for each in files["samples"]]
        for document in source["schema"]:
            lines += [f"{source['source']}: {document['name']}", *(f"    {line}" for line in document["lines"])]
        if len(lines) == before:
            lines.append(f"{source['source']}: the same")
    return lines


def _table_text(source: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    if table["change"] == "same":
        return []
    counts = f"{table['insert']} inserted, {table['update']} updated, {table['delete']} deleted"
    lines = [f"{source['source']}.{table['name']}: {counts}"]
    if table["change"] != "changed":
        lines = [f"{source['source']}.{table['name']}: {table['change']} ({table['insert'] + table['delete']} rows)"]
    lines += [f"    rows cannot be told apart: {table['obstacle']}"] if table["obstacle"] else []
    lines += [
        f"    column {each['name']}: {each['before'] or 'none'} -> {each['after'] or 'none'}"
        for each in table["columns"]
    ]
    return lines + [f"    {_sign(each['change'])} {_row_text(each)}" for each in table["samples"]]


def _sign(change: str) -> str:
    return {"insert": "+", "added": "+", "delete": "-", "removed": "-"}.get(change, "~")


def _aspects(each: Mapping[str, Any]) -> str:
    return f" ({', '.join(each['aspects'])})" if each["aspects"] else ""


def _row_text(each: Mapping[str, Any]) -> str:
    row = each["after"] or each["before"]
    if each["change"] != "update":
        return ", ".join(f"{name}={_value(value)}" for name, value in list(row.items())[:_FIELDS_SHOWN])
    first = next(iter(row.items()))
    changed = (
        f"{name}: {_value(each['before'].get(name))} -> {_value(row.get(name))}" for name in each["fields"] if name
    )
    return f"{first[0]}={_value(first[1])}  {'; '.join(changed)}"


def _value(value: str | None) -> str:
    return "NULL" if value is None else repr(value)


def _browse(call: Call) -> Answer:
    from pathlib import Path

    from tenants.selectors import backup_usable
    from tenants.services.browsing import backup_browse

    options = call.options
    data = backup_browse(
        backup_usable(options.backup),
        options.what,
        actor=call.actor,
        source=options.source,
        after=options.after,
        limit=options.limit,
        output=Path(options.output).absolute() if options.output else None,
    )
    return Answer(data, _browse_text(data))


def _browse_text(data: Mapping[str, Any]) -> list[str]:
    from core.cli_output import table

    if "sources" in data:
        lines = []
        for source in data["sources"]:
            lines.append(
                f"{source['source']} ({source['kind']})" + (f": {source['files']} files" if source["files"] else "")
            )
            lines += [f"  {line}" for line in table(source["tables"])] if source["tables"] else []
        return lines
    if "output" in data:
        what = f"{data['rows_written']} rows" if "rows_written" in data else f"{data['size']} bytes"
        return [f"{data['output']}: {what}"]
    if "rows" in data:
        more = [f"more: --after {data['next']!r}"] if data["next"] is not None else []
        return [*table(data["rows"]), *more]
    if data["type"] == "folder":
        more = [f"more: --after {data['next']!r}"] if data["next"] is not None else []
        return [*table(data["entries"]), *more]
    return table([{key: data[key] for key in ("name", "type", "size", "mode", "modified")}])


VERBS: tuple[Verb, ...] = (
    Verb(
        "diff",
        _diff,
        "what changed from one backup of a tenant to another",
        (
            _BACKUP,
            argument("other", metavar="OTHER", help="the later one"),
            argument("--source", default="", metavar="S", help="only this source"),
            argument("--samples", type=count(1000), default=20, metavar="N", help="rows and paths shown of each (20)"),
        ),
    ),
    Verb(
        "browse",
        _browse,
        "look into a backup, fetch one file or table",
        (
            _BACKUP,
            argument("what", metavar="PATH|TABLE", nargs="?", default="", help="a folder, a file or a table"),
            argument("--source", default="", metavar="S", help="of this source"),
            argument("--output", metavar="FILE", help="fetch it into a new file; a table as .csv, else as COPY's text"),
            argument("--after", metavar="KEY", help="go on after this row or name"),
            argument("--limit", type=count(1000), default=100, help="rows or names at a time (100)"),
        ),
    ),
)
