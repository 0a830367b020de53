"""Distribution strategies: one device, the devices of one host, several hosts."""

from __future__ import annotations

import json
import os

import keras
import tensorflow as tf

from tfprune.errors import UsageError
from tfprune.support.registry import unknown_name
from tfprune.training import STRATEGIES


def make_strategy(name: str = "auto") -> tf.distribute.Strategy:
    """Makes the strategy under which networks are trained. Call it before any other TensorFlow operation.

    Args:
        name: `one_device`; `mirrored`: all GPUs of this host, or all logical CPU devices where there is no
            GPU; `multi_worker`: the hosts that the environment variable TF_CONFIG names; `auto`:
            `multi_worker` where TF_CONFIG is set, `mirrored` on several GPUs, else `one_device`.

    Raises:
        UsageError: For another name, or `multi_worker` without a TF_CONFIG that can be read.
    """
    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    if name == "auto" and "TF_CONFIG" in os.environ:
        name = "multi_worker"
    # Workers have to be joined before any device is used, and listing devices uses them.
    gpus = []
    if name != "multi_worker" and "TF_CONFIG" not in os.environ:
        gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "multi_worker":
        _check_cluster(os.environ.get("TF_CONFIG"))
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise UsageError(
                f"The workers of TF_CONFIG cannot be joined ({error.message}). Each listens on a port "
                f"of its own, which no other process may use; received TF_CONFIG={os.environ['TF_CONFIG']}."
            ) from error
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def make_deterministic() -> None:
    """Makes every operation give the same result each time, or fail. Call it before any operation."""
    keras.utils.set_random_seed(0)  # what TensorFlow's check for unseeded operations wants to see
    tf.config.experimental.enable_op_determinism()


def worker_index(strategy: tf.distribute.Strategy) -> int:
    """0 on the worker that writes results (the chief), another number on the others."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return 0
    spec = resolver.cluster_spec().as_dict()
    chiefs = len(spec.get("chief", ()))
    return resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)


def several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether processes train together that TF_CONFIG names."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def agree(strategy: tf.distribute.Strategy, flag: bool) -> bool:
    """Whether a flag is true on every worker; all workers have to ask together."""
    if not several_workers(strategy):
        return flag
    return all(_gathered(strategy, tf.constant(flag)).numpy())


def all_equal(strategy: tf.distribute.Strategy, number: int) -> bool:
    """Whether every worker has the same number; all workers have to ask together."""
    if not several_workers(strategy):
        return True
    return len(set(_gathered(strategy, tf.constant(number)).numpy().tolist())) == 1


@tf.function
def _gathered(strategy: tf.distribute.Strategy, value: tf.Tensor) -> tf.Tensor:
    """The scalar of every replica."""
    values = strategy.run(lambda: tf.reshape(tf.cast(value, tf.int64), [1]))
    return strategy.gather(values, axis=0)


def _check_cluster(config: str | None) -> None:
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    if not config:
        raise UsageError(f"--strategy=multi_worker needs the environment variable TF_CONFIG, such as {example}.")
    try:
        content = json.loads(config)
        content["cluster"][content["task"]["type"]][int(content["task"]["index"])]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"TF_CONFIG cannot be read ({error!r}); it should be like {example}.") from error
