"""Django's settings, all of them from `config.environment`."""

import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from config.databases import catalogue_database
from config.environment import read
from core import logs
from core.durable import private_folder, read_or_create

ENVIRONMENT = read()
_PACKAGE = Path(__file__).resolve().parent
_ROOT = _PACKAGE.parent.parent

try:
    LASTRO_DATA = private_folder(ENVIRONMENT.data)
    SECRET_KEY = (
        ENVIRONMENT.secret_key
        or read_or_create(
            LASTRO_DATA / "keys" / "django-secret-key", lambda: secrets.token_urlsafe(50).encode()
        ).decode()
    )
except OSError as error:
    raise ImproperlyConfigured(f"LASTRO_DATA: cannot use {ENVIRONMENT.data}: {error.strerror}") from error

LASTRO_ROOT_KEY = ENVIRONMENT.root_key
LASTRO_ROOT_KEY_OLD = ENVIRONMENT.root_key_old
LASTRO_KMS_KEY_ID = ENVIRONMENT.kms_key_id
LASTRO_KMS_ENDPOINT = ENVIRONMENT.kms_endpoint
LASTRO_KMS_REGION = ENVIRONMENT.kms_region
LASTRO_FOUR_EYES = ENVIRONMENT.four_eyes
LASTRO_APPROVAL_HOURS = ENVIRONMENT.approval_hours
LASTRO_HEARTBEAT_SECONDS = ENVIRONMENT.heartbeat_seconds
LASTRO_WORKERS = ENVIRONMENT.workers
LASTRO_DRILL_FOLDER = ENVIRONMENT.drill_folder
LASTRO_DRILL_DSN = ENVIRONMENT.drill_dsn
LASTRO_HOOK_COMMANDS = ENVIRONMENT.hook_commands
LASTRO_PLAN_HOURS = ENVIRONMENT.plan_hours
LASTRO_UNDO_DAYS = ENVIRONMENT.undo_days
LASTRO_HISTORY_DAYS = ENVIRONMENT.history_days
LASTRO_EVIDENCE_DAYS = ENVIRONMENT.evidence_days
LASTRO_TRASH_DAYS = ENVIRONMENT.trash_days
LASTRO_RETENTION_ZONE = ENVIRONMENT.retention_zone
LASTRO_REDIS_URL = ENVIRONMENT.redis_url
LASTRO_STOP_SECONDS = ENVIRONMENT.stop_seconds
LASTRO_SCHEDULE_RUNS_MAX = ENVIRONMENT.schedule_runs_max
INHERITED_SCHEDULE = ENVIRONMENT.inherited_schedule
LASTRO_AUDIT_CHECKPOINT_ENTRIES = ENVIRONMENT.audit_checkpoint_entries
LASTRO_AUDIT_CHECKPOINT_MINUTES = ENVIRONMENT.audit_checkpoint_minutes
LASTRO_AUDIT_WITNESS = ENVIRONMENT.audit_witness
LASTRO_AUDIT_SYSLOG = ENVIRONMENT.audit_syslog
LASTRO_AUDIT_SYSLOG_FORMAT = ENVIRONMENT.audit_syslog_format
LASTRO_AUDIT_SYSLOG_CA = ENVIRONMENT.audit_syslog_ca
LASTRO_AUDIT_SYSLOG_CERTIFICATE = ENVIRONMENT.audit_syslog_certificate
LASTRO_METRICS_TOKEN = ENVIRONMENT.metrics_token
LASTRO_METRICS_ALLOW = ENVIRONMENT.metrics_allow
LASTRO_METRICS_TENANTS = ENVIRONMENT.metrics_tenants
LASTRO_METRICS_SECONDS = ENVIRONMENT.metrics_seconds
LASTRO_DEBUG = ENVIRONMENT.debug
LASTRO_LOG_LEVEL = ENVIRONMENT.log_level
LASTRO_OUTGOING_ALLOW = ENVIRONMENT.outgoing_allow
LASTRO_SMTP_URL = ENVIRONMENT.smtp_url
LASTRO_PING_URL = ENVIRONMENT.ping_url
LASTRO_PUBLIC_URL = ENVIRONMENT.public_url
INHERITED_CHANNELS = ENVIRONMENT.inherited_channels
INHERITED_STORES = ENVIRONMENT.inherited_stores

