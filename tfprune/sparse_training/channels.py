"""Channels that fade out while a network trains by its user's own `fit`; what is left of them is then removed.

The methods are those of `tfprune.methods`, where their sources are named; here they take any network and any optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfprune.errors import PlanError, UsageError
from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import layers_within, optimizer_at_work
from tfprune.methods import network_slimming, soft_filter, sparse_structure_selection
from tfprune.methods.base import Method, MethodSettings
from tfprune.methods.flags_of_methods import GATES
from tfprune.plans.base import Plan
from tfprune.sparse_training.base import Attached, SparseMethod, names_to_skip, warn_of_zeros
from tfprune.sparse_training.held import step_anew
from tfprune.support.checks import number_in, one_of
from tfprune.surgery.compiling import compile_alike
from tfprune.surgery.layers import plain_weights
from tfprune.surgery.rebuild import Built


class _OnChannels(Attached):
    """A method of the study on a network.

    Args:
        model: The network to train.
        method: The method.
        settings: What is asked of it.
    """

    def __init__(self, model: keras.Model, method: Method, settings: MethodSettings):
        self.model, self._method, self._settings = model, method, settings

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Those of the method."""
        return self._method.callbacks(self._settings)

    def finish(self) -> tuple[Plan, keras.Model]:
        """The plan of the method for the network."""
        return self._method.plan(self.model, self._settings), self.model


class NetworkSlimming(SparseMethod):
    """An L1 penalty on the gamma of every batch normalization; then the channels of least absolute gamma go.

    Args:
        ratio: Fraction of the channels to remove, of all together, in (0, 1).
        gamma_l1: Strength of the penalty, which is added to the loss. In a `train_step` of your own, add
            `sum(self.losses)`, as `compute_loss` does.
        skip: Names or wildcards of layers whose channels all stay.

    Raises:
        PlanError: For an argument out of range.
    """

    def __init__(self, ratio: float = 0.5, gamma_l1: float = 1e-4, *, skip: Sequence[str] = ()):
        number_in("ratio", ratio, 0.0, 1.0)
        number_in("gamma_l1", gamma_l1, 0.0, 1.0, "[)")
        self._settings = MethodSettings(ratio=ratio, skip=names_to_skip(skip), options={"gamma_l1": gamma_l1})

    def attach(self, model: keras.Model, initial_step: int | None) -> Attached:
        """Puts the penalty on every gamma."""
        _no_steps("NetworkSlimming", initial_step)
        network_slimming.METHOD.expected(model, self._settings)  # so that nothing is trained in vain
        warn_of_zeros(model, "NetworkSlimming")
        return _Penalised(model, network_slimming.METHOD, self._settings)


class _Penalised(_OnChannels):
    def __init__(self, model: keras.Model, method: Method, settings: MethodSettings):
        super().__init__(model, method, settings)
        normalizations = [
            layer
            for layer in layers_within(model)
            if isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None
        ]
        penalties = [_with_l1(layer, settings.option("gamma_l1")) for layer in normalizations]
        self._own = {layer: layer.gamma.regularizer for layer in normalizations}
        for layer, penalty in zip(normalizations, penalties, strict=True):
            layer.gamma.regularizer = penalty
        step_anew(model)

    def finish(self) -> tuple[Plan, keras.Model]:
        """Takes the penalty off; the plan ranks all gammas."""
        plan = super().finish()
        for layer, own in self._own.items():
            layer.gamma.regularizer = own
        step_anew(self.model)
        return plan


def _with_l1(layer: keras.layers.BatchNormalization, strength: float) -> keras.regularizers.Regularizer:
    """The penalty beside the one that a gamma has."""
    own = layer.gamma.regularizer
    if own is None:
        return keras.regularizers.L1(strength)
    if isinstance(own, keras.regularizers.L1 | keras.regularizers.L2 | keras.regularizers.L1L2):
        return keras.regularizers.L1L2(float(getattr(own, "l1", 0.0)) + strength, float(getattr(own, "l2", 0.0)))
    raise PlanError(
        f"{layer.name} has a gamma_regularizer of its own ({type(own).__name__}), beside which no L1 can stand. Make "
        "the network without it, or with one of keras.regularizers.L1, L2, L1L2."
    )


class SoftFilter(SparseMethod):
    """Sets the weakest filters of every convolution to zero after each epoch; those that stay zero are removed.

    Args:
        ratio: Fraction of the filters of every convolution, in (0, 1).

    Raises:
        PlanError: For an argument out of range.
    """

    def __init__(self, ratio: float = 0.5):
        number_in("ratio", ratio, 0.0, 1.0)
        self._ratio = ratio

    def attach(self, model: keras.Model, initial_step: int | None) -> Attached:
        """Nothing is put on the network; its callbacks do it all."""
        _no_steps("SoftFilter", initial_step)
        attached = _Softened(model, self._ratio)
        attached.check()
        warn_of_zeros(model, "SoftFilter")
        return attached


