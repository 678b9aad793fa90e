"""Run one benchmark, or each in turn: ``python -m benchmarks [NAME [OPTION…]]``.

A benchmark is a file ``bench_NAME.py`` here with a ``main(arguments)`` that prints its
figures beside a floor measured in the same run, and returns 0 when promises are kept.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    names = sorted(
        path.stem.removeprefix("bench_")
        for path in Path(__file__).parent.glob("bench_*.py")
    )
    if not arguments:
        return max(run(name, []) for name in names)
    name, *options = arguments
    if name not in names:
        print(f"There is no benchmark '{name}'; there are: {', '.join(names)}.")
        return 2
    return run(name, options)


def run(name: str, options: list[str]) -> int:
    print(f"--- {name}", flush=True)
    status: int = importlib.import_module(f"benchmarks.bench_{name}").main(options)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
