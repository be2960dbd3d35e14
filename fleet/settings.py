"""Settings of the control plane and the registry, read from ``POCKETFLEET_*`` variables.

Nothing set gives the embedded default: SQLite, ``filesystem://`` broker and a blob folder under
``var/``, with a secret generated there. See docs/operator-guide.md for every variable.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

from tenancy.env import env_bool, env_float, env_int, env_list, env_path, env_str

BASE_DIR = Path(__file__).resolve().parent.parent
VAR = env_path("POCKETFLEET_VAR", BASE_DIR / "var")


def _generated_secret() -> str:
    """The embedded default's secret: made once, readable by its owner alone."""
    path = VAR / "secret_key"
    if not path.exists():
        VAR.mkdir(parents=True, exist_ok=True)
        temporary = VAR / f".secret_key.{secrets.token_hex(8)}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(50))
        with suppress(FileExistsError):  # of two first processes, one's secret counts for both
            os.link(temporary, path)
        temporary.unlink()
    return path.read_text().strip()


def _database(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": parts.path,
            "OPTIONS": {
                "timeout": 20,
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=20000;",
            },
        }
    if parts.scheme in ("postgres", "postgresql"):
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path.lstrip("/")),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": parts.hostname or "",
            "PORT": str(parts.port or ""),
            "OPTIONS": {
                "pool": {"min_size": 1, "max_size": env_int("POCKETFLEET_DATABASE_POOL", 8, minimum=1)},
                **dict(parse_qsl(parts.query)),
            },
        }
    raise ImproperlyConfigured(f"POCKETFLEET_DATABASE_URL: {parts.scheme!r} is neither sqlite nor postgres")


DEBUG = env_bool("POCKETFLEET_DEBUG", False)
EMBEDDED = not env_str("POCKETFLEET_DATABASE_URL", "").startswith("postgres")
SECRET_KEY = os.environ.get("POCKETFLEET_SECRET_KEY") or (
    _generated_secret() if EMBEDDED else env_str("POCKETFLEET_SECRET_KEY")
)
PUBLIC_URL = env_str("POCKETFLEET_PUBLIC_URL", "http://127.0.0.1:8440").rstrip("/")
_public = urlsplit(PUBLIC_URL)
if _public.scheme not in ("http", "https") or not _public.hostname:
    raise ImproperlyConfigured(f"POCKETFLEET_PUBLIC_URL={PUBLIC_URL!r} is not an http(s) address")
_https = _public.scheme == "https"
ALLOWED_HOSTS = env_list("POCKETFLEET_ALLOWED_HOSTS", f"{_public.hostname},127.0.0.1,localhost")
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]

# Secure by default wherever the public address is https.
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
SESSION_COOKIE_HTTPONLY = True
SECURE_HSTS_SECONDS = env_int("POCKETFLEET_HSTS_SECONDS", 31536000 if _https else 0)
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if _https else None
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "rest_framework",
    "drf_spectacular",
    "django_htmx",
    "tenancy",
    "models_registry",
    "fleet",
    "fleet.devices",
    "fleet.telemetry",
    "fleet.rollouts",
    "fleet.device_api",
    "fleet.management_api",
    "fleet.console",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "fleet.console.middleware.ContentSecurityPolicy",
]
ROOT_URLCONF = "fleet.urls"
WSGI_APPLICATION = "fleet.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

DATABASES = {"default": _database(env_str("POCKETFLEET_DATABASE_URL", f"sqlite://{VAR}/pocketfleet.sqlite3"))}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Telemetry writes in the control data's file would hold up everything else (one writer a file).
    DATABASES["telemetry"] = _database(f"sqlite://{VAR}/telemetry.sqlite3")
    DATABASE_ROUTERS = ["fleet.telemetry.routing.TelemetryRouter"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
LOGIN_URL = "console:login"
LOGIN_REDIRECT_URL = "console:fleet"
LOGOUT_REDIRECT_URL = "console:login"

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
STATIC_URL = "/static/"
STATIC_ROOT = env_path("POCKETFLEET_STATIC_ROOT", VAR / "static")
WHITENOISE_IMMUTABLE_FILE_TEST = r"^/static/vendor/[^/]+-[0-9.]+/"  # versioned folders never change
WHITENOISE_USE_FINDERS = True  # serves without collectstatic; production images collect
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 * 2**20  # bytes of any body that is read whole

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        "fleet.management_api.authentication.TokenAuthentication",
        "fleet.management_api.authentication.SessionAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": ["fleet.management_api.permissions.HasScope"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["fleet.management_api.parsers.StrictJSONParser"],
    "DEFAULT_PAGINATION_CLASS": "fleet.management_api.pagination.CreatedCursorPagination",
    "DEFAULT_SCHEMA_CLASS": "fleet.management_api.schema.ProblemAutoSchema",
    "EXCEPTION_HANDLER": "fleet.management_api.problems.exception_handler",
    "PAGE_SIZE": 50,
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Pocketfleet management API",
    "DESCRIPTION": (
        "Everything the console does, for app teams.\n\n"
        "- Send a token of your app with each call: `Authorization: Bearer pf_…`. Its scopes say what it may do.\n"
        "- Errors are `application/problem+json` with a stable `code` and a `detail` that says what to do next.\n"
        "- Lists come in pages: follow `next` until it is null; `page_size` is 50, at most 200.\n"
        "- A creating POST takes an `Idempotency-Key`: sent again with the same body, it creates nothing twice."
    ),
    "VERSION": "1",
    "OAS_VERSION": "3.1.0",
    "SERVE_INCLUDE_SCHEMA": False,
    "SERVE_PERMISSIONS": [],
    "SERVE_AUTHENTICATION": [],
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "ENUM_NAME_OVERRIDES": {
        "VersionState": "models_registry.models.ModelVersion.State",
        "BuildState": "models_registry.models.Build.State",
        "TailoringState": "models_registry.models.Tailoring.State",
        "ReleaseState": "models_registry.models.Release.State",
        "DeviceState": "fleet.devices.models.Device.State",
        "RolloutState": "fleet.rollouts.models.Rollout.State",
        "AssignmentState": "fleet.rollouts.models.Assignment.State",
    },
}

# Pocketfleet's own
BROKER_URL = env_str("POCKETFLEET_BROKER_URL", "filesystem://")
BROKER_FOLDER = env_path("POCKETFLEET_BROKER_FOLDER", VAR / "broker")
BLOBS_URL = env_str("POCKETFLEET_BLOBS_URL", f"file://{VAR}/blobs")
KEYS_FOLDER = env_path("POCKETFLEET_KEYS", VAR / "keys")
MAX_UPLOAD_BYTES = env_int("POCKETFLEET_MAX_UPLOAD_BYTES", 64 * 2**30, minimum=1)
TOKEN_KEY_EPOCH = env_int("POCKETFLEET_TOKEN_KEY_EPOCH", 1, minimum=1)  # raising it revokes all device tokens
POLL_INTERVAL_S = env_float("POCKETFLEET_POLL_INTERVAL_S", 300.0)
SWEEP_INTERVAL_S = env_float("POCKETFLEET_SWEEP_INTERVAL_S", 5.0)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": env_str("POCKETFLEET_LOG_LEVEL", "INFO")},
}
