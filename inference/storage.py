"""Files that outlive a step: inputs, videos and posters, in one private S3 bucket.

A key is written once: a second writer of the same key is refused by the server, so a
late worker can never replace a finished video. What was put is checked by SHA-256 on the
way in and looked at again before ``put_file`` returns. Customers get short-lived signed
links to the public endpoint; the bucket itself lets nobody in. When the service is away
or slow, every call raises StorageUnavailable within a bounded time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from inference.errors import RenderError, StorageUnavailable

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS: Final = 3.0
READ_SECONDS: Final = 20.0  # without a byte moving
DELETE_BATCH: Final = 1000  # S3's limit per call
_BLOCK: Final = 1024 * 1024


class ObjectMissing(RenderError):
    """Nothing is stored under this key."""

    default_code = "file_missing"
    default_permanent = True


class KeyTaken(RenderError):
    """Something else is stored under this key already; it stays."""

    default_code = "file_exists"


@dataclass(frozen=True)
class Stored:
    """What was put: ``sha256`` in hexadecimal."""

    key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Listed:
    key: str
    size_bytes: int
    modified_at: datetime


class Storage:
    """One bucket; keys are relative to ``prefix``. Safe to share between threads."""

    def __init__(
        self,
        *,
        endpoint_url: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        public_endpoint_url: str | None = None,
        region: str = "us-east-1",
        prefix: str = "",
    ) -> None:
        self._endpoint_url = endpoint_url
        self._public_endpoint_url = public_endpoint_url or endpoint_url
        self._bucket = bucket
        self._access_key = access_key
        self._secret_key = secret_key
        self._region = region
        self._prefix = prefix
        self._lock = threading.Lock()
        self._clients: dict[tuple[int, str], S3Client] = {}

    def put_file(
        self, key: str, path: Path, *, content_type: str = "application/octet-stream"
    ) -> Stored:
        """Store the file at ``path`` under ``key``, which must be new.

        Putting the same content twice is the same as putting it once; other content
        raises KeyTaken.
        """
        digest = file_sha256(path)
        with path.open("rb") as body, self._errors(key):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=body,
                    ContentType=content_type,
                    ChecksumSHA256=base64.b64encode(digest).decode(),
                    Metadata={"sha256": digest.hex()},
                    IfNoneMatch="*",
                )
            except self._client.exceptions.ClientError as error:
                # After a lost answer the retry meets the first try's own object.
                if _status(error) != 412:
                    raise
        return self._verified(key, path.stat().st_size, digest.hex())

    def put_bytes(
        self, key: str, data: bytes, *, content_type: str = "application/octet-stream"
    ) -> Stored:
        """Store ``data`` under ``key``; otherwise as ``put_file``."""
        digest = hashlib.sha256(data).digest()
        with self._errors(key):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=data,
                    ContentType=content_type,
                    ChecksumSHA256=base64.b64encode(digest).decode(),
                    Metadata={"sha256": digest.hex()},
                    IfNoneMatch="*",
                )
            except self._client.exceptions.ClientError as error:
                if _status(error) != 412:
                    raise
        return self._verified(key, len(data), digest.hex())

    def _verified(self, key: str, size_bytes: int, sha256: str) -> Stored:
        """Look at what is stored; 200 to a put is not yet a readable object."""
        found = self.stat(key)
        if found is None or (found.size_bytes, found.sha256) != (size_bytes, sha256):
            if found is not None and found.sha256 != sha256:
                raise KeyTaken(f"{key} holds something else")
            raise StorageUnavailable(f"{key} was accepted but is not there in full")
        return found

    def stat(self, key: str) -> Stored | None:
        """Return what is stored under ``key``, None when nothing is."""
        try:
            with self._errors(key):
                head = self._client.head_object(
                    Bucket=self._bucket, Key=self._prefix + key
                )
        except ObjectMissing:
            return None
        digest = head["Metadata"].get("sha256", "")
        return Stored(key, head["ContentLength"], digest)

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def get_file(self, key: str, path: Path) -> None:
        """Write the object to ``path``, checked; raise ObjectMissing when there is none."""
        hasher = hashlib.sha256()
        with self._errors(key):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + key
            )
            with contextlib.closing(answer["Body"]) as body, path.open("wb") as file:
                while block := body.read(_BLOCK):
                    hasher.update(block)
                    file.write(block)
        expected = answer["Metadata"].get("sha256")
        if expected and hasher.hexdigest() != expected:
            raise StorageUnavailable(f"{key} came back damaged")

    def open(self, key: str) -> tuple[int, Iterator[bytes]]:
        """Return the object's size and its bytes in blocks, to pass on as they come."""
        with self._errors(key):
            answer = self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + key
            )
        return answer["ContentLength"], self._blocks(key, answer["Body"])

    def _blocks(self, key: str, body: StreamingBody) -> Iterator[bytes]:
        with self._errors(key), contextlib.closing(body):
            yield from body.iter_chunks(_BLOCK)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove the objects; keys that hold nothing are fine."""
        names = [self._prefix + key for key in keys]
        for start in range(0, len(names), DELETE_BATCH):
            batch = names[start : start + DELETE_BATCH]
            with self._errors(batch[0]):
                answer = self._client.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": name} for name in batch]},
                )
            if errors := answer.get("Errors"):
                raise StorageUnavailable(f"not deleted: {errors[0]}")

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """Yield what is stored under keys that begin with ``prefix``, in key order."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._errors(prefix):
            for page in pages.paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            ):
                for entry in page.get("Contents", ()):
                    yield Listed(
                        entry["Key"].removeprefix(self._prefix),
                        entry["Size"],
                        entry["LastModified"],
                    )

    def presign(
        self,
        key: str,
        *,
        seconds: int,
        filename: str | None = None,
        inline: bool = True,
        content_type: str | None = None,
        method: Literal["GET", "HEAD"] = "GET",
    ) -> str:
        """Return a signed link to the public endpoint; nothing is asked of the server.

        ``filename`` names the file for whoever saves it; ``inline`` lets browsers show it.
        A link is good for its one ``method``.
        """
        kind = "inline" if inline else "attachment"
        name = re.sub(r"[^A-Za-z0-9._-]", "_", filename or key.rpartition("/")[2])
        extra = {"ResponseContentType": content_type} if content_type else {}
        with self._errors(key):
            return self._at(self._public_endpoint_url).generate_presigned_url(
                f"{method.lower()}_object",
                Params={
                    "Bucket": self._bucket,
                    "Key": self._prefix + key,
                    "ResponseContentDisposition": f'{kind}; filename="{name}"',
                    **extra,
                },
                ExpiresIn=seconds,
            )

    def check(self) -> None:
        """Raise StorageUnavailable unless the bucket answers."""
        with self._errors(self._bucket):
            self._client.head_bucket(Bucket=self._bucket)

    def make_bucket(self) -> None:
        """Make the bucket, on a server that does not ask in which region."""
        with self._errors(self._bucket):
            self._client.create_bucket(Bucket=self._bucket)

    @property
    def _client(self) -> S3Client:
        return self._at(self._endpoint_url)

    def _at(self, endpoint_url: str) -> S3Client:
        # Connections must not be shared with a forked child, so the process id is part
        # of the key; making a client is neither cheap nor thread-safe, hence the lock.
        place = (os.getpid(), endpoint_url)
        if (client := self._clients.get(place)) is None:
            with self._lock:
                if (client := self._clients.get(place)) is None:
                    client = self._clients[place] = self._connect(endpoint_url)
        return client

    def _connect(self, endpoint_url: str) -> S3Client:
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=self._region,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                connect_timeout=CONNECT_SECONDS,
                read_timeout=READ_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=16,
                # We send SHA-256 ourselves; a second checksum would cost another pass.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            if _status(error) == 404:
                raise ObjectMissing(f"nothing is stored under {key}") from error
            raise StorageUnavailable(f"storage refused {key}: {error}") from error
        except (BotoCoreError, ConnectionError, TimeoutError) as error:
            raise StorageUnavailable(f"storage is away: {error}") from error


def file_sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _status(error: Exception) -> int:
    response = getattr(error, "response", {})
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
