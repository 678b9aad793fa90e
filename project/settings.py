"""Every setting of Zoetrope, read once from the environment.

Without DATABASE_URL this copy runs on its own embedded services: their addresses and the
secrets then come from ZOETROPE_HOME. With it, every secret must be given. Each variable
stands in `.env.example` with its default.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

from project import appearance, env, logging, state

BASE_DIR = Path(__file__).resolve().parent.parent
ZOETROPE_HOME = state.home()

# --- Where the services are -----------------------------------------------------------
EMBEDDED = not env.text(
    "DATABASE_URL", ""
)  # Postgres from the wheel, secrets made here
_local = state.addresses(ZOETROPE_HOME)
_made = state.local_secrets(ZOETROPE_HOME) if EMBEDDED else {}


def _service(name: str, default: str | None = None) -> str:
    return env.text(name, _local.get(name, default))


def _secret(name: str) -> str:
    return env.text(name, _made.get(name))


# Until `manage.py up` has started them, embedded services have no address: port 9 of
# loopback refuses at once.
DATABASE_URL = _service("DATABASE_URL", "postgresql://zoetrope@127.0.0.1:9/zoetrope")
REDIS_URL = _service("REDIS_URL", "redis://127.0.0.1:9/0")
REDIS_PREFIX = env.text("REDIS_PREFIX", "zoetrope:")  # before every key we use there
S3_ENDPOINT_URL = _service("S3_ENDPOINT_URL", "http://127.0.0.1:9")
S3_PUBLIC_ENDPOINT_URL = env.text("S3_PUBLIC_ENDPOINT_URL", S3_ENDPOINT_URL)  # in links
S3_BUCKET = env.text("S3_BUCKET", "zoetrope")
S3_PREFIX = env.text("S3_PREFIX", "")  # put before every key; tests share one bucket
S3_REGION = env.text("S3_REGION", "us-east-1")
S3_ACCESS_KEY = _service("S3_ACCESS_KEY", "zoetrope")
S3_SECRET_KEY = _service(
    "S3_SECRET_KEY", None if env.text("S3_ENDPOINT_URL", "") else ""
)

# --- Secrets --------------------------------------------------------------------------
SECRET_KEY = _secret("SECRET_KEY")  # Django: sessions, signatures
# Former ones, with commas: what they signed (links, callbacks) stays good
SECRET_KEY_FALLBACKS = env.words("SECRET_KEY_FALLBACKS")
SECRETS_KEY = _secret(
    "SECRETS_KEY"
)  # Fernet key; encrypts secrets we must use ourselves
API_KEY_PEPPER = _secret("API_KEY_PEPPER")  # HMAC key of our own API keys
METRICS_TOKEN = _secret("METRICS_TOKEN")  # bearer token for /metrics

# How often the use of API keys is written down, seconds; 0: never
API_KEY_TOUCH_SECONDS = env.number("API_KEY_TOUCH_SECONDS", 15.0)

# --- Web ------------------------------------------------------------------------------
PORT = env.integer("PORT", 8000, minimum=1)
WEB_HOST = env.text("WEB_HOST", "127.0.0.1")
WEB_WORKERS = env.integer("WEB_WORKERS", min(os.cpu_count() or 1, 4), minimum=1)
GIVEN_PUBLIC_URL = env.text("PUBLIC_URL", "").rstrip("/")
PUBLIC_URL = GIVEN_PUBLIC_URL or _local.get("PUBLIC_URL", f"http://127.0.0.1:{PORT}")
HTTPS = PUBLIC_URL.startswith("https://")
FLOWER_HOST = env.text("FLOWER_HOST", "127.0.0.1")
FLOWER_PORT = env.integer("FLOWER_PORT", 5555, minimum=1)
FLOWER_USER = env.text("FLOWER_USER", "zoetrope")
FLOWER_PASSWORD = _secret("FLOWER_PASSWORD")

DEBUG = env.boolean("DEBUG", False)
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]") + [
    host for host in [urlsplit(PUBLIC_URL).hostname] if host
]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL, *env.words("CSRF_TRUSTED_ORIGINS")]
TRUSTED_PROXIES = env.words("TRUSTED_PROXIES")  # networks whose X-Forwarded-For counts
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_SSL_REDIRECT = HTTPS
SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]  # probes speak http
SECURE_HSTS_SECONDS = 31_536_000 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
if HTTPS:
    # The browser then takes these cookies from this host over https alone.
    SESSION_COOKIE_NAME, CSRF_COOKIE_NAME = "__Host-sessionid", "__Host-csrftoken"
SESSION_COOKIE_HTTPONLY = CSRF_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_AGE = env.integer("SESSION_SECONDS", 8 * 3600)  # one shift at the admin
APPEND_SLASH = False  # several dialects' paths differ by their slash only

# A picture of 10 MB is 13.4 MB in base64; the API's own limits are stricter and say so.
DATA_UPLOAD_MAX_MEMORY_SIZE = env.integer("MAX_BODY_BYTES", 40 * 1024 * 1024)
# Large bodies that one web process holds at once; beyond, callers are told to wait
BODIES_BYTES = env.integer(
    "BODIES_BYTES",
    8 * DATA_UPLOAD_MAX_MEMORY_SIZE,
    minimum=2 * DATA_UPLOAD_MAX_MEMORY_SIZE,
)
STRANGER_BODY_BYTES = 64 * 1024  # enough for a login form or a token exchange
# Refused keys per address: enough for a broken client, few for a guesser
BAD_KEYS_PER_MINUTE = env.integer("BAD_KEYS_PER_MINUTE", 60)
FILE_UPLOAD_MAX_MEMORY_SIZE = DATA_UPLOAD_MAX_MEMORY_SIZE
DATA_UPLOAD_MAX_NUMBER_FILES = 10
# A page of the admin has 100 rows to tick; a thousand parts cost a second to read
DATA_UPLOAD_MAX_NUMBER_FIELDS = 500

ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
INSTALLED_APPS = [
    "unfold.apps.BasicAppConfig",
    "unfold.contrib.filters",
    "project.apps.AdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
    "django.contrib.humanize",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "axes",
    "django_otp",
    "django_otp.plugins.otp_totp",
    "billing",
    "jobs",
    "project",
]
MIDDLEWARE = [
    "project.proxies.ProxyMiddleware",
    "project.hosts.HostMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
    "project.headers.AdminPolicy",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "project" / "templates"],  # before those of packages
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
STATIC_URL = "/static/"
WHITENOISE_USE_FINDERS = True  # assets are served from the packages; nothing to collect
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
FORMAT_MODULE_PATH = "project.formats"
USE_TZ = True

# --- Database -------------------------------------------------------------------------
# Keep hot statements prepared; switch off behind a pooler that shares connections
DATABASE_PREPARE = env.boolean("DATABASE_PREPARE", True)
DATABASE_POOL = env.integer("DATABASE_POOL", 10)  # connections per process; 0: no pool


def database_settings(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    options: dict[str, Any] = dict(parse_qsl(parts.query))
    host = options.pop("host", unquote(parts.hostname or ""))
    # Set on every connection of ours: a forgotten transaction must not hold a job's row.
    options["options"] = "-c idle_in_transaction_session_timeout=60s"
    options["connect_timeout"] = 5
    if DATABASE_POOL:
        options["pool"] = {"min_size": 0, "max_size": DATABASE_POOL, "timeout": 5}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": host,
        "PORT": str(parts.port or options.pop("port", 5432)),
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "OPTIONS": options,
        "CONN_MAX_AGE": 0,  # the pool keeps them, in fewer than there are threads
    }


DATABASES = {"default": database_settings(DATABASE_URL)}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# --- Admin's door ---------------------------------------------------------------------
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
AXES_FAILURE_LIMIT = env.integer("LOGIN_FAILURES", 5, minimum=1)
AXES_COOLOFF_TIME = env.number("LOGIN_LOCK_HOURS", 1.0)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
OTP_TOTP_ISSUER = "Zoetrope"
OTP_ADMIN_HIDE_SENSITIVE_DATA = True

# --- REST framework -------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
}
SPECTACULAR_SETTINGS = {
    "TITLE": "Zoetrope",
    "DESCRIPTION": "Still images in, videos out. Recipes are in "
    "[the guide](/docs/guide).",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    "PATH_CONVERTER_OVERRIDES": {"segment": str},
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "SWAGGER_UI_SETTINGS": {
        "deepLinking": True,
        "docExpansion": "list",
        "defaultModelsExpandDepth": 0,
        "persistAuthorization": False,
        "validatorUrl": None,  # it would send the document to somebody else
    },
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "jobs.api.schema.add_dialects",
    ],
}
UNFOLD = appearance.UNFOLD

# --- Jobs: leases, deadlines and the two loops (seconds unless named otherwise) -------
LEASE_SECONDS = env.number("LEASE_SECONDS", 90.0)  # a silent worker loses its job
HEARTBEAT_SECONDS = env.number("HEARTBEAT_SECONDS", 20.0)
PREPARE_SECONDS = env.number("PREPARE_SECONDS", 600.0)  # for a step before the run
STEP_TRIES = env.integer("STEP_TRIES", 3, minimum=1)  # of one step on one route
RUN_DEADLINE_SECONDS = env.number("RUN_DEADLINE_SECONDS", 900.0)  # at least this long…
RUN_DEADLINE_FACTOR = env.number("RUN_DEADLINE_FACTOR", 4.0)  # …or so many estimates
RECONCILE_SECONDS = env.number("RECONCILE_SECONDS", 86_400.0)  # then refunded by us
RETRY_SECONDS = env.number("RETRY_SECONDS", 2.0)  # first pause after a failed try
BELL_REST_SECONDS = env.number("BELL_REST_SECONDS", 5.0)  # after the broker failed
BELL_QUEUE_SIZE = env.integer("BELL_QUEUE_SIZE", 1000, minimum=1)
RING_EVERY_SECONDS = env.number("RING_EVERY_SECONDS", 2.0)
RING_BATCH = env.integer("RING_BATCH", 100, minimum=1)  # bells per queue and round
REAP_EVERY_SECONDS = env.number("REAP_EVERY_SECONDS", 2.0)
DEADLINES_EVERY_SECONDS = env.number("DEADLINES_EVERY_SECONDS", 5.0)
GRANTS_EVERY_SECONDS = env.number("GRANTS_EVERY_SECONDS", 60.0)
RETENTION_EVERY_SECONDS = env.number("RETENTION_EVERY_SECONDS", 60.0)
WEBHOOKS_EVERY_SECONDS = env.number("WEBHOOKS_EVERY_SECONDS", 1.0)
LEFTOVER_SECONDS = env.number("LEFTOVER_SECONDS", 7 * 86_400.0)  # of failed jobs
MASTER_SECONDS = env.number("MASTER_SECONDS", 3600.0)  # clips finished ones came from
ORPHAN_SECONDS = env.number(
    "ORPHAN_SECONDS", 3600.0
)  # files no job names, after its end
ORPHAN_UNKNOWN_SECONDS = env.number("ORPHAN_UNKNOWN_SECONDS", 30 * 86_400.0)
SWEEP_EVERY_SECONDS = env.number("SWEEP_EVERY_SECONDS", 60.0)  # 1,000 objects each time
SWEEP_REST_SECONDS = env.number(
    "SWEEP_REST_SECONDS", 86_400.0
)  # after the whole bucket
CANARY_EVERY_SECONDS = env.number("CANARY_EVERY_SECONDS", 10.0)
CANARY_LIMIT_SECONDS = env.number("CANARY_LIMIT_SECONDS", 120.0)
CHECK_HOLDS_EVERY_SECONDS = env.number("CHECK_HOLDS_EVERY_SECONDS", 300.0)
CHECK_LEDGER_EVERY_SECONDS = env.number("CHECK_LEDGER_EVERY_SECONDS", 900.0)
DEAD_WORKER_SECONDS = env.number("DEAD_WORKER_SECONDS", 60.0)  # silent for so long
FORGET_WORKER_SECONDS = env.number("FORGET_WORKER_SECONDS", 7 * 86_400.0)
# Where incidents go, signed by Standard Webhooks; empty: nowhere
OPERATOR_WEBHOOK_URL = env.text("OPERATOR_WEBHOOK_URL", "")
OPERATOR_WEBHOOK_SECRET = env.webhook_secret(
    "OPERATOR_WEBHOOK_SECRET", None if OPERATOR_WEBHOOK_URL else ""
)
CALLBACKS = env.boolean("CALLBACKS", True)  # ask providers for them, where possible
POLL_EVERY_SECONDS = env.number("POLL_EVERY_SECONDS", 1.0)
IDEMPOTENCY_SECONDS = env.integer("IDEMPOTENCY_SECONDS", 86_400, minimum=1)
IDEMPOTENCY_LOCK_MS = env.integer("IDEMPOTENCY_LOCK_MS", 2000, minimum=1)
STOP_SECONDS = env.number("STOP_SECONDS", 30.0)  # to drain; then killed, lease runs out
MEDIA_THREADS = env.integer("MEDIA_THREADS", 2, minimum=1)  # tasks at once per worker
CPU_THREADS = env.integer("CPU_THREADS", 1, minimum=1)
CPU_TEST_THREADS = env.integer("CPU_TEST_THREADS", 1, minimum=1)
PROVIDER_THREADS = env.integer("PROVIDER_THREADS", 4, minimum=1)
WEBHOOK_THREADS = env.integer("WEBHOOK_THREADS", 8, minimum=1)
PROVIDERS = env.words(
    "PROVIDERS", "magicoal,aimlapi,sinancode,novita,akool,dashscope,openai_videos"
)
GPU_MODELS = env.words("GPU_MODELS")  # what `make worker-gpu` serves
WEIGHTS_DIR = Path(env.text("WEIGHTS_DIR", str(ZOETROPE_HOME / "weights")))
WEIGHTS_SOURCES = env.pairs("WEIGHTS_SOURCES")  # checkpoint=s3://…|hub:…|folder, …
REMOTE_ENGINES = env.text("REMOTE_ENGINES", "{}")  # JSON: name → base_url, flavour, …
WORK_DIR = Path(env.text("WORK_DIR", str(ZOETROPE_HOME / "work")))

# --- Finishing ------------------------------------------------------------------------
# What C2PA manifests are signed with, PEM; without, a development certificate under
# ZOETROPE_HOME, made on the first start
C2PA_CERTIFICATE = env.text("C2PA_CERTIFICATE", "")
C2PA_KEY = env.text("C2PA_KEY", "")
C2PA_TIMESTAMP_URL = env.text("C2PA_TIMESTAMP_URL", "")
# No job passes without the picture classifier; without weights the stack does not start
SAFETY_REQUIRE_CLASSIFIER = env.boolean("SAFETY_REQUIRE_CLASSIFIER", False)
SAFETY_THRESHOLD = env.number("SAFETY_THRESHOLD", 0.8)  # flagged from this score on
UPSCALE_DEVICE = env.text("UPSCALE_DEVICE", "auto")  # auto, cuda, cpu or off
UPSCALE_WEIGHTS = env.text("UPSCALE_WEIGHTS", "")  # a file name; else what suffices
EXPANSION_BASE_URL = env.text("EXPANSION_BASE_URL", "")  # OpenAI-compatible, with /v1
EXPANSION_MODEL = env.text("EXPANSION_MODEL", "")
EXPANSION_API_KEY = env.text("EXPANSION_API_KEY", "")
EXPANSION_SECONDS = env.number("EXPANSION_SECONDS", 5.0)  # then the built-in one writes

# --- What may be reached --------------------------------------------------------------
EGRESS_ALLOW_HOSTS = env.words("EGRESS_ALLOW_HOSTS")  # private host:port, also by http
LORA_SOURCES = env.words("LORA_SOURCES")

CONTEXT_FACTORY = "project.wiring.context"  # builds storage, egress and folders

# --- Celery: the doorbell -------------------------------------------------------------
CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # for ever; the jobs are safe in Postgres
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 7200,
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "global_keyprefix": REDIS_PREFIX,
    "max_connections": 50,
}
CELERY_TASK_SERIALIZER = CELERY_RESULT_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = CELERY_RESULT_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_STORE_ERRORS_EVEN_IF_IGNORED = False
CELERY_TASK_ACKS_LATE = False  # the lease in Postgres decides what runs again
CELERY_WORKER_DISABLE_PREFETCH = True  # a busy worker hoards no bells
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_TASK_CREATE_MISSING_QUEUES = (
    True  # queues of providers and GPU families are rows
)
CELERY_TASK_DEFAULT_QUEUE = "media"
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 1, "interval_start": 0.1}
CELERY_WORKER_SEND_TASK_EVENTS = True  # Flower
CELERY_TASK_SEND_SENT_EVENT = False
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_EVENT_QUEUE_EXPIRES = 60.0
CELERY_EVENT_QUEUE_TTL = 60.0

# --- Logs -----------------------------------------------------------------------------
LOG_LEVEL = env.text("LOG_LEVEL", "INFO").upper()
LOG_JSON = env.boolean("LOG_JSON", not sys.stderr.isatty())
LOG_PROMPTS = env.boolean("LOG_PROMPTS", False)  # customers' words, in clear
LOGGING = logging.configuration(level=LOG_LEVEL, as_json=LOG_JSON)
structlog.configure(**logging.STRUCTLOG)
