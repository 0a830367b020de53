"""Memory of this process, and the peak of a served network's.

python -m tfprune.experiments.memory SAVED_MODEL BATCH_SIZE

prints by how many bytes the resident memory of a process rises, at most, that loads the network and runs it once.
"""

from __future__ import annotations

import contextlib
import math
import sys
from pathlib import Path


def resident(field: str) -> float:
    """Resident memory of this process in bytes, now (VmRSS) or at most (VmHWM); NaN where Linux does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return math.nan
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(field)), math.nan)


def reset_peak() -> None:
    """Lets VmHWM begin again from what is resident now."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _of_one_pass(folder: str, batch_size: int) -> float:
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    import tensorflow as tf

    tf.constant(0)  # what TensorFlow itself takes at its first operation
    before = resident("VmRSS")
    reset_peak()
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    (shape,) = (spec.shape for spec in serve.structured_input_signature[1].values())
    serve(**{name: tf.zeros([batch_size, *shape[1:]]) for name in serve.structured_input_signature[1]})
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(_of_one_pass(sys.argv[1], int(sys.argv[2])))
