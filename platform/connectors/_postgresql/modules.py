"""Which tables of a backup a restore was asked for."""

import difflib

from connectors._postgresql import large_objects
from engine.errors import NameUnknown
from engine.ports import RestoreRequest, SourceView, TableView

CLOSE_NAMES_MAX = 3


def chosen_views(view: SourceView, request: RestoreRequest) -> list[TableView]:
    """The tables of the selected modules, all of them in the other modes. NameUnknown for a module that there is not."""
    views = [table for table in view.tables if table.name != large_objects.NAME]
    if request.mode != "selective":
        return views
    known = {table.module for table in view.tables}
    for module in request.modules:
        if module not in known:
            close = difflib.get_close_matches(module, sorted(known), CLOSE_NAMES_MAX)
            raise NameUnknown(
                f"the backup of {view.name} has no module {module!r}",
                hint=f"did you mean {', '.join(close)}?" if close else f"it has {', '.join(sorted(known))}",
            )
    return [table for table in views if table.module in request.modules]
