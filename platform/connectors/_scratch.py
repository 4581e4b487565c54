"""Throw-away targets in a folder of their own: for every source whose target is a path."""

import os
import shutil
from typing import TYPE_CHECKING, Any, Self

from engine.errors import SourceUnsupported, TargetError
from engine.ports import ScratchSite


class FolderScratch:
    """The scratch half of engine.ports.Connector for connectors with `path` as their target setting."""

    scratch_file = "restored"
    """Name of the restored folder or file in the throw-away folder."""

    if TYPE_CHECKING:

        def at(self, target: Any) -> Self:
            """The connector's own."""

    def scratch(self, name: str, site: ScratchSite) -> Self:
        """The connector on a path in the new folder `<site.folder>/<name>`. Raises TargetError."""
        try:
            os.makedirs(os.path.join(site.folder, name), mode=0o700, exist_ok=True)
        except OSError as error:
            raise TargetError(
                f"cannot make {site.folder}/{name}: {error.strerror}", hint="LASTRO_DRILL_FOLDER names another place"
            ) from error
        return self.at({"path": self._scratch_path(name, site)})

    def _scratch_path(self, name: str, site: ScratchSite) -> str:
        return os.path.join(site.folder, name, self.scratch_file)

    def scratch_ask(self, name: str, site: ScratchSite, question: str, *, seconds: int) -> str:
        """Raises SourceUnsupported: there is nothing here that answers SQL."""
        raise SourceUnsupported("this source answers no SQL", hint="use a check of kind command")

    def question_try(self, question: str, *, seconds: int) -> str | None:
        """Raises SourceUnsupported: there is nothing here that answers SQL."""
        raise SourceUnsupported("this source answers no SQL", hint="use a check of kind command")

    def scratch_place(self, name: str, site: ScratchSite) -> dict[str, str]:
        """`path` of what was restored, for commands that look at it."""
        return {"path": self._scratch_path(name, site)}

    def scratch_drop(self, name: str, site: ScratchSite) -> None:
        """Remove the folder; no error when there is none. Raises TargetError."""
        try:
            shutil.rmtree(os.path.join(site.folder, name))
        except FileNotFoundError:
            return
        except OSError as error:
            raise TargetError(f"cannot remove {site.folder}/{name}: {error.strerror}") from error
