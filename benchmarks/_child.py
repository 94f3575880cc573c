"""One measurement in a process of its own, so that its peak memory is its own: `python -m benchmarks._child JOB`."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import _contenders, _model
from benchmarks._measure import median_of_calls
from benchmarks._peers import Missing


def peak_bytes() -> int:
    """The largest resident size of this process so far.

    ru_maxrss is no good where a parent has grown large: on Linux it survives exec, so a child starts with its parent's.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for entry in status.read_text().splitlines():
            if entry.startswith("VmHWM:"):
                return int(entry.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(job: dict[str, Any]) -> dict[str, Any]:
    name, batch, k = job["name"], job["batch"], job["k"]
    try:
        if job["gradient"]:
            function: Any = _contenders.value_and_grad(name, batch, k)
        else:
            function = _contenders.LOSSES[name](k)
    except Missing as error:
        return {"missing": str(error)}
    x = jnp.asarray(_model.images(batch, Path(job["data"]) if job["data"] else None))
    args = _model.init(jax.random.key(1)), jax.random.key(0), x
    start = peak_bytes()
    compiled = jax.jit(function).lower(*args).compile()
    seconds, out = median_of_calls(lambda: compiled(*args), least=job["calls"])
    device = jax.devices()[0].memory_stats() or {}
    return {
        "seconds": seconds,
        "peak": peak_bytes(),
        "before compiling": start,
        "device peak": device.get("peak_bytes_in_use"),
        "loss": float(out[0] if job["gradient"] else out),
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
