"""The Celery side: one task, a bell. It claims one job of the queue and does its step.

A bell carries nothing but the queue's name: whatever is ready first is done. A bell
too many finds nothing to do; a bell too few is made good by the housekeeper.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import structlog
from celery import shared_task, signals
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import close_old_connections, connection
from kombu.exceptions import OperationalError as BrokerError
from redis.exceptions import RedisError

from inference import registry
from inference.errors import (
    CannotSign,
    EngineBroken,
    EngineFailed,
    InputRejected,
    NotYet,
    OutageError,
    OutOfMemory,
    RenderError,
    Stopped,
    WeightsMissing,
)
from jobs import (
    bells,
    claims,
    context,
    deliveries,
    fitness,
    incidents,
    lifecycle,
    outside,
    retention,
    safety,
    steps,
    webhooks,
    workers,
)
from jobs.states import Step

if TYPE_CHECKING:
    from celery import Task

    from jobs.claims import Held

log = structlog.get_logger()


def _end_hung(hung: Sequence[Held], is_all: bool) -> None:
    """End this process, whose work hangs: its slot is gone and no thread can be killed.

    What else it does is drained first, as for a deploy. Who runs it starts another.
    """
    for held in hung:
        if not held.is_reported:
            held.is_reported = True
            _report_hung(held)
    if is_all:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_HUNG)
    if not heart.is_draining.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _report_hung(held: Held) -> None:
    claim = held.claim
    facts = {
        "worker": claim.worker,
        "step": claim.step.value,
        "fence": claim.fence,
        "stage": held.progress.stage,
        "seconds": round(held.seconds_deaf),
    }
    log.error("step_hung", job=str(claim.job_id), **facts)
    try:
        incidents.report(
            "step_hung",
            str(claim.job_id),
            f"{claim.worker} hung in {claim.step.value} and did not stop when told to "
            f"({held.stop_reason}). Its process was ended.",
            detail=facts,
        )
    except DatabaseError as error:
        log.warning("incident_not_reported", error=str(error))
        connection.close()


heart = claims.Heart(on_hung=_end_hung)
#: The exit status of a worker that ended because its work hung.
EXIT_HUNG: Final = 70

#: Flower's task list follows these events; more often shows nothing more.
PROGRESS_EVENT_SECONDS = 1.0


@shared_task(name=bells.TASK, bind=True)
def ring(self: Task[Any, Any], queue: str) -> None:
    """Claim the next ready job of ``queue`` and do its step, if there is one."""
    close_old_connections()
    try:
        if queue == webhooks.QUEUE:
            deliveries.deliver_some(heart.is_draining.is_set)
            return
        claim = claims.claim_next(
            queue, worker=_worker_name(self), step=_only_step(queue)
        )
        if claim is not None:
            with (
                structlog.contextvars.bound_contextvars(
                    job=str(claim.job_id), account=str(claim.account_id)
                ),
                heart.hold(claim) as held,
                _shown_in_flower(self, held),
            ):
                _do(held)
    finally:
        close_old_connections()


def _only_step(queue: str) -> Step | None:
    """Return the only step there is room for: a full provider gets no submits now."""
    if not queue.startswith(outside.QUEUE_PREFIX):
        return None
    wait = outside.seconds_to_wait(queue.removeprefix(outside.QUEUE_PREFIX))
    if wait == 0.0:
        return None
    if wait is not None and wait < 2 * settings.RING_EVERY_SECONDS:
        bells.ring_after(queue, wait)  # sooner than the housekeeper would
    return Step.COLLECT


def _do(held: Held) -> None:
    claim = held.claim
    job_log = log.bind(job=str(claim.job_id), step=claim.step.value, fence=claim.fence)
    began = time.monotonic()
    try:
        steps.run(held)
        job_log.info("step_done", seconds=round(time.monotonic() - began, 3))
    except lifecycle.Superseded:
        job_log.info("claim_superseded")
    except Stopped:
        _stopped(held)
    except NotYet as early:
        lifecycle.let_go(claim, wait_seconds=early.retry_after_seconds or 0.0)
    except RenderError as error:
        job_log.warning("step_failed", code=error.code, error=str(error))
        _failed(held, error)
        if isinstance(error, EngineBroken | CannotSign):
            # What this process holds on the device can no longer be trusted; or it could
            # finish nothing, and `_check_fitness` says so when it starts anew.
            os.kill(os.getpid(), signal.SIGTERM)
    except DatabaseError:
        # The lease runs out and somebody else does the step.
        job_log.exception("database_failed_during_step")
    except MemoryError as error:
        _failed(held, OutOfMemory(str(error)))
    except Exception as error:
        job_log.exception("step_broke")
        _failed(held, EngineFailed(f"{type(error).__name__}: {error}"))


def _stopped(held: Held) -> None:
    claim = held.claim
    try:
        match held.stop_reason:
            case "canceled":
                lifecycle.confirm_canceled(claim)
            case "expired":
                lifecycle.fail(claim, lifecycle.deadline_exceeded())
            case "lost":
                pass
            case _:
                lifecycle.let_go(claim)
    except lifecycle.Superseded:
        log.info("claim_superseded", job=str(claim.job_id))


def _failed(held: Held, error: RenderError) -> None:
    try:
        if error.permanent and isinstance(error, OutOfMemory | WeightsMissing):
            # Wrong with the machines of this route only.
            lifecycle.give_up(held.claim, error)
        elif error.permanent or isinstance(error, InputRejected):
            lifecycle.fail(held.claim, error)
            if error.code == lifecycle.BLOCKED:
                retention.delete_blocked(claims.load(held.claim))
        else:
            lifecycle.try_again(held.claim, error)
    except OutageError:
        log.warning("blocked_files_left", job=str(held.claim.job_id))
    except lifecycle.Superseded:
        log.info("claim_superseded", job=str(held.claim.job_id))
    except DatabaseError:
        log.exception("database_failed_after_step", job=str(held.claim.job_id))


# ------------------------------------------------------------ seen from outside


class _shown_in_flower:  # noqa: N801 - reads as the context it is
    """Sends ``task-progress`` events with job, account, model and progress.

    From a thread of its own: a broker that hangs must not hold up the work, and one that
    is away loses only what nobody would have seen.
    """

    def __init__(self, task: Task[Any, Any], held: Held) -> None:
        self._held = held
        # Not Task.send_event: in another thread that knows no request.
        self._dispatcher = task.app.events.default_dispatcher
        self._task_id, self._hostname = task.request.id, task.request.hostname
        self._over = threading.Event()

    def __enter__(self) -> None:
        threading.Thread(target=self._run, name="flower", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        try:
            self._send()
            while not self._over.wait(PROGRESS_EVENT_SECONDS):
                self._send()
            self._send()
        except (BrokerError, RedisError, OSError) as error:
            log.debug("progress_not_sent", error=str(error))

    def _send(self) -> None:
        claim, progress = self._held.claim, self._held.progress
        facts = {
            "job": str(claim.job_id),
            "account": str(claim.account_id),
            "model": claim.model,
            "step": claim.step.value,
            "progress": round(progress.fraction, 3),
            "stage": progress.stage,
        }
        with self._dispatcher(hostname=self._hostname) as dispatcher:
            dispatcher.send(
                "task-progress",
                uuid=self._task_id,
                args=repr((claim.queue,)),
                kwargs=repr(facts),
            )


def _worker_name(task: Task[Any, Any]) -> str:
    return str(task.request.hostname or socket.gethostname())


@signals.celeryd_init.connect
def _check_fitness(options: dict[str, Any], **_: Any) -> None:
    """Refuse to start where the operator's rules cannot be kept."""
    try:
        fitness.check(_queues(options) or ["media"], context.get())
    except fitness.Unfit as unfit:
        raise SystemExit(f"this worker cannot start: {unfit}") from unfit


