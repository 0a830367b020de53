"""Importing TensorFlow: once, late, on the right backend and without its console noise."""

from __future__ import annotations

import os
import sys
import tempfile

from tfprune.errors import UsageError


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras, quietly unless the user set `TF_CPP_MIN_LOG_LEVEL`.

    TensorFlow writes to the file descriptor of standard error, before any log level applies, which CPU
    features and CUDA libraries it looked for. These lines are held back while it is imported; if the import
    fails they are shown.

    Raises:
        UsageError: If Keras is set to another backend than TensorFlow.
    """
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise UsageError(f"tfprune needs Keras on TensorFlow; received KERAS_BACKEND={backend!r}. Unset it.")
    if "keras" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        import keras
    else:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
        sys.stderr.flush()
        shown = os.dup(2)
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                import keras
                import tensorflow as tf

                tf.config.list_physical_devices()
            except BaseException:
                held.seek(0)
                os.write(shown, held.read())
                raise
            finally:
                os.dup2(shown, 2)
                os.close(shown)
    if keras.backend.backend() != "tensorflow":  # chosen in Keras' own configuration file
        raise UsageError(
            f"tfprune needs Keras on TensorFlow; Keras runs on {keras.backend.backend()!r}. "
            "Set KERAS_BACKEND=tensorflow."
        )
