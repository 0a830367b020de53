"""Network Slimming: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV 2017).

The network is trained with an L1 penalty on the gamma of every batch normalization; then the channels with
the smallest |gamma| of the whole network go. A normalization that reads a stream which others read too (the
blocks of PreResNets and DenseNets) selects for itself: the stream stays whole, and its own channels are
gathered in front of it.

Where their code removes everything up to and including the threshold's rank (one channel more than asked, more
with ties, and sometimes a whole layer), the rank here is exact, and a layer that would be emptied keeps one channel,
which the plan tells.
"""

from __future__ import annotations

import keras

from tfprune.errors import PlanError
from tfprune.graph.calls import Record
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.walk import stream_normalizations
from tfprune.methods.base import Method, MethodSettings
from tfprune.methods.flags_of_methods import METHODS
from tfprune.planning.channels import plan_channels
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import Plan
from tfprune.surgery.rebuild import Edit


class NetworkSlimming(Method):
    """Sparse training on gamma, then a global cut by |gamma|."""

    trains_sparse = True
    automatic = True
    ranks_any = True

    def edit(self, settings: MethodSettings) -> Edit:
        """Puts the penalty on gamma; its gradient is `gamma_l1 * sign(gamma)`, zero at zero."""

        def penalise(record: Record, config: dict) -> tuple[type, dict]:
            kind = type(record.operation)
            if issubclass(kind, keras.layers.BatchNormalization):
                penalty = keras.regularizers.serialize(keras.regularizers.L1(settings.option("gamma_l1")))
                config = {**config, "gamma_regularizer": penalty}
            return kind, config

        return penalise

    def training_in_words(self, settings: MethodSettings) -> str:
        """The penalty, if there is one."""
        penalty = settings.option("gamma_l1")
        return f"L1 on gamma {penalty:g}" if penalty else ""

    def sparse_key(self, settings: MethodSettings) -> str:
        """The other options: the key of a training has the penalty on gamma as a field of its own."""
        told = [
            option.text(settings.option(option.name))
            for option in METHODS.entry("network_slimming").options
            if option.name != "gamma_l1" and settings.option(option.name) != option.default
        ]
        return " ".join(told)

    def expected(self, model: keras.Model, settings: MethodSettings) -> tuple[Plan, bool]:
        """As of every method, if the network has gammas to rank."""
        if not any(map(_has_gamma, layers_within(model))):
            raise PlanError(
                f"network_slimming ranks channels by the gamma of batch normalization; {model.name!r} has none. Take a "
                "network with batch normalization, or another method."
            )
        return super().expected(model, settings)

    def plan(self, model: keras.Model, settings: MethodSettings) -> ChannelPlan:
        """Makes the plan for a network that was trained sparse; layers to skip had the penalty, but are not ranked."""
        views = stream_normalizations(model)
        # Layers are thinned to a few percent here (VGG-19 at 70 %), which the planner's own limit would not let happen.
        return plan_channels(
            model, settings.ratio, macs=settings.macs, criterion="gamma", scope="global", skip=settings.skip,
            views=views, max_ratio=1.0,
        )  # fmt: skip


def _has_gamma(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization) and layer.gamma is not None


METHOD = NetworkSlimming()
