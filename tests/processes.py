"""Processes of their own: TensorFlow is set up for replicas or workers at its start, and processes can be killed.

They are forked from a process that has imported TensorFlow and everything else, and has done nothing with it: each
begins at once instead of after the seconds that these imports take. That a command begins in a new Python is tested
where `subprocess` is used.
"""

import io
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED_BEFORE = ["tensorflow", "keras", "tfprune.experiments.studies.study", "tests.helpers"]

# What every script starts with: data, and networks with and without normalization.
SHARED = """
import json, os, sys
import numpy as np

def two_devices():
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

def make_data():
    from tfprune.data.image_data import ImageData
    generator = np.random.default_rng(0)
    splits = []
    for count in (44, 31):
        labels = generator.integers(0, 3, count).astype(np.int32)
        pixels = 40 + 60 * labels[:, None, None, None] + generator.normal(0, 30, (count, 32, 32, 1))
        splits += [np.clip(pixels, 0, 255).astype(np.uint8), labels]
    return ImageData("made", *splits, 3, (0.4,), (0.25,))

def make_model(normalize):
    import keras
    from keras import layers
    from tests.helpers import randomize
    inputs = keras.Input((32, 32, 1))
    # The penalty has to be counted once, and not once a replica.
    x = layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L1(0.05), name="conv")(inputs)
    if normalize:
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name="bn")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)), 1)

def train(strategy, normalize, epochs=3, callbacks=(), batch_size=8, held_out=0, **config):
    from tfprune.training.loop import Trainer, TrainingConfig
    from tfprune.training.schedules import Schedule
    model, data = make_model(normalize), make_data()
    data = data.holding_out(held_out) if held_out else data
    trainer = Trainer(model, data, TrainingConfig(batch_size=batch_size, weight_decay=1e-3, **config), strategy)
    return trainer, trainer.run(model.get_weights(), epochs, Schedule(0.1, (2,)), 5, callbacks)
"""


class Process:
    """A function in a forked process, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, folder, function, *arguments, environment=None):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED_BEFORE)  # heeded when the first process is started
        self._files = [Path(folder) / f".{time.monotonic_ns()}.{name}" for name in ("out", "err")]
        self._process = context.Process(
            target=_in_child, args=(str(folder), self._files, environment or {}, function, arguments)
        )
        self._process.start()

    def poll(self):
        return self._process.exitcode

    @property
    def returncode(self):
        return self._process.exitcode

    def communicate(self, timeout):
        """Waits for the end; what was written on standard output and standard error."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"not at its end after {timeout} s"
        return tuple(file.read_text(encoding="utf-8") if file.exists() else "" for file in self._files)

    def kill(self):
        self._process.kill()


def _in_child(folder, files, environment, function, arguments):
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    for descriptor, file in zip((1, 2), files, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), line_buffering=True, write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), line_buffering=True, write_through=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which is ignored where the tests run in the background
    sys.exit(function(*arguments))


def _run_script(script, *arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def start(folder, name, code, *arguments, **environment):
    """Starts a script that begins with `SHARED`."""
    script = folder / f"{name}.py"
    script.write_text(SHARED + code, encoding="utf-8")
    return Process(folder, _run_script, str(script), *arguments, environment={"TF_CONFIG": None, **environment})


def finish(*processes):
    """Outputs of processes that have to end well."""
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err[-3000:]
            outputs.append(out)
    finally:
        for process in processes:
            process.kill()
    return outputs


def last_json(output):
    return json.loads(output.strip().splitlines()[-1])


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(folder, name, code, *arguments):
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    return [
        start(
            folder, f"{name}{index}", code, *arguments,
            TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}),
        )
        for index in (0, 1)
    ]  # fmt: skip
