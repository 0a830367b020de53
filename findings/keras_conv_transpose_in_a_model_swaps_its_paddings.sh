#!/usr/bin/env bash
# Found by looking into layers that call keras.ops.conv_transpose.
#
# Keras 3.15.1, TensorFlow 2.21.0. keras.ops.conv_transpose gives the right result for tensors. For the symbolic tensors
# of a functional model it records an operation that hands its padding on as the output padding, and the other way
# round. The model is built, tells the right shape, and raises when it is called.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2> log <<'PYTHON'
import keras
import numpy as np
from keras import ops

kernel, x = ops.ones((3, 3, 2, 4)), np.ones((1, 5, 5, 4), "float32")
plain = ops.conv_transpose(x, kernel, strides=2, padding="same")
inputs = keras.Input((5, 5, 4))
model = keras.Model(inputs, ops.conv_transpose(inputs, kernel, strides=2, padding="same"))
try:
    model(x)
    raised = ""
except Exception as error:
    raised = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
print(f"tensors: {tuple(plain.shape)}; the model tells {model.output_shape} and, called, raises {raised or 'nothing'}")
if tuple(plain.shape) != (1, 10, 10, 2) or model.output_shape != (None, 10, 10, 2) or not raised:
    raise SystemExit("the model can be called now")
PYTHON
