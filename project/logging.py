"""How every process logs: one line per event, JSON unless a person is watching.

Only names, ids and numbers belong in a log; prompts, keys and URLs with a signature do
not. Values under a name that sounds like a secret are cut out in any case, and so is
what has the form of one inside any other value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import structlog
from structlog.typing import EventDict, WrappedLogger

HIDDEN: Final = ("password", "secret", "token", "authorization", "api_key", "cookie")
#: Our API keys and webhook secrets; signatures in URLs; the row that a failed constraint
#: prints, which may hold a prompt; a password in a URL; the token of a lasting link or a
#: callback.
_SECRETS: Final = re.compile(
    r"(?P<key>zoe_(?:live|test)_[0-9A-Za-z]{8})_\w+"
    r"|(?P<hook>whsec_)[\w+/=]+"
    r"|(?P<query>(?:Signature|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s\"']+"
    r"|(?P<row>Failing row contains ).*"
    r"|(?P<url>://[^/\s:@]*:)[^/\s@]+(?=@)"
    r"|(?P<link>/(?:files|callbacks/\w+)/)[^/\s\"']+"
)
_MARKS: Final = (
    *("zoe_", "whsec_", "Signature=", "Failing row", "://"),
    *("/files/", "/callbacks/"),
)


def hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> Mapping[str, Any]:
    for name, value in event.items():
        if any(word in name.lower() for word in HIDDEN):
            event[name] = "[hidden]"
        elif name == "request" and not isinstance(value, str):
            event[name] = _SECRETS.sub(_shortened, str(value))  # Django's, by its path
        elif isinstance(value, str) and any(mark in value for mark in _MARKS):
            event[name] = _SECRETS.sub(_shortened, value)
    return event


def _shortened(found: re.Match[str]) -> str:
    return f"{found[found.lastgroup or 0]}[hidden]"


SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    hide_secrets,
]
STRUCTLOG: Final[dict[str, Any]] = {
    "processors": [*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    "logger_factory": structlog.stdlib.LoggerFactory(),
    "wrapper_class": structlog.stdlib.BoundLogger,
    "cache_logger_on_first_use": True,
}


def configuration(*, level: str, as_json: bool) -> dict[str, Any]:
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": SHARED,
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    renderer,
                ],
            }
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            "django.request": {"level": "ERROR"},
            "axes": {"level": "WARNING"},
            # Three lines per bell; a job's own events say more.
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "botocore": {"level": "WARNING"},
            "httpx": {"level": "WARNING"},
            "kombu": {"level": "WARNING"},
        },
    }
