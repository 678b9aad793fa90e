"""`manage.py demo`: a real photo in, a real video out, through the public HTTP API."""

from __future__ import annotations

import os
import signal
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from project import demo
from project.supervisor import set_death_signal


class Command(BaseCommand):
    help = "Send a photo to a real stack and download the video it makes."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--model", help="public model, by default motion")
        parser.add_argument("--provider", help="go out to this provider's local fake")
        parser.add_argument("--photo", type=Path, default=demo.PHOTO)
        parser.add_argument("--prompt", default="slow push in, gentle pan to the right")
        parser.add_argument("--stop-with-parent", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["stop_with_parent"]:
            set_death_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        self.started = time.monotonic()
        self.shown = ""
        try:
            path, link = self.demonstrate(options)
        except KeyboardInterrupt as interrupt:
            raise CommandError("stopped", returncode=130) from interrupt
        except (demo.DemoFailed, httpx.TransportError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"url    {link}\nvideo  {path}")

    def demonstrate(self, options: dict[str, Any]) -> tuple[Path, str]:
        home, provider = settings.ZOETROPE_HOME, options["provider"]
        if not provider:
            ask = demo.Ask(options["model"] or "motion")
            needed = environment_for(ask.model)
            url = demo.running(home)
            if needed and url and not demo.serves(url, ask.model):
                raise demo.DemoFailed(
                    f"stop the running stack first: it has no worker of {ask.model}"
                )
            env = os.environ | needed
            with demo.stack(home, self.say, env=env) as url:
                return self.make_video(url, env, ask, options)
        ask = demo.ask_for(provider)
        if options["model"]:
            ask = demo.Ask(options["model"])
        if demo.running(home):
            raise demo.DemoFailed("stop the running stack: it may not reach the fake")
        with demo.fake_of(provider) as fake:
            self.say(f"a fake of {provider} serves {fake.base_url}")
            env = os.environ | {"EGRESS_ALLOW_HOSTS": fake.host}
            with demo.stack(home, self.say, env=env) as url:
                demo.add_provider(env, provider, fake, ask.route)
                try:
                    return self.make_video(url, env, ask, options)
                finally:
                    demo.remove_provider(env, provider)

    def make_video(
        self, url: str, env: dict[str, str], ask: demo.Ask, options: dict[str, Any]
    ) -> tuple[Path, str]:
        key = demo.new_key(env)
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(
            base_url=url, headers=headers, timeout=60, trust_env=False
        ) as client:
            fields = {"model": ask.model, "prompt": options["prompt"], **ask.fields}
            job = demo.submit(client, options["photo"], fields, self.say)
            self.say(f"POST {url}/v1/jobs  ->  job {job['id']} by {ask.model}")
            job = demo.follow(client, job["id"], self.show)
        credits = job["credits"]
        self.say(f"held {credits['quoted']} credits, charged {credits['charged']}")
        link = job["video"]["url"]
        path = settings.ZOETROPE_HOME / "demo" / f"{job['id']}.mp4"
        size = demo.download(link, path)
        self.say(f"downloaded {size / 1e6:.1f} MB by its signed URL")
        return path, link

    def say(self, line: str) -> None:
        self.stdout.write(f"{time.monotonic() - self.started:6.1f} s  {line}")
        self.stdout.flush()

    def show(self, job: dict[str, Any]) -> None:
        """One line that moves on a terminal, one line per change elsewhere."""
        line = demo.line_of(job)
        is_over = job["status"] not in {"queued", "running"}
        if self.stdout.isatty():
            seconds = time.monotonic() - self.started
            self.stdout.write(
                f"\r{seconds:6.1f} s  {line}", ending="\n" if is_over else ""
            )
            self.stdout.flush()
        elif line != self.shown:
            self.say(line)
        self.shown = line


def environment_for(model: str) -> dict[str, str]:
    """Return what the stack needs to serve this model here: a GPU family's worker."""
    from project.stack import gpu_queues

    return {"GPU_MODELS": model} if gpu_queues([model]) else {}
