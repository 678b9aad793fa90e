"""The run's own Postgres, Redis and S3 are real and answer."""

from __future__ import annotations

import boto3
import pytest
import redis
from django.conf import settings
from django.db import connection


@pytest.mark.django_db
def test_the_database_is_postgres_18():
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        assert cursor.fetchone()[0].startswith("18")


def test_redis_answers(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()


def test_a_stored_object_comes_back(s3):
    client = boto3.client(
        "s3",
        endpoint_url=settings.S3_ENDPOINT_URL,
        aws_access_key_id=settings.S3_ACCESS_KEY,
        aws_secret_access_key=settings.S3_SECRET_KEY,
        region_name=settings.S3_REGION,
    )
    client.put_object(Bucket=settings.S3_BUCKET, Key=f"{s3}hello", Body=b"hello")
    got = client.get_object(Bucket=settings.S3_BUCKET, Key=f"{s3}hello")
    assert got["Body"].read() == b"hello"
    client.close()
