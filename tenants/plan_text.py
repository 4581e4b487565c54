"""A plan as people read it on a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.plans import POLICIES
from tenants.previews import FILE_COUNTS, TABLE_COUNTS

SAMPLES_SHOWN_MAX = 5
"""Rows of each table; the JSON has all that were kept."""
FIELDS_SHOWN_MAX = 6
VALUE_CHARS_MAX = 40
_VERBS = {
    "insert": "comes back",
    "update": "changes",
    "delete": "goes away",
    "kept": "stays",
    "conflict": "changed on both sides",
    "collision": "is another row now",
    "withheld": "does not come back",
    "stays": "stays",
}


def plan_text(data: Mapping[str, Any]) -> list[str]:
    """Counts first, then samples, drift, what comes along, what would be lost, time and room."""
    lines = list(_head(data))
    for source in data["sources"]:
        lines += ["", f"{source['name']} ({source['kind']})"]
        lines += _tables(source["tables"], kept=data["mode"] == "merge") or (
            [] if source["files"] else ["  nothing to do"]
        )
        lines += _files(source["files"])
        lines += [f"  schema: {_drift(each)}" for each in source["drift"]]
        lines += [f"  {_dependency(each)}" for each in source["dependencies"]]
        lines += [line for table, rows in source["samples"].items() for line in _samples(table, rows, data["mode"])]
        lines += [f"  {_path(each)}" for each in source["paths"][:SAMPLES_SHOWN_MAX]]
        lines += [f"  warning: {text}" for text in source["warnings"]]
    return [*lines, "", *_end(data)]


def _head(data: Mapping[str, Any]) -> Iterator[str]:
    what = f"undo of {data['undoes']}" if data["undoes"] else f"{data['mode']} restore from {data['backup']}"
    where = "in place" if data["in_place"] else "to another place"
    at = f" of {_moment(data['backup_at'])}" if data["backup_at"] and not data["undoes"] else ""
    yield f"{data['plan']} {data['state']}: {what}{at} of {data['tenant']}, {where}"
    if data["base"]:
        yield f"base: {data['base']}"
    if data["expires_at"]:
        yield f"good until {_moment(data['expires_at'])}"
    if data["error"]:
        yield f"error: {data['error']['detail']}"
        yield f"hint: {data['error']['hint']}"


def _moment(text: str) -> str:
    return f"{text[:16].replace('T', ' ')} UTC"


def _tables(tables: Sequence[Mapping[str, Any]], *, kept: bool) -> list[str]:
    """A merge shows what stays by its policy; elsewhere rows stay only because nobody chose them."""
    counts = [count for count in TABLE_COUNTS if kept or count != "kept"]
    changed = [table for table in tables if any(table[count] for count in counts if count != "unchanged")]
    others = len(tables) - len(changed)
    rest = [f"  {'and ' if changed else ''}{others} table{'s' * (others != 1)} with nothing to do"] if others else []
    if not changed:
        return rest
    shown = [count for count in counts if count == "unchanged" or any(table[count] for table in changed)]
    name_width = max(5, *(len(table["name"]) for table in changed))
    widths = {count: max(len(count), *(len(str(table[count])) for table in changed)) for count in shown}
    lines = ["  " + "table".ljust(name_width) + "".join(f"  {count:>{widths[count]}}" for count in shown)]
    for table in changed:
        cells = "".join(f"  {table[count]:>{widths[count]}}" for count in shown)
        lines.append("  " + table["name"].ljust(name_width) + cells)
    return lines + rest


def _files(files: Mapping[str, int] | None) -> list[str]:
    if files is None:
        return []
    return [
        "  files: "
        + ", ".join(f"{files[count]} {count}" for count in FILE_COUNTS if files[count] or count == "unchanged")
    ]


def _drift(drift: Mapping[str, Any]) -> str:
    return f"{drift['where']} was {drift['was'] or 'not there'}, is {drift['now'] or 'not there'}: {drift['action']}"


def _dependency(each: Mapping[str, Any]) -> str:
    more = f" (add --module {each['module']} to have all of it)" if each["module"] else ""
    return f"{each['sentence']}{more}"


def _samples(table: str, rows: Sequence[Mapping[str, Any]], mode: str) -> Iterator[str]:
    rows = [row for row in rows if row["change"] != "kept" or mode == "merge"]
    for row in rows[:SAMPLES_SHOWN_MAX]:
        key = ", ".join(f"{name}={_value(value)}" for name, value in row["key"].items())
        because = f" ({_because(row['because'])})" if row["because"] else ""
        is_away = row["change"] == "kept" and not row["before"]
        yield f"  {table} {key} {'stays away' if is_away else _VERBS[row['change']]}{because}{_fields(row)}"
    if len(rows) > SAMPLES_SHOWN_MAX:
        yield f"  {table}: {len(rows) - SAMPLES_SHOWN_MAX} more samples with --json"


def _because(reason: str) -> str:
    return f"policy {reason}" if reason in POLICIES else reason


def _fields(row: Mapping[str, Any]) -> str:
    before, after = row["before"] or {}, row["after"] or {}
    if not (before and after):
        return ""
    fields = row["fields"][:FIELDS_SHOWN_MAX]
    shown = ", ".join(f"{name}: {_value(before.get(name))} -> {_value(after.get(name))}" for name in fields)
    more = len(row["fields"]) - len(fields)
    return f": {shown}{f' and {more} more' if more else ''}" if shown else ""


def _value(value: str | None) -> str:
    if value is None:
        return "null"
    text = "".join(character if character.isprintable() else "·" for character in value)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"


def _path(each: Mapping[str, Any]) -> str:
    path = "".join(character if character.isprintable() else "·" for character in each["path"])
    known = (each["size_before"], each["size_after"]) != (None, None)
    sizes = f" ({_bytes(each['size_before'])} -> {_bytes(each['size_after'])})" if known else ""
    return f"{path} {_VERBS[each['change']]}{sizes}{': ' + each['because'] if each['because'] else ''}"


def _bytes(size: int | None) -> str:
    return "not there" if size is None else f"{size} bytes"


def _end(data: Mapping[str, Any]) -> Iterator[str]:
    if data["state"] in ("making", "failed"):
        return
    if not data["sources"]:
        yield "what it showed was dropped some time after it expired"
        return
    if data["not_in_backup"]:
        yield f"not in this backup, and left as it is: {', '.join(data['not_in_backup'])}"
    if data["left_of_undone"]:
        yield f"not part of this, and still to be undone afterwards: {', '.join(data['left_of_undone'])}"
    yield from (data["loss"] or ["nothing newer would be overwritten" if data["undoes"] else "nothing would be lost"])
    yield _time(data["estimate"])
    if data["estimate"]["staged_bytes"]:
        yield f"room needed at the target while it runs: {data['estimate']['staged_bytes']} bytes"
    if data["state"] == "ready":
        confirm = f" --confirm {data['tenant']}" if data["in_place"] else ""
        yield "it has expired" if data["expired"] else f"to do exactly this: restore run {data['plan']}{confirm}"


def _time(estimate: Mapping[str, Any]) -> str:
    if estimate["seconds"] is None:
        return "how long it will take is not known: nothing like it was done here yet"
    count, seconds = estimate["restores"], estimate["seconds"]
    plural = "s" * (count != 1)
    by = {
        "tenant": f"the last {count} restore{plural} of this kind for this tenant",
        "drills": f"the last {count} drill{plural} of this tenant",
        "all tenants": f"the last {count} restore{plural} of this kind for all tenants",
    }
    return f"it will take about {seconds} second{'s' * (seconds != 1)}, by {by[estimate['from']]}"
