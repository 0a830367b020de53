import keras

from tests.helpers import predict
from tfprune.experiments.layer_networks import layer_networks
from tfprune.graph.inputs import random_inputs


def test_there_is_a_network_of_every_kind_that_can_be_run():
    networks = list(layer_networks())
    names = [name for name, _ in networks]
    assert len(names) == len(set(names)) > 70
    assert {"Conv1D", "Conv3DTranspose", "DepthwiseConv2D", "ConvLSTM1D", "LSTM(unroll=True)"} <= set(names)
    for name, make in networks:
        keras.backend.clear_session()
        model = make()
        kinds = [type(layer).__name__ for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        assert len(kinds) == 1, name
        assert name.startswith(kinds[0]) or kinds == ["GroupedQueryAttention"], name
        assert all(output.size for output in predict(model, *random_inputs(model, 2))), name
