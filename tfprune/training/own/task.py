"""A task of any kind: the loss, the metrics and the optimizer with which a user's network is compiled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfprune.errors import UsageError
from tfprune.graph.keras_internals import carry_over_decay, wrapped_functions
from tfprune.graph.walk import functional, pack_outputs
from tfprune.support.checks import error_line, shown
from tfprune.training.measures import ERROR, SCORE, SHARE, Measure
from tfprune.training.own.schedules import OwnSchedule, lowest
from tfprune.training.own.steps import OwnSteps, in_float32, metrics_by_name, metrics_of
from tfprune.training.regimes import Regime
from tfprune.training.schedules import Schedule
from tfprune.training.tasks import Task

if TYPE_CHECKING:
    from tfprune.training.own.arrays import ArraysInMemory

BETTER = ("higher", "lower")
# Metrics of Keras, by which of two values is better.
_SHARES = (
    keras.metrics.Accuracy, keras.metrics.BinaryAccuracy, keras.metrics.CategoricalAccuracy,
    keras.metrics.SparseCategoricalAccuracy, keras.metrics.TopKCategoricalAccuracy,
    keras.metrics.SparseTopKCategoricalAccuracy,
)  # fmt: skip
_SCORES = (
    *_SHARES, keras.metrics.AUC, keras.metrics.Precision, keras.metrics.Recall, keras.metrics.FBetaScore,
    keras.metrics.IoU, keras.metrics.MeanIoU, keras.metrics.R2Score, keras.metrics.CosineSimilarity,
    keras.metrics.SensitivityAtSpecificity, keras.metrics.SpecificityAtSensitivity, keras.metrics.PrecisionAtRecall,
    keras.metrics.RecallAtPrecision,
)  # fmt: skip
_ERRORS = (
    keras.metrics.MeanAbsoluteError, keras.metrics.MeanSquaredError, keras.metrics.RootMeanSquaredError,
    keras.metrics.MeanAbsolutePercentageError, keras.metrics.MeanSquaredLogarithmicError, keras.metrics.LogCoshError,
    keras.metrics.BinaryCrossentropy, keras.metrics.CategoricalCrossentropy,
    keras.metrics.SparseCategoricalCrossentropy, keras.metrics.KLDivergence, keras.metrics.Poisson,
    keras.metrics.Hinge, keras.metrics.SquaredHinge, keras.metrics.CategoricalHinge,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a user says of a task; None where nothing is said.

    Attributes:
        loss: As `keras.Model.compile` takes it.
        metrics: Likewise.
        judged_by: Name of the metric that the verdict is about.
        better: `"higher"` or `"lower"`: which is better of that metric.
        optimizer: Of Keras.
        loss_weights: As `keras.Model.compile` takes them.
        weighted_metrics: Likewise.
    """

    loss: Any = None
    metrics: Any = None
    judged_by: str | None = None
    better: str | None = None
    optimizer: Any = None
    loss_weights: Any = None
    weighted_metrics: Any = None


