"""How often somebody may ask: token buckets in Redis, one atomic script for each request.

A minute's requests may come at once; after that they come back evenly. Without Redis,
reads pass and creates fall back to buckets in this process. The limits that guard money
and slots are not here but in the database.
"""

from __future__ import annotations

import functools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

import structlog
from django.conf import settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

if TYPE_CHECKING:
    from billing.keys import Credential

#: Reads have buckets of their own, so many times as large: clients that poll twice a
#: second (Novita's does) would else have none left for what they poll for.
READS_PER_REQUEST: Final = 4
#: Of an operator key: a shop's busiest minute, and an end to a loop gone wrong.
OPERATOR_REQUESTS_PER_MINUTE: Final = 600
#: How long Redis is left alone after it failed.
REST_SECONDS: Final = 5.0
#: A loopback or rack-local answer takes under a millisecond.
TIMEOUT_SECONDS: Final = 0.25

logger = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Bucket:
    """``per_minute`` tokens, all there at first, refilled evenly."""

    name: str
    per_minute: int


@dataclass(frozen=True)
class Allowance:
    """The answer of the tightest bucket, with what the headers need."""

    allowed: bool
    limit: int
    remaining: int
    #: Seconds until the bucket is full again, and until the next token.
    reset_seconds: float
    retry_seconds: float

    @property
    def retry_after(self) -> int:
        """For the Retry-After header: whole seconds, at least 1."""
        return max(1, math.ceil(self.retry_seconds))

    def headers(self) -> dict[str, str]:
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(math.ceil(time.time() + self.reset_seconds)),
        }


def take(credential: Credential, *, creates: bool, reads: bool = False) -> Allowance:
    """Take a token of the account, and of the key if it has a limit of its own.

    A call that only ``reads`` takes from buckets four times as large.
    """
    limits = {f"account:{credential.account_id}": credential.plan.requests_per_minute}
    if credential.requests_per_minute is not None:
        limits[f"key:{credential.key_id}"] = credential.requests_per_minute
    kind, times = (":reads", READS_PER_REQUEST) if reads else ("", 1)
    buckets = [Bucket(name + kind, limit * times) for name, limit in limits.items()]
    return take_from(buckets, creates=creates)


def take_for_bad_key(address: str) -> Allowance:
    """Take a token of an address that presented no good key."""
    bucket = Bucket(f"bad-key:{_place_of(address)}", settings.BAD_KEYS_PER_MINUTE)
    return take_from([bucket], creates=False)


def take_for_operator(key_id: str, *, creates: bool) -> Allowance:
    """Take a token of an operator's key."""
    bucket = Bucket(f"operator:{key_id}", OPERATOR_REQUESTS_PER_MINUTE)
    return take_from([bucket], creates=creates)


def take_from(buckets: Sequence[Bucket], *, creates: bool) -> Allowance:
    """Take one token from each bucket, or none from any."""
    if time.monotonic() >= _rest.until:
        try:
            return _take_in_redis(buckets)
        except RedisError as error:
            _rest.until = time.monotonic() + REST_SECONDS
            logger.warning("throttle_without_redis", error=str(error))
    if creates:
        return _local.take(buckets)
    limit = min(bucket.per_minute for bucket in buckets)
    return Allowance(
        allowed=True, limit=limit, remaining=limit, reset_seconds=0.0, retry_seconds=0.0
    )


def _place_of(address: str) -> str:
    """Return whom to count a call to: the caller's address, or its IPv6 network.

    One customer's line has a /64 to itself, so single addresses would count nothing.
    """
    try:
        caller = ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(caller, IPv4Address):
        return str(caller)
    # As a socket for both names an IPv4 caller; all of them are in one /64.
    if caller.ipv4_mapped is not None:
        return str(caller.ipv4_mapped)
    return str(ip_network(f"{caller}/64", strict=False))


class _Rest:
    """Until when (monotonic) Redis is not asked."""

    until = 0.0


_rest = _Rest()


# --- Redis ----------------------------------------------------------------------------

# All buckets are read, then all are written, so a refusal takes nothing. Redis's own
# clock decides. Answers {allowed, limit, tokens left, seconds to a token} of the bucket
# with the fewest left; numbers as strings, since Lua's would lose their fraction.
_SCRIPT: Final = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local allowed, tightest, states = 1, 1, {}
for i, key in ipairs(KEYS) do
    local limit = tonumber(ARGV[i])
    local kept = redis.call('HMGET', key, 'tokens', 'at')
    local tokens = limit
    if kept[1] then
        local passed = math.max(0, now - tonumber(kept[2]))
        tokens = math.min(limit, tonumber(kept[1]) + passed * limit / 60)
    end
    if tokens < 1 then allowed = 0 end
    states[i] = {tokens = tokens, limit = limit}
    if tokens < states[tightest].tokens then tightest = i end
end
for i, key in ipairs(KEYS) do
    if allowed == 1 then states[i].tokens = states[i].tokens - 1 end
    redis.call('HSET', key, 'tokens', tostring(states[i].tokens), 'at', tostring(now))
    redis.call('EXPIRE', key, 120)
end
return {allowed, states[tightest].limit, tostring(states[tightest].tokens)}
"""


def _take_in_redis(buckets: Sequence[Bucket]) -> Allowance:
    names = [f"{settings.REDIS_PREFIX}rate:{bucket.name}" for bucket in buckets]
    limits = [bucket.per_minute for bucket in buckets]
    allowed, limit, tokens = _script(settings.REDIS_URL)(keys=names, args=limits)
    return _allowance(bool(allowed), int(limit), float(tokens))


@functools.lru_cache(maxsize=4)
def _script(url: str) -> Any:
    client = Redis.from_url(
        url,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        # Once more at once: a connection kept over a restart of Redis is dead.
        retry=Retry(NoBackoff(), 1),
    )
    return client.register_script(_SCRIPT)


def _allowance(allowed: bool, limit: int, tokens: float) -> Allowance:
    per_second = limit / 60
    return Allowance(
        allowed=allowed,
        limit=limit,
        remaining=int(tokens),
        reset_seconds=(limit - tokens) / per_second,
        retry_seconds=0.0 if allowed else max(0.0, 1 - tokens) / per_second,
    )


# --- Without Redis --------------------------------------------------------------------


class _LocalBuckets:
    """The same buckets in this process alone, for creates while Redis is away."""

    MAX: Final = 10_000

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, float]] = {}

    def take(self, buckets: Sequence[Bucket]) -> Allowance:
        now = time.monotonic()
        with self._lock:
            tokens = [self._tokens(bucket, now) for bucket in buckets]
            allowed = all(left >= 1 for left in tokens)
            if len(self._kept) > self.MAX:
                self._kept.clear()
            left = [count - 1 if allowed else count for count in tokens]
            for bucket, count in zip(buckets, left, strict=True):
                self._kept[bucket.name] = (count, now)
        pairs = zip(buckets, left, strict=True)
        tightest, count = min(pairs, key=lambda pair: pair[1])
        return _allowance(allowed, tightest.per_minute, count)

    def _tokens(self, bucket: Bucket, now: float) -> float:
        tokens, at = self._kept.get(bucket.name, (float(bucket.per_minute), now))
        return min(bucket.per_minute, tokens + (now - at) * bucket.per_minute / 60)


_local = _LocalBuckets()
