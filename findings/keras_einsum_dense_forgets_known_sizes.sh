#!/usr/bin/env bash
# Found by calling the layers inside of other people's transformers on symbolic tensors of known shapes.
#
# Keras 3.15.1. An EinsumDense that was built on a tensor with an open axis tells that axis as open for ever: its
# symbolic output has None there although the new input's size is known, so that what follows (an arange over the
# length) fails. Called on numbers it gives the right shape. A Dense follows the input.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.7.2 numpy==2.3.4
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import keras

einsum, dense = keras.layers.EinsumDense("btd,de->bte", output_shape=(None, 4)), keras.layers.Dense(4)
for layer in (einsum, dense):
    layer(keras.Input((None, 3)))
    print(type(layer).__name__, layer(keras.Input((7, 3))).shape, layer(keras.ops.zeros((2, 7, 3))).shape)
known = keras.Input((7, 3))
assert einsum(known).shape == (None, None, 4), einsum(known).shape
assert dense(known).shape == (None, 7, 4), dense(known).shape
PYTHON
