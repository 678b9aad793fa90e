"""The operator's view of jobs and of what makes them.

Rows the platform writes are read-only; what operators do goes through acts that ask for
a reason (`billing.acting`).
"""

from __future__ import annotations

from jobs.admin import customers, jobs, making, records, terms, webhooks

__all__ = ["customers", "jobs", "making", "records", "terms", "webhooks"]
