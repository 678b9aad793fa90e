"""The settings under test: the project's own, with fixed secrets and no services.

The fixtures in `tests/conftest.py` fill in the addresses when a test needs a service;
until then the database, Redis and S3 point at a port where nobody listens.
"""

from __future__ import annotations

import os

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

os.environ |= {
    "DATABASE_URL": "postgresql://zoetrope@127.0.0.1:9/zoetrope",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "S3_ENDPOINT_URL": "http://127.0.0.1:9",
    "S3_SECRET_KEY": "none",
    "S3_PREFIX": f"{WORKER}-{os.getpid()}/",
    "REDIS_PREFIX": f"{WORKER}:",
    # A pool would keep connections open when the test database is dropped.
    "DATABASE_POOL": "0",
    "SECRET_KEY": "tests only, not a secret: 4e1f0b6a8c2d4f7e9a3b5c1d",
    "SECRETS_KEY": "dGVzdHMgb25seSwgdGhpcnR5LXR3byBieXRlcyBvay4=",
    "API_KEY_PEPPER": "tests only",
    "API_KEY_TOUCH_SECONDS": "0",  # its thread would reach for the database at any time
    "METRICS_TOKEN": "tests only",
    "FLOWER_PASSWORD": "tests only",
    "LOG_LEVEL": "WARNING",
    # Read once, by whichever test imports these first.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}

from project.settings import *  # noqa: E402, F403  # after the environment is set

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
