"""Where every address leads; apps bring their own."""

from importlib.util import find_spec

from django.urls import URLPattern, URLResolver, include, path

from config import health, metrics

urlpatterns: list[URLPattern | URLResolver] = [
    path("health/live", health.live),
    path("health/ready", health.ready),
    path("metrics", metrics.metrics),
    path("", include("access.urls")),
    path("api/", include("api.urls")),
]

# The panel has the root.
if find_spec("panel.urls") is not None:
    urlpatterns.append(path("", include("panel.urls")))