class OwnTask(Task):
    """What a user's network is trained for.

    Args:
        model: The network, for its outputs.
        wishes: Loss and metrics; without an optimizer the paper's SGD trains.
        sample: Inputs and targets of a few examples, with their weights or None: losses and metrics are tried on them.

    Attributes:
        measure: What networks are judged by.

    Raises:
        UsageError: If a loss or a metric cannot be computed, or it is not known what is judged.
    """

    def __init__(self, model: keras.Model, wishes: Wishes, sample: tuple[Any, Any, Any]):
        self._model, self._wishes = functional(model), wishes
        self._sample = sample[0], tuple(sample[1:])
        self._rule = None
        if wishes.optimizer is not None:
            self._config, self._rule = _apart(wishes.optimizer)
        self.own_optimizer = wishes.optimizer is not None
        judge = self._judge()
        self.measure = _measure(judge, wishes)

    @property
    def words(self) -> dict[str, str]:
        """What the task is, for people and for the key of a training: `loss`, `metric` and `optimizer`."""
        wishes, kind = self._wishes, self.measure.kind
        told = {"loss": _words([wishes.loss, wishes.loss_weights]), "metric": f"{self.measure.name} ({kind})"}
        others = [value for value in (wishes.metrics, wishes.weighted_metrics) if value]
        told["metric"] += f" {_digest(others)}" if others else ""
        if wishes.optimizer is not None:
            config = {name: value for name, value in wishes.optimizer.get_config().items() if name != "name"}
            told["optimizer"] = f"{type(wishes.optimizer).__name__} {_digest(json.dumps(config, default=str))}"
        return told

    def optimizer(self, momentum: float, weight_decay: float, nesterov: bool, precision: str) -> keras.Optimizer:
        """A copy of the user's, whose learning rate the loop sets; without one the paper's SGD."""
        if not self.own_optimizer:
            return super().optimizer(momentum, weight_decay, nesterov, precision)
        made = type(self._wishes.optimizer).from_config(json.loads(json.dumps(self._config)))
        carry_over_decay(self._wishes.optimizer, made, {}, ())  # what it excludes by names
        return made

    def steps(
        self, model: keras.Model, source: ArraysInMemory, batch_size: int, strategy: tf.distribute.Strategy, xla: bool
    ) -> OwnSteps:
        """As of every task, with a judge of their own."""
        return OwnSteps(self._judge(), model, source, batch_size, strategy, xla)

    def large_schedule(self, learning_rate: float, epochs: int, drops: str, steps: int, slower: float = 1) -> Schedule:
        """The user's own rates, if the optimizer is."""
        if self._rule is None:
            return super().large_schedule(learning_rate, epochs, drops, steps, slower)
        return OwnSchedule.of(self._rule, steps, slower=slower)

    def regime_schedule(
        self, regime: Regime, learning_rate: float, large_epochs: int, epochs: int, drops: str, steps: int
    ) -> Schedule:
        """The user's own rates stretched over the epochs, or the lowest of them, if the optimizer is the user's."""
        if self._rule is None:
            return super().regime_schedule(regime, learning_rate, large_epochs, epochs, drops, steps)
        if regime.constant:
            return Schedule(lowest(self._rule, large_epochs, steps))
        return OwnSchedule.of(self._rule, steps, speed=large_epochs / epochs)

    def _judge(self) -> keras.Model:
        """A compiled model of the network's outputs, as `OwnSteps` takes it, tried on the sample."""
        wishes, names = self._wishes, self._model.output_names
        stubs = [
            keras.Input(batch_shape=(None, *tensor.shape[1:]), dtype=_dtype(tensor), name=name)
            for name, tensor in zip(names, self._model.outputs, strict=True)
        ]
        judge = keras.Model(stubs, pack_outputs(self._model, stubs))
        inputs, (targets, weights) = self._sample
        outputs = in_float32(self._model(inputs, training=False))
        settings = {
            name: keras.tree.map_structure(_again, getattr(wishes, name))
            for name in ("loss", "loss_weights", "metrics", "weighted_metrics")
        }
        received = f"targets {_shapes(targets)}, outputs {_shapes(outputs)}"
        received += "" if weights is None else f", weights {_shapes(weights)}"
        try:
            judge.compile(**settings)
            judge.compute_loss(None, targets, outputs, weights)
        except Exception as error:  # whatever Keras, TensorFlow or the code of others raises
            raise UsageError(
                f"The loss {shown(wishes.loss)} cannot be computed of {received}: {error_line(error)}. Give a loss for "
                f"the outputs {', '.join(names)}."
            ) from error
        try:
            judge.compute_metrics(None, targets, outputs, weights)
        except Exception as error:  # likewise
            raise UsageError(
                f"The metrics {shown(wishes.metrics or wishes.weighted_metrics)} cannot be computed of {received}: "
                f"{error_line(error)}. Give metrics for the outputs {', '.join(names)}."
            ) from error
        judge.reset_metrics()
        return judge


def _dtype(tensor: keras.KerasTensor) -> str:
    return "float32" if tensor.dtype in ("float16", "bfloat16") else tensor.dtype


def _again(value: Any) -> Any:
    """A metric with a state of its own; anything else as it is."""
    if not isinstance(value, keras.metrics.Metric):
        return value
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a lambda in the config, which is told below
            return type(value).from_config(value.get_config())
    except Exception as error:  # whatever Keras or the code of others raises
        raise UsageError(
            f"The metric {value.name!r} ({type(value).__name__}) cannot be made again from its config: "
            f"{error_line(error)[:200]}. Give a named function in metrics= instead of a lambda, or a class with "
            "get_config."
        ) from error


