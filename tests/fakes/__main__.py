"""``python -m tests.fakes NAME [--port N]``: run one fake, print its base URL, stay.

With ``--json`` the line also holds the credentials it knows us by.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading

from tests.fakes import FAKES, start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes", description=__doc__)
    parser.add_argument("name", choices=FAKES)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--queued", type=float, default=1.0, help="seconds in the queue"
    )
    parser.add_argument("--running", type=float, default=3.0, help="seconds of work")
    parser.add_argument(
        "--side", type=int, default=0, help="longest side of videos; 0: the true size"
    )
    parser.add_argument("--statuses-per-second", type=float, default=None)
    parser.add_argument("--webhook-url", default=None, help="account-wide callbacks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    fake = start(
        options.name,
        port=options.port,
        queued_seconds=options.queued,
        running_seconds=options.running,
        video_side=options.side,
        statuses_per_second=options.statuses_per_second,
        webhook_url=options.webhook_url,
    )
    credentials = {
        "api_key": "sk-demo",
        "client_id": fake.client_id,
        "client_secret": fake.client_secret,
        "webhook_secret": fake.webhook_secret,
    }
    facts = {"base_url": fake.url, "credentials": credentials}
    sys.stdout.write(f"{json.dumps(facts) if options.json else fake.url}\n")
    sys.stdout.flush()
    stopping.wait()
    fake.stop()


if __name__ == "__main__":
    main()
