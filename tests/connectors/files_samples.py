"""A folder under a files connector, its backups, and restores of it as the services run them."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from connectors.files import FilesConfig, FilesConnector
from engine.adapters import parse_config
from engine.plans import Preview
from engine.ports import RestoreReport, RestoreRequest, SourceView
from engine.progress import NullProgress
from engine.repository import Repository
from engine.views import StoredSource
from tests.engine.tree_samples import save


class Folder:
    """One source: a folder, its connector, its backups."""

    def __init__(self, repository: Repository, root: Path, exclude: str = "") -> None:
        self.repository, self.root = repository, root
        self.use(exclude)

    def use(self, exclude: str) -> None:
        """Have other patterns from now on."""
        self.connector = FilesConnector(parse_config(FilesConfig, {"path": str(self.root), "exclude": exclude}))

    def backup(self) -> SourceView:
        with self.connector.open(NullProgress()) as reader:
            (part,) = reader.trees()
            saved = save(self.repository, part.root, exclude=part.exclude, one_file_system=part.one_file_system)
            facts = {**reader.facts, **reader.finish()}
        source = StoredSource("assets", "files", "assets", reader.position, facts, (), (saved.view,), {})
        return cast(SourceView, source)

    def preview(self, view: SourceView, **wish: Any) -> Preview:
        return self.connector.preview(view, _request(wish), NullProgress())

    def restore(self, view: SourceView, **wish: Any) -> RestoreReport:
        """Preview, safety backup, prepare, commit; what was shown must be what is done."""
        request = _request(wish)
        shown = self.connector.preview(view, request, NullProgress())
        bound = replace(request, digest=shown.digest, saved=self.backup(), prove=True)
        with self.connector.prepare(view, bound, NullProgress()) as prepared:
            assert (self.connector.settle(prepared.token) is True) is ("nothing" in prepared.token)
            prepared.commit()
        assert self.connector.settle(prepared.token) is True
        assert prepared.report.digest == shown.digest
        assert prepared.report.files == shown.files
        assert all(check.passed for check in prepared.report.checks), prepared.report.checks
        assert leftovers(self.root) == []
        return prepared.report


def _request(wish: dict[str, Any]) -> RestoreRequest:
    return RestoreRequest(**{"label": "rst_1", "overwrite": True, **wish})


def leftovers(root: Path) -> list[str]:
    """Names of ours in the folder and beside it."""
    return [name for place in (root, root.parent) if place.exists() for name in os.listdir(place) if ".lastro-" in name]


def contents(root: Path) -> dict[str, str]:
    """Text of every file by path; a trailing slash marks a folder, `-> ` a link."""
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = "-> " + os.readlink(path)
        elif path.is_dir():
            found[name + "/"] = ""
        elif path.is_file():
            found[name] = path.read_text()
    return found


def lay(root: Path, tree: dict[str, str]) -> Path:
    """The inverse of `contents`, into what is there."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(exist_ok=True)
        elif text.startswith("-> "):
            path.symlink_to(text[3:])
        else:
            path.write_text(text)
    return root
