"""`manage.py worker_gpu`: one worker per GPU for GPU_MODELS, until Ctrl-C or TERM."""

from __future__ import annotations

import os
import shutil
import subprocess
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from inference.catalogue import MODELS
from project import stack
from project.supervisor import Stopped, Supervisor


class Command(BaseCommand):
    help = "Serve GPU_MODELS on this machine's GPUs, one process each."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--no-log-files",
            action="store_true",
            help="let the workers write where this command does, as containers want it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        check(settings.GPU_MODELS)
        logs = None if options["no_log_files"] else settings.ZOETROPE_HOME / "logs"
        try:
            with Supervisor(logs=logs, tell=self.tell) as supervisor:
                supervisor.start(*stack.gpu_processes(devices()))
                supervisor.run()
        except Stopped as reason:
            self.tell("worker_gpu", f"stopped by {reason}")

    def tell(self, name: str, event: str) -> None:
        self.stdout.write(f"{name} {event}")
        self.stdout.flush()


def check(models: list[str]) -> None:
    served = [name for name in MODELS if stack.gpu_queues([name])]
    wrong = [name for name in models if name not in served]
    if wrong or not models:
        asked = f", not {', '.join(wrong)}" if wrong else ""
        raise CommandError(
            f"GPU_MODELS must name models that GPUs serve{asked}: {', '.join(served)}"
        )


def devices() -> list[str]:
    """Return the GPUs we may use: CUDA_VISIBLE_DEVICES, else all the driver shows."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [part for part in given.split(",") if part]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run(
        [program, "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split() if done.returncode == 0 else []