# ---------------------------------------------------------------- Django

DEBUG = ENVIRONMENT.debug
ALLOWED_HOSTS = list(ENVIRONMENT.allowed_hosts)
ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
ASGI_APPLICATION = "config.asgi.application"
DATABASES = {"default": catalogue_database(ENVIRONMENT.database_url, LASTRO_DATA)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"

# Each app costs time at the start of every command; what only the web needs is imported by its URLs.
INSTALLED_APPS = [
    "config.apps.ConfigConfig",
    "core",
    "audit",
    "access",
    "operations",
    "tenants",
    "releases",
    "api",
    "panel",
    "django_q",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "config.requests.RequestIds",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# A checkout has its templates beside platform/, an installed wheel inside config/.
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [_ROOT / "templates", _PACKAGE / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# ---------------------------------------------------------------- access

AUTH_USER_MODEL = "access.Account"
AUTHENTICATION_BACKENDS = ["access.backends.AccountBackend"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "access:login"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "access:login"

SESSION_COOKIE_AGE = ENVIRONMENT.session_hours * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = ENVIRONMENT.tls
CSRF_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_TRUSTED_ORIGINS = list(ENVIRONMENT.trusted_origins)
SECURE_SSL_REDIRECT = ENVIRONMENT.tls
SECURE_REDIRECT_EXEMPT = [r"^health/"]
SECURE_HSTS_SECONDS = 31_536_000 if ENVIRONMENT.tls else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = ENVIRONMENT.tls
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if ENVIRONMENT.behind_proxy else None
X_FRAME_OPTIONS = "DENY"

# ---------------------------------------------------------------- API

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["api.authentication.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["api.permissions.Scoped"],
    "DEFAULT_PARSER_CLASSES": ["api.bodies.StrictJson"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_THROTTLE_CLASSES": ["api.throttles.TokenRate"],
    "DEFAULT_SCHEMA_CLASS": "api.schema.Schema",
    "EXCEPTION_HANDLER": "api.problems.answer",
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Lastro",
    "DESCRIPTION": "Backs up, restores and proves every tenant of a software platform.",
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SCHEMA_PATH_PREFIX": r"/api/(v1|admin)",
    "PREPROCESSING_HOOKS": ["api.schema.without_aliases"],
    "COMPONENT_SPLIT_REQUEST": True,
}

# ---------------------------------------------------------------- static files

STATIC_URL = "static/"
# Served straight from the apps' folders: there is no step of collecting that could be forgotten.
WHITENOISE_USE_FINDERS = True

# ---------------------------------------------------------------- operations

_DAY = 86_400

# django-q2 carries ids of operations; our claim, lease and heartbeat decide. `retry` counts from the moment a
# task is fetched, even if it then waits for a worker, so it stands far above the longest operation: a task that
# comes back is refused by the claim, and one that was lost with its worker is found by the reaper.
Q_CLUSTER = {
    "name": "lastro",
    "label": "Lastro",
    "orm": "default",
    "broker_class": "operations.broker.IdleBroker",
    "workers": ENVIRONMENT.workers,
    "queue_limit": 1,
    "bulk": 1,
    "timeout": 7 * _DAY,
    "retry": 8 * _DAY,
    "max_attempts": 1,
    "ack_failures": True,
    "catch_up": False,
    "save_limit": 250,
    "recycle": 100,
    "poll": 0.5,
    "compress": False,
}

# ---------------------------------------------------------------- logging

LOGGING_CONFIG = None
logs.configure(LASTRO_DATA / "log", level=ENVIRONMENT.log_level, stderr=ENVIRONMENT.log_stderr)