def _shapes(structure: Any) -> str:
    return str(keras.tree.map_structure(lambda own: ("n", *own.shape[1:]), structure)).replace("'n'", "n")


def _apart(optimizer: Any) -> tuple[dict[str, Any], Any]:
    """The config of an optimizer with a number for a learning rate, and the rate or the schedule that it had."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UsageError(f"optimizer= must be an optimizer of Keras, or 'paper'; received {shown(optimizer)}.")
    config = optimizer.get_config()
    own = config["inner_optimizer"]["config"] if "inner_optimizer" in config else config
    if "learning_rate" not in own:
        raise UsageError(
            f"The optimizer {type(optimizer).__name__} has no learning rate in its config. Take one of Keras', or "
            "optimizer='paper'."
        )
    rule = own["learning_rate"]
    if isinstance(rule, Mapping):
        rule = keras.saving.deserialize_keras_object(rule)
    own["learning_rate"] = float(rule(0)) if callable(rule) else float(rule)
    return config, rule


def _measure(judge: keras.Model, wishes: Wishes) -> Measure:
    """What is judged: the metric of the name that is given, or the first one; without any the loss."""
    if wishes.better is not None and wishes.better not in BETTER:
        raise UsageError(f"better={shown(wishes.better)} must be {' or '.join(BETTER)}.")
    found, names = metrics_by_name(judge), [*metrics_of(judge), "loss"]
    if wishes.judged_by is None and (first := next(iter(found), "loss")) not in names:
        raise UsageError(
            f"The first metric, {first!r}, is no single number, and the verdict is about one. Make it one, as "
            f"average='macro' does for F1Score, or give judged_by=. Valid: {', '.join(names)}."
        )
    name = names[0] if wishes.judged_by is None else wishes.judged_by
    if name not in names:
        raise UsageError(
            f"judged_by={shown(name)} is no metric of the network that is a single number. Valid: {', '.join(names)}."
        )
    if name == "loss":
        return Measure("loss", ERROR)
    metric = found.get(name)
    if isinstance(metric, _SHARES) and wishes.better in (None, "higher"):
        return Measure(name, SHARE)
    way = wishes.better or _better(metric)
    if way is None:
        raise UsageError(
            f"Whether more or less of the metric {name!r} is better is not known. Give better='higher' or 'lower' "
            "(--better)."
        )
    return Measure(name, ERROR if way == "lower" else SCORE)


def _better(metric: Any) -> str | None:
    """`"higher"` or `"lower"`, where it is known of a metric."""
    if isinstance(metric, _SCORES):
        return "higher"
    of_losses = any(own.__module__.startswith("keras.src.losses") for own in wrapped_functions(metric))
    return "lower" if of_losses or isinstance(metric, _ERRORS) else None


def _words(loss: Any) -> str:
    """A loss in words, with a digest where its name is not all of it."""
    flat = [value for value in keras.tree.flatten(loss) if value is not None]
    named = (one if isinstance(one, str) else getattr(one, "name", getattr(one, "__name__", "")) for one in flat)
    words = "+".join(name for name in named if name)
    return words if len(flat) == 1 and isinstance(flat[0], str) else f"{words} {_digest(loss)}"


def _digest(value: Any) -> str:
    """Eight hex digits of what Keras would write of it; of functions, where they are defined."""

    def told(one: Any) -> Any:
        if isinstance(one, (str, int, float, bool, type(None), np.number)):
            return str(one)
        attributes = vars(one) if isinstance(one, keras.losses.Loss) else {}  # the config of Huber lacks its delta
        try:
            return [keras.saving.serialize_keras_object(one), attributes]
        except Exception:  # an object of others without a config
            return f"{type(one).__module__}.{getattr(one, '__qualname__', type(one).__qualname__)}"

    flat = keras.tree.flatten_with_path(value) if isinstance(value, (dict, list, tuple)) else [((), value)]
    content = json.dumps([[str(path), told(one)] for path, one in flat], default=lambda own: type(own).__name__)
    return hashlib.sha256(content.encode()).hexdigest()[:8]
