#!/usr/bin/env bash
# Found by writing networks of every layer to both formats and reading them back.
#
# Keras 3.15.1. A network with an Attention layer is saved to .h5 without a word, and the file cannot be loaded: the
# loader takes the text score_mode="dot" for the name of a function of Keras. The same network as .keras comes back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.7.2 numpy==2.3.4
cd "$folder"
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import keras
from keras import layers

inputs = keras.Input((4, 5))
model = keras.Model(inputs, layers.Attention()([inputs, inputs]))
model.save("model.keras")
model.save("model.h5")
print("model.keras:", keras.saving.load_model("model.keras").output_shape)
try:
    keras.saving.load_model("model.h5")
except Exception as error:
    line = [line for line in str(error).splitlines() if "Received: score_mode" in line][-1]
    print("model.h5:", line.split(" at 0x")[0])
else:
    raise SystemExit("it can be loaded now")
PYTHON
