"""Events for customers: a row in the transaction that closes a job, sent afterwards."""

from __future__ import annotations

from uuid import UUID


def announce(job_id: UUID, event: str) -> None:
    """Leave ``event`` about the job for its account's endpoints."""
