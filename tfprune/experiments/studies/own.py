"""The large network of a study, and what belongs to it where it is trained on a user's own data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

import keras
import numpy as np

from tfprune.data.own.examples import OwnData
from tfprune.errors import PlanError, UsageError
from tfprune.experiments.setup.settings import Settings
from tfprune.graph.keras_internals import compile_settings, layers_within
from tfprune.models import build_model, is_file
from tfprune.models.model_files import load, objects_of
from tfprune.surgery.rebuild import clone
from tfprune.training.own.fitting import check_metrics, check_targets, fitted, no_loss, sample_of, usual_loss
from tfprune.training.own.task import OwnTask, Wishes
from tfprune.training.tasks import Task


class LargeNetwork:
    """A large network, built once for all studies that begin with it.

    Args:
        architecture: The network; it gets other weights in the course of a study.
        identity: What the stages of a study know it by; None for the name or the file in the settings.

    Attributes:
        architecture: The network, with whatever weights it was last given: for what depends on none.
        identity: As given.
        given: The weights that it came with.

    Raises:
        UsageError: If all of it is frozen.
    """

    def __init__(self, architecture: keras.Model, identity: str | None = None):
        if not architecture.trainable_weights:
            raise UsageError(
                f"{architecture.name!r} has no weight that is trained: its layers are frozen, and a study trains. Set "
                "trainable = True for those that should be."
            )
        self.architecture, self.identity = architecture, identity
        self.given = architecture.get_weights()

    def with_weights(self, weights: list[np.ndarray]) -> keras.Model:
        """The network with these weights, until it is given others."""
        self.architecture.set_weights(weights)
        return self.architecture

    def first_weights(self, seed: int) -> list[np.ndarray]:
        """The weights with which its training begins; those of frozen layers are the given ones."""
        return clone(self.with_weights(self.given), weights="fresh", seed=seed).get_weights()


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """A user's network and data, as they are read.

    Attributes:
        model: The network; it stays as it is.
        data: The data; None where they are read from the settings.
        wishes: What is said of the task beside the settings of the study.
    """

    model: keras.Model
    data: OwnData | None
    wishes: Wishes


@dataclasses.dataclass(frozen=True, eq=False)
class OwnStudy:
    """What a study of a user's own data is about.

    Attributes:
        data: The data, as the network takes them.
        network: The large network.
        task: What it is trained for.
    """

    data: OwnData
    network: LargeNetwork
    task: Task

    @classmethod
    def of(cls, settings: Settings, given: Given, data: OwnData) -> OwnStudy:
        """Puts a network and data together.

        Raises:
            UsageError: If they do not fit each other, or the loss, or it is not known what to train for.
        """
        _check_trained_by_keras(given.model)
        try:
            own = clone(given.model)  # a study gives it other weights
        except PlanError as error:
            raise UsageError(f"The network {given.model.name!r} cannot be studied: {error}") from error
        data = fitted(own, data)
        wishes = _wishes(settings, given, data)
        check_targets(own, data, wishes.loss)
        for metrics in (wishes.metrics, wishes.weighted_metrics):
            check_metrics(own, data, metrics)
        identity = _identity(given.model, own, settings) if settings.in_memory else None
        return cls(data, LargeNetwork(own, identity), OwnTask(own, wishes, sample_of(data)))


def loaded(settings: Settings, data: OwnData) -> Given:
    """The network that settings name, for own data; raises a UsageError if it cannot be had."""
    if is_file(settings.model):
        model = load(settings.model, objects_of(settings.imports))
    elif data.input_shape is None or data.num_classes is None:
        raise UsageError(
            f"The model {settings.model!r} is for images of classes; {data.name} has {data.described()}. Give the path "
            "of a .keras file of your own."
        )
    else:
        model = build_model(settings.model, data.input_shape, data.num_classes, settings.width)
    return Given(model, None, Wishes())


def _check_trained_by_keras(model: keras.Model) -> None:
    """Raises a UsageError for a network whose class trains in its own way, of which a study would do nothing."""
    for name in ("train_step", "compute_loss", "test_step", "compute_metrics"):
        if getattr(getattr(model, name), "__func__", None) is not getattr(keras.Model, name):
            raise UsageError(
                f"{model.name!r} ({type(model).__name__}) has a {name} of its own, and a study trains with the loss "
                "and metrics of compile alone. If these say all of it, give keras.Model(model.inputs, model.outputs), "
                "with loss=, metrics= and optimizer=."
            )


def _wishes(settings: Settings, given: Given, data: OwnData) -> Wishes:
    """What to train for: what the user says now, else what the network is compiled with, else what classes suggest."""
    said, model = given.wishes, given.model
    compiled = compile_settings(model) if getattr(model, "compiled", False) else {}
    loss = settings.loss if said.loss is None else said.loss
    metrics = list(settings.metrics) or None if said.metrics is None else said.metrics
    if loss is None and compiled.get("loss") is None:
        usual = usual_loss(model, data)
        if usual is None:
            raise no_loss(model)
        loss, metrics = usual[0], usual[1] if metrics is None else metrics
    fields: dict[str, Any] = {}
    if loss is None:
        fields = {name: compiled.get(name) for name in ("loss", "loss_weights")}
        if metrics is None:
            fields |= {name: compiled.get(name) for name in ("metrics", "weighted_metrics")}
    else:
        fields["loss"] = loss
    if metrics is not None:
        fields["metrics"] = metrics
    if said.loss_weights is not None:
        fields["loss_weights"] = said.loss_weights
    return Wishes(
        **fields,
        judged_by=settings.judged_by,
        better=settings.better,
        optimizer=_optimizer(settings, said, compiled, model),
    )


def _optimizer(settings: Settings, said: Wishes, compiled: dict[str, Any], model: keras.Model) -> Any:
    """The optimizer to train with; None for the paper's SGD."""
    if settings.optimizer == "paper":
        return None
    found = compiled.get("optimizer") if said.optimizer is None else said.optimizer
    used = getattr(model, "optimizer", None)
    if said.optimizer is None and isinstance(used, keras.optimizers.LossScaleOptimizer):
        found = used  # also where Keras has put the scaling around it, for layers in float16
    if found is None and settings.optimizer == "model":
        raise UsageError(
            f"optimizer=model: {model.name!r} is not compiled, so it has no optimizer. Compile it, or leave that out."
        )
    try:
        return keras.optimizers.get(found) if isinstance(found, str) else found
    except ValueError:
        raise UsageError(
            f"optimizer={found!r} is no optimizer of Keras. Valid: auto, model, paper, a name such as 'adam', or an "
            "optimizer."
        ) from None


def _identity(model: keras.Model, own: keras.Model, settings: Settings) -> str:
    """What tells a network of a Python program from others: its layers, and weights where they are not made anew."""
    config = own.get_config()
    config.pop("name", None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    learned = [layer for layer in layers_within(own) if hasattr(layer, "finalize_state") or not layer.trainable]
    for weight in own.weights if settings.is_given else [one for layer in learned for one in layer.weights]:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return f"{plain_name(model)}:{digest.hexdigest()[:16]}"


def plain_name(model: keras.Model) -> str:
    """The name of a network without the number that Keras puts behind names that it makes."""
    return re.sub(r"_\d+$", "", model.name)