class _Softened(_OnChannels):
    def __init__(self, model: keras.Model, ratio: float):
        super().__init__(model, soft_filter.METHOD, MethodSettings(ratio=ratio))
        self._ratio = ratio

    def check(self) -> None:
        """Raises a PlanError if no channel could be removed."""
        self._method.expected(self.model, self._settings)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The one that zeroes the filters of the convolutions whose channels can be removed."""
        producers = [record.operation for record in ChannelGraph(self.model).producers()]
        return [soft_filter.ZeroFilters(self._ratio, producers)]

    def finish(self) -> tuple[Plan, keras.Model]:
        """The plan for the filters that are zero, also where steps were made after the last epoch."""
        for callback in self.callbacks():
            callback.on_train_begin()
        return super().finish()


class SparseStructureSelection(SparseMethod):
    """Gates on residual blocks, channels or groups, with an L1 penalty; what is behind gates that close goes.

    The gates are taken down by proximal steps: after each update by the learning rate times `gate_l1`, not below zero.
    With SGD that is the proximal gradient method; with Adam and its kind, whose steps have other sizes, close to it.

    A gate is a weight more, so what is trained is another network of the same weights, functional and compiled alike;
    `tfprune.finish` gives the weights back to the one that it was made of. Of the other, save weights alone
    (`save_weights_only=True`): a file of the whole would need the classes of its gates. They go on in a network that
    is made anew.

    Args:
        gate_l1: Strength of the penalty.
        ratio: Fraction of the gated structures to remove, those of the smallest gates; None: those with gates of zero.
        gates: `"blocks"`, `"neurons"` or `"groups"`.

    Raises:
        PlanError: For an argument out of range.
    """

    def __init__(self, gate_l1: float = 1e-2, ratio: float | None = None, *, gates: str = "blocks"):
        number_in("gate_l1", gate_l1, 0.0, 100.0)
        one_of("gates", gates, GATES)
        if ratio is not None:
            number_in("ratio", ratio, 0.0, 1.0)
        self._settings = MethodSettings(ratio=ratio, options={"gate_l1": gate_l1, "gates": gates})

    def attach(self, model: keras.Model, initial_step: int | None) -> Attached:
        """Makes the network with gates."""
        _no_steps("SparseStructureSelection", initial_step)
        if type(model).train_step is not keras.Model.train_step:
            raise PlanError(
                f"SparseStructureSelection trains a functional network made of {model.name!r}, without the train_step "
                f"of {type(model).__name__}. Take NetworkSlimming, or fit without a train_step of your own."
            )
        sparse_structure_selection.METHOD.expected(model, self._settings)
        warn_of_zeros(model, "SparseStructureSelection")
        return _Gated(model, sparse_structure_selection.METHOD, self._settings)


class _Gated(_OnChannels):
    def __init__(self, model: keras.Model, method: Method, settings: MethodSettings):
        graph = ChannelGraph(model)
        with model.distribute_strategy.scope():
            built = Built(graph, graph.keep_all(), edit=method.edit(settings), loadable=False)
            compile_alike(built.model, model, built.copies())
        super().__init__(built.model, method, settings)
        self._plain = model
        for layer in built.model.layers:
            if hasattr(layer, "gate"):
                layer.gate.constraint = _ProximalStep(settings.option("gate_l1"))
        self._folding = method.callbacks(settings)

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """None: gates are folded into the weights in `finish`, so that several trainings can follow each other."""
        return []

    def finish(self) -> tuple[Plan, keras.Model]:
        """Folds the gates, and gives all weights back to the network that the gated one was made of."""
        for callback in self._folding:
            callback.set_model(self.model)
            callback.on_train_end()
        learned = self._method.learned(self._folding)
        for record in ChannelGraph(self._plain).records.values():
            if record.whole is None and record.weights:
                trained = plain_weights(self.model.get_layer(record.name))
                for own, weight in zip(record.weights, trained, strict=True):
                    own.assign(weight)
        settings = dataclasses.replace(self._settings, learned=learned)
        return self._method.plan(self._plain, settings), self._plain


class _ProximalStep(keras.constraints.Constraint):
    """Takes a gate towards zero after each update: Huang & Wang (ECCV 2018), without acceleration."""

    def __init__(self, strength: float):
        self._strength = strength

    def __call__(self, w: Any) -> Any:
        """Returns the gate less the learning rate times the strength, and not below zero."""
        optimizer: Any = optimizer_at_work()
        if optimizer is None:
            return w
        # Keras applies constraints after every batch, also where several make one update.
        batches = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        step = keras.ops.cast(optimizer.learning_rate, w.dtype) * (self._strength / batches)
        return keras.ops.maximum(keras.ops.subtract(w, step), 0.0)

    def get_config(self) -> Mapping[str, Any]:
        """The strength."""
        return {"strength": self._strength}


def _no_steps(method: str, initial_step: int | None) -> None:
    if initial_step is not None:
        raise UsageError(f"{method} knows no steps: leave initial_step out.")
