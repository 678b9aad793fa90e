"""One picture in, one video out, through the HTTP API: the cookbook's command.

    python docs/video.py PICTURE OUT [name=value …]   make a video
    python docs/video.py JOB OUT [name=value …]       give a finished video another sound

ZOETROPE_KEY is the API key, ZOETROPE_URL the address (http://127.0.0.1:8000). Values
are fields of `POST /v1/jobs`, as JSON or plain words. Prints the job's id alone on the
last line.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import httpx


def main(source: str, out: str, *options: str) -> int:
    """Do what the words of the command line ask; return the exit status."""
    fields = dict(map(_field, options))
    with httpx.Client(
        base_url=os.environ.get("ZOETROPE_URL", "http://127.0.0.1:8000"),
        headers={"Authorization": f"Bearer {os.environ['ZOETROPE_KEY']}"},
        timeout=60,
        trust_env=False,
    ) as api:
        job = _wait(api, _submit(api, source, fields))
        if job["status"] != "succeeded":
            sys.stderr.write(f"{job['status']}: {job['error']['message']}\n")
            return 1
        Path(out).write_bytes(api.get(f"/v1/jobs/{job['id']}/content").content)
    told = {"parameters": job["parameters"], "notes": job["video"]["notes"]}
    sys.stdout.write(f"{json.dumps(told, indent=1)}\n{out}\n{job['id']}\n")
    return 0


def _field(option: str) -> tuple[str, Any]:
    name, _, value = option.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _submit(api: httpx.Client, source: str, fields: dict[str, Any]) -> dict[str, Any]:
    path = Path(source)
    if path.exists():
        form = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in fields.items()
        }
        file = {"image": (path.name, path.read_bytes())}
        answer = api.post("/v1/jobs", data=form, files=file)
    else:
        answer = api.post(f"/v1/jobs/{source}/audio", json=fields)
    if answer.is_error:
        raise SystemExit(answer.text)
    job: dict[str, Any] = answer.json()
    return job


def _wait(api: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    while job["status"] in ("queued", "running"):
        time.sleep(0.2)
        job = api.get(f"/v1/jobs/{job['id']}").json()
    return job


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
