"""WSGI entry point: `gunicorn --pythonpath platform,. config.wsgi` (paths only where it is not installed)."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

application = get_wsgi_application()
