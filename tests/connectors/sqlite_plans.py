"""Previews, restores in place and undos of SQLite sources through real change images: what their tests share."""

import itertools
from typing import Any

from connectors.sqlite import SqliteConnector
from engine.images import ImageReader, ImageWriter
from engine.manifest import Manifest
from engine.plans import Preview
from engine.ports import RestoreReport, RestoreRequest
from engine.progress import NullProgress
from tests.connectors.sqlite_samples import Bench

_images = itertools.count()


class Operator:
    """Somebody who previews, restores and takes back, one SQLite source."""

    def __init__(self, bench: Bench, connector: SqliteConnector) -> None:
        self.bench, self.connector = bench, connector

    def request(self, base: Manifest | None = None, **settings: Any) -> RestoreRequest:
        settings.setdefault("label", "rst_1")
        return RestoreRequest(base=None if base is None else self.bench.view(base), **settings)

    def preview(self, manifest: Manifest, base: Manifest | None = None, **settings: Any) -> Preview:
        return self.connector.preview(self.bench.view(manifest), self.request(base, **settings), NullProgress())

    def restore(self, manifest: Manifest, base: Manifest | None = None, **settings: Any) -> tuple[RestoreReport, str]:
        """Preview, apply exactly that with its image; the report and the image's name."""
        shown = self.preview(manifest, base, **settings)
        name = f"image_{next(_images)}"
        request = self.request(base, digest=shown.digest, **settings)
        with self.connector.prepare(self.bench.view(manifest), request, NullProgress()) as prepared:
            writer = ImageWriter(self.bench.repository, name)
            prepared.image(writer)
            writer.close()
            prepared.commit()
            report: RestoreReport = prepared.report
        assert report.tables == shown.tables, "what is applied is what was previewed"
        assert report.digest == shown.digest
        assert self.connector.settle(prepared.token) is True
        return report, name

    def undo_preview(self, image: str) -> Preview:
        return self.connector.preview_undo(ImageReader(self.bench.repository, image), self.request(), NullProgress())

    def undo(self, image: str, digest: str = "") -> tuple[RestoreReport, str]:
        """Take a restore back, with an image of that; the report and the image's name."""
        name = f"image_{next(_images)}"
        view, request = ImageReader(self.bench.repository, image), self.request(digest=digest)
        with self.connector.prepare_undo(view, request, NullProgress()) as prepared:
            writer = ImageWriter(self.bench.repository, name)
            prepared.image(writer)
            writer.close()
            prepared.commit()
            report: RestoreReport = prepared.report
        return report, name
