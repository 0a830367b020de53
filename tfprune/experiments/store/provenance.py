"""Where a result comes from: the versions, the machine and the time that it took."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tensorflow as tf

import tfprune

_PACKAGES = ("tfprune", "tensorflow", "keras", "numpy", "tensorflow-model-optimization")


def provenance(seed: int, seconds: float) -> dict[str, Any]:
    """What is stored beside the results of a stage.

    Args:
        seed: Of the stage.
        seconds: That it took, over all processes that worked on it.

    Returns:
        JSON types. Peak memory is that of the process so far, and of each GPU, in bytes.
    """
    return {
        "seed": seed,
        "seconds": round(seconds, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_memory": _peak_memory(),
        "command": sys.argv,
        **environment(),
    }


@functools.cache
def environment() -> dict[str, Any]:
    """Versions, commit, system and devices; JSON types."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return {
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(Path(tfprune.__file__).parent),
        "system": platform.platform(),
        "host": platform.node(),
        "devices": names or [f"{platform.machine()} CPU, {len(tf.config.list_logical_devices('CPU'))} logical"],
    }


def _commit(folder: Path) -> str | None:
    """The git commit of a source tree, with a + where files differ from it; None of an installed package."""
    git = ["git", "-C", str(folder)]
    try:
        if subprocess.run([*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True).returncode:
            return None
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "."], capture_output=True).returncode
        return f"{commit}+" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _peak_memory() -> dict[str, int]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"process": peak if sys.platform == "darwin" else peak * 1024}  # Linux counts in KiB
    for gpu in tf.config.list_logical_devices("GPU"):
        found[gpu.name] = tf.config.experimental.get_memory_info(gpu.name)["peak"]
    return found
