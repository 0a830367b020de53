"""The masked original: the network itself with the removed channels zero wherever channels are mixed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from tfprune.graph.channel_graph import ChannelGraph
from tfprune.graph.keras_internals import layers_within
from tfprune.graph.masking import ZEROS, Filling, Watch, run_masked
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import flat_inputs, pack_outputs


def masked_outputs(
    graph: ChannelGraph, kept: Any, inputs: list, watch: Watch | None = None, filling: Filling = ZEROS
) -> list:
    """What the whole network computes with the removed channels zero wherever channels are mixed.

    Args:
        graph: The channel graph of the model.
        kept: (labels,) bool, an array or a tensor.
        inputs: One array per model input.
        watch: Optional `watch(labels, value)`, called with every tensor whose channels are mixed, masked, and
            its label array; returns the tensor to go on with.
        filling: What stands in the places of the removed channels, if it is something else than zeros.

    Returns:
        The outputs, flat.
    """
    return graph.replay(
        [keras.ops.convert_to_tensor(value) for value in inputs],
        lambda call, values: run_masked(call, values, kept, watch, filling),
    )


@contextlib.contextmanager
def fresh_states(model: keras.Model) -> Iterator[None]:
    """Lets stateful recurrent layers begin anew, as those of the smaller network do; then the model is as before."""
    with left_as_it_is(model):
        for layer in layers_within(model):
            if getattr(layer, "stateful", False):
                layer.reset_state()
        yield


class MaskedModel(keras.Model):
    """The masked original as a model: it shares the layers and weights of the network that it masks.

    Args:
        graph: The channel graph of the network.

    Attributes:
        kept: (labels,) bool variable; assign it to remove other channels, at no cost of tracing again.
    """

    def __init__(self, graph: ChannelGraph):
        super().__init__(name=f"masked_{graph.model.name}")
        self.graph, self.network = graph, graph.model
        self.kept = self.add_weight(shape=graph.keep_all().shape, dtype="bool", trainable=False, name="kept")
        self.kept.assign(graph.keep_all())
        self.built = True

    def call(self, inputs: Any) -> Any:
        """The masked outputs, in the structure of the network's."""
        outputs = masked_outputs(self.graph, self.kept.value, flat_inputs(self.network, inputs))
        return pack_outputs(self.network, outputs)
