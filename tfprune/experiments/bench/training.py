"""The training loop beside `fit` of the same network and beside PyTorch: bare steps, and whole epochs."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfprune.data.image_data import ImageData
from tfprune.experiments.bench.peers import Peer
from tfprune.experiments.bench.rows import COST, SPEED, Row
from tfprune.experiments.bench.timing import Times, in_turns
from tfprune.experiments.bench.trainers import BATCH_SIZE, CLASSES, MEAN, STD, TimedTrainer, random_data
from tfprune.models import build_model

GROUP = "training"
_STEPS, _EPOCH = "bare steps", "epoch with augmentation"
_FIT, _FIT_AUGMENTED = "Keras fit", "Keras fit with augmentation"
_MOST_OF_AN_EPOCH = 1.05


@dataclasses.dataclass(frozen=True)
class _Network:
    """A network, the steps of an epoch (a few seconds), and the least speed beside `fit` and PyTorch."""

    name: str
    width: float
    steps: int
    beside_fit: float | None = None
    beside_torch: float | None = None

    def __str__(self) -> str:
        return self.name if self.width == 1 else f"{self.name} x {self.width:g}"


_NETWORKS = (
    _Network("vgg16", 0.25, 24, 1.25, 1.0),
    _Network("resnet20", 1.0, 12, 1.25, 1.0),
    _Network("vgg16", 1.0, 2, 1.0, 1.0),
    _Network("resnet56", 1.0, 3),
    _Network("densenet40", 0.5, 2),
)


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields the rows of every network."""
    for network in _NETWORKS:
        keras.backend.clear_session()
        steps = max(2, network.steps // 4) if quick else network.steps
        yield from _rows(network, steps, rounds=2 if quick else 5 if network.beside_fit else 3)


def _rows(network: _Network, steps: int, rounds: int) -> Iterator[Row]:
    data = random_data(steps)
    model = build_model(network.name, data.input_shape, CLASSES, network.width)
    bare, whole = TimedTrainer(model, data, bare=True), TimedTrainer(model, data)
    for trainer in (bare, whole):
        trainer.prepare()
    runs = {
        _STEPS: bare,
        _EPOCH: whole,
        _FIT: _fit(model, *_normalized(data), batch_size=BATCH_SIZE),
        _FIT_AUGMENTED: _fit(model, _augmented(data), shuffle=False),  # the pipeline shuffles
    }
    baselines, torch = [_STEPS, _FIT, _FIT_AUGMENTED], {}
    with ExitStack() as stack:
        if importlib.util.find_spec("torch") is not None:
            layouts = {f"PyTorch, {layout}": layout for layout in ("channels_last", "NCHW")}
            torch = {name: stack.enter_context(_TorchSteps(network, steps, own)) for name, own in layouts.items()}
        times = in_turns(runs | torch, [*baselines, *torch], rounds)
    for own, baseline, target in (
        (_STEPS, _FIT, network.beside_fit),
        (_EPOCH, _FIT_AUGMENTED, None),
        *((_STEPS, name, network.beside_torch) for name in torch),
    ):
        yield _row(network, times, own, baseline, steps, SPEED, target)
    yield _row(network, times, _EPOCH, _STEPS, steps, COST, _MOST_OF_AN_EPOCH)


def _row(
    network: _Network, times: Times, own: str, baseline: str, steps: int, measure: str, target: float | None
) -> Row:
    speeds = [f"{steps * BATCH_SIZE / times.median(name):,.0f}" for name in (own, baseline)]
    value = f"{speeds[0]} and {speeds[1]} images/s"
    return Row.of(GROUP, times, own, baseline, measure, name=f"{network}, {own}", target=target, value=value)


def _fit(model: keras.Model, *data: object, **options: object) -> Callable[[], object]:
    plain = keras.models.clone_model(model)
    plain.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return lambda: plain.fit(*data, verbose=0, **options)


def _normalized(data: ImageData) -> tuple[np.ndarray, np.ndarray]:
    return ((data.train_images / 255 - MEAN) / STD).astype(np.float32), data.train_labels


def _augmented(data: ImageData) -> tf.data.Dataset:
    """The pipeline that TensorFlow's guides recommend, with the augmentation of CIFAR."""

    def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        padded = tf.pad(image, ((4, 4), (4, 4), (0, 0)))
        flipped = tf.image.random_flip_left_right(tf.image.random_crop(padded, image.shape))
        return (tf.cast(flipped, tf.float32) / 255 - MEAN) / STD, label

    examples = tf.data.Dataset.from_tensor_slices((data.train_images, data.train_labels)).cache()
    augmented = examples.shuffle(data.train_count).map(augment, tf.data.AUTOTUNE)
    return augmented.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


class _TorchSteps(Peer):
    """So many steps in PyTorch, in a process of its own, whenever it is called."""

    def __init__(self, network: _Network, steps: int, layout: str):
        super().__init__("PyTorch", "torch_networks", network.name, network.width, CLASSES, BATCH_SIZE, layout)
        self._steps = steps

    def __call__(self) -> None:
        self.ask(self._steps)
