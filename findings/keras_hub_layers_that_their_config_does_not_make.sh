#!/usr/bin/env bash
# Found by rebuilding the backbones of keras-hub layer by layer.
#
# keras-hub 0.32.0, Keras 3.15.1. Three layers cannot be made again from what they tell of themselves, so that a
# functional model of them, unlike the backbone around them, cannot be cloned or loaded: get_config of
# LlamaTransformerDecoder raises AttributeError, and the constructors of GPTNeoXDecoder and ViTPatchingAndEmbedding do
# not take what their get_config returns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 keras-hub==0.32.0 jax==0.7.2 numpy==2.3.4
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import keras
import keras_hub

sizes = {"vocabulary_size": 20, "num_layers": 1, "hidden_dim": 8, "intermediate_dim": 8}
models = keras_hub.models
networks = {
    "LlamaTransformerDecoder": models.LlamaBackbone(num_query_heads=2, num_key_value_heads=1, **sizes),
    "GPTNeoXDecoder": models.GPTNeoXBackbone(num_heads=2, **sizes),
    "ViTPatchingAndEmbedding": models.ViTBackbone((16, 16, 3), 8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8),
}
for name, network in networks.items():
    (layer,) = (layer for layer in network.layers if type(layer).__name__ == name)
    try:
        type(layer).from_config(layer.get_config())
    except (AttributeError, TypeError) as error:
        print(f"{name}: {type(error).__name__}: {str(error).splitlines()[-1][:110]}")
    else:
        raise SystemExit(f"{name} can be made again now")
PYTHON
