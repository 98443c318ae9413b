"""The peak memory of one aggregator over a stream of releases, in a process that does nothing else.

``python -m simulations.cost.memory NAME USERS BYTES``, with the bytes of a release, writes one line of JSON.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from simulations.cost.crowd import Shape, adapter, releases, sized
from strategies import aggregators
from strategies.tree import nbytes

SHAPE = Shape(modules=1, outputs=512, inputs=512, rank=64)
ROOT = Path(__file__).resolve().parents[2]


def in_process(name: str, users: int, size: int) -> dict[str, Any]:
    """Measure an aggregator in a process of its own: see `measured`."""
    words = [sys.executable, "-m", "simulations.cost.memory", name, str(users), str(size)]
    return json.loads(subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def measured(name: str, users: int, size: int) -> dict[str, Any]:
    """``peak`` and ``before``: bytes that this process has held at most, in the end and before the first release; CPU seconds.

    ``release``: bytes of one.
    """
    aggregator = aggregators.build(name, {})
    shared = adapter(aggregator, sized(aggregator, SHAPE, size))
    memory, given = aggregator.init(shared), releases(aggregator, shared, users)
    bytes_up = nbytes(next(releases(aggregator, shared, 1)).update)
    before, began = peak(), time.process_time()
    aggregator.apply(memory, shared, given)
    return {"peak": peak(), "before": before, "release": bytes_up, "seconds": time.process_time() - began}


def peak() -> int:
    """Bytes of memory that this process has held at most."""
    status = Path("/proc/self/status")
    if status.exists():  # where a process is spawned, `getrusage` counts what its parent held
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measured(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))) + "\n")
