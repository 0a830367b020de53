"""What every method adds to the plain training loop: whole trainings of an epoch or two, beside plain ones."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import keras

from tfprune.data.image_data import ImageData
from tfprune.experiments.bench.rows import COST, Row
from tfprune.experiments.bench.timing import in_turns
from tfprune.experiments.bench.trainers import CLASSES, SCHEDULE, TimedTrainer, random_data
from tfprune.experiments.studies.monitor import EpochLines, TensorBoardLog
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.planning.weights import plan_weights
from tfprune.surgery.rebuild import Edit

GROUP = "methods"
_PLAIN = "the plain loop"
_SPARSITY, _RATIO = 0.8, 0.5


@dataclasses.dataclass(frozen=True)
class _Addition:
    """What is added to the loop, and the most that it may cost."""

    name: str
    edit: Edit | None
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]]
    most: float | None = None


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields the rows of VGG-16 at a quarter of its width, and of gates on the blocks of ResNet-20."""
    rounds = 2 if quick else 5
    data = random_data(10 if quick else 47)  # steps: 6,000 images, as the smallest data set that is shipped has
    vgg = build_model("vgg16", data.input_shape, CLASSES, 0.25)
    masks = plan_weights(vgg, _SPARSITY)
    slimming, soft = METHODS.get("network_slimming"), METHODS.get("soft_filter")
    settings = MethodSettings(ratio=_RATIO)
    yield from _rows("vgg16 x 0.25", vgg, data, rounds, [
        _Addition("slimming's L1 on gamma", slimming.edit(settings), list, 1.03),
        _Addition(f"masks of magnitude, {_SPARSITY:.0%} zeros", masks.edit(), masks.callbacks, 1.05),
        _Addition("soft filter pruning", None, lambda: soft.callbacks(settings)),
        _gates("neurons"),
    ])  # fmt: skip
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        yield from _watched("vgg16 x 0.25", vgg, data, rounds, Path(folder))
    data = random_data(5 if quick else 20)
    resnet = build_model("resnet20", data.input_shape, CLASSES)
    yield from _rows("resnet20", resnet, data, rounds, [_gates("blocks")])


def _gates(kind: str) -> _Addition:
    selection, settings = METHODS.get("sparse_structure_selection"), MethodSettings(options={"gates": kind})
    return _Addition(f"gates on {kind}", selection.edit(settings), lambda: selection.callbacks(settings))


def _rows(
    network: str, model: keras.Model, data: ImageData, rounds: int, additions: Sequence[_Addition]
) -> Iterator[Row]:
    plain = TimedTrainer(model, data)
    runs = {_PLAIN: lambda: plain.run(plain.start, 1, SCHEDULE, 0)}
    for addition in additions:
        trainer = plain if addition.edit is None else TimedTrainer(model, data, addition.edit)
        runs[addition.name] = lambda trainer=trainer, addition=addition: trainer.run(
            trainer.start, 1, SCHEDULE, 0, addition.callbacks()
        )
    times = in_turns(runs, [_PLAIN], rounds)
    for addition in additions:
        name = f"{network}, {addition.name}"
        yield Row.of(GROUP, times, addition.name, _PLAIN, COST, name=name, target=addition.most)


def _watched(network: str, model: keras.Model, data: ImageData, rounds: int, folder: Path) -> Iterator[Row]:
    """Two epochs, because the last one leaves no checkpoint."""
    trainer, name = TimedTrainer(model, data), "checkpoints, TensorBoard and lines of epochs"
    checkpoint = folder / "checkpoint.npz"

    def watched() -> None:
        checkpoint.unlink(missing_ok=True)
        log = TensorBoardLog(folder / "tensorboard")
        with open(folder / "epochs.txt", "w", encoding="utf-8") as file, redirect_stdout(file):
            trainer.run(trainer.start, 2, SCHEDULE, 0, [log, EpochLines()], checkpoint=checkpoint)

    runs = {_PLAIN: lambda: trainer.run(trainer.start, 2, SCHEDULE, 0), name: watched}
    times = in_turns(runs, [_PLAIN], rounds)
    yield Row.of(GROUP, times, name, _PLAIN, COST, name=f"{network}, {name}", target=1.03)
