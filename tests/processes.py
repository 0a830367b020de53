"""Processes of their own, with several replicas or workers: TensorFlow can be set up for them only at its start."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

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


def start(folder, name, code, *arguments, **environment):
    script = folder / f"{name}.py"
    script.write_text(SHARED + code, encoding="utf-8")
    inherited = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**inherited, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
    )  # fmt: skip


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
