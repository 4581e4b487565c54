"""The schema document of a backup, and the catalogue that its definitions make."""

import contextlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from connectors._sqlite.catalog import Catalog, catalog_read
from connectors._sqlite.read import SCHEMA_DOCUMENT
from engine.ports import SourceView


@dataclass(frozen=True, slots=True)
class StoredSchema:
    """The schema document of a backup."""

    objects: list[dict[str, str]]
    pragmas: Mapping[str, Any]
    sequences: Mapping[str, int]
    sorts: Mapping[str, str]

    @classmethod
    def of(cls, view: SourceView) -> "StoredSchema":
        raw = json.loads(view.documents[SCHEMA_DOCUMENT].read())
        return cls(raw["objects"], raw["pragmas"], raw["sequences"], raw["sorts"])

    def of_type(self, *types: str) -> list[dict[str, str]]:
        return [each for each in self.objects if each["type"] in types]

    def catalog(self) -> Catalog:
        """Tables, keys and indexes as they were; what this SQLite cannot make is left out."""
        return catalog_of([each for each in self.objects if self.sorts.get(each["name"]) != "virtual"])


def catalog_of(objects: Sequence[Mapping[str, str]]) -> Catalog:
    """The catalogue that definitions of tables and indexes make; what cannot be made is left out."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as scratch:
        for each in sorted(objects, key=lambda each: each["type"] != "table"):
            if each["type"] in ("table", "index"):
                with contextlib.suppress(sqlite3.Error):
                    scratch.execute(each["sql"])
        return catalog_read(scratch)
