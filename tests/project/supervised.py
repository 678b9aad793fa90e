"""A supervisor in a process of its own, for tests to kill: `supervised.py FOLDER`.

FOLDER/table.json lists the processes; every event is a line on standard output.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from project.supervisor import Process, Stopped, Supervisor


def tell(name: str, event: str) -> None:
    sys.stdout.write(f"{name} {event}\n")
    sys.stdout.flush()


def main(folder: Path) -> None:
    table = [
        Process(
            **row | {"stop_signal": signal.Signals[row.get("stop_signal", "SIGTERM")]}
        )
        for row in json.loads((folder / "table.json").read_text())
    ]
    try:
        with Supervisor(logs=folder / "logs", tell=tell) as supervisor:
            supervisor.start(*table)
            tell("supervisor", "runs")
            supervisor.run()
    except Stopped as reason:
        tell("supervisor", f"stopped by {reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