@signals.celeryd_init.connect
def _prewarm(options: dict[str, Any], **_: Any) -> None:
    """Load what takes long before the first job: a GPU's models, the classifier.

    A GPU worker also makes its models' first clips. A worker that cannot serve ends
    here and takes none.
    """
    queues = _queues(options)
    try:
        if safety.QUEUE in queues:
            safety.judge_of(context.get())
        if any(name.startswith("gpu.") for name in queues):
            registry.prewarm(settings.GPU_MODELS, context.get())
    except RenderError as error:
        log.error("worker_cannot_serve", queues=queues, error=str(error))
        # An ordinary exception of a signal's handler is logged and forgotten.
        raise SystemExit(1) from error


def _queues(options: dict[str, Any]) -> list[str]:
    given = options.get("queues") or []
    return given.split(",") if isinstance(given, str) else list(given)


@signals.worker_ready.connect
def _announce(sender: Any, **_: Any) -> None:
    """Tell Postgres which queues this process serves, now and every few seconds."""
    queues = [queue.name for queue in sender.task_consumer.queues]
    workers.start(name=str(sender.hostname), queues=queues, heart=heart)
    for name in queues:
        bells.ring(name)


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    # Long work stops at its next stopping point and goes back to its queue untried.
    heart.is_draining.set()


@signals.worker_shutdown.connect
def _leave(sender: Any, **_: Any) -> None:
    heart.stop()
    workers.leave(str(sender.hostname))
