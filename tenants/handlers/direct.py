"""A connector whose `prepare` is not there yet, restored in one step at the commit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from engine.ports import Connector, ImageSink, PreparedRestore, RestoreReport, RestoreRequest, SourceView
from engine.progress import Progress


class _Direct:
    def __init__(self, connector: Connector, view: SourceView, request: RestoreRequest, progress: Progress) -> None:
        self._work = (view, request, progress)
        self._connector = connector
        self.report = RestoreReport()
        self.token: Mapping[str, Any] = {}

    def image(self, sink: ImageSink) -> None:
        """Writes nothing."""

    def commit(self) -> None:
        """Do it all."""
        self.report = self._connector.restore(*self._work)


@contextmanager
def prepare_directly(
    connector: Connector, view: SourceView, request: RestoreRequest, progress: Progress
) -> Iterator[PreparedRestore]:
    """Prepare nothing."""
    yield _Direct(connector, view, request, progress)
