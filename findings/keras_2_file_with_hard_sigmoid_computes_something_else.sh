#!/usr/bin/env bash
# Found by loading files of Keras 2 with every activation and every layer, and comparing outputs.
#
# tf_keras 2.21.0 (Keras 2), Keras 3.15.1, TensorFlow 2.21.0. Keras 3 loads an .h5 model of Keras 2 whose layers use
# hard_sigmoid, without a warning, and the outputs differ: hard_sigmoid is clip(0.2 x + 0.5, 0, 1) in Keras 2 and
# relu6(x + 3) / 6 in Keras 3. It was the default gate of recurrent layers in the first Keras 2, and still is that of
# ConvLSTM2D in the last one. A network without it gives the same outputs in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 tf_keras==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2> log <<'PYTHON'
import warnings

import keras
import numpy as np
import tf_keras

x = np.linspace(-3, 3, 7, dtype="float32")[None]
moved = {}
for name in ("sigmoid", "hard_sigmoid"):
    old = tf_keras.Sequential([tf_keras.layers.InputLayer((7,)), tf_keras.layers.Activation(name)])
    old.save("old.h5")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        new = keras.saving.load_model("old.h5", compile=False)
    moved[name] = float(np.abs(np.asarray(new(x)) - np.asarray(old(x))).max())
    print(f"{name}: outputs differ by {moved[name]:.4f}; warnings on loading: {[str(one.message) for one in told]}")
print("ConvLSTM2D's gate in Keras 2:", tf_keras.layers.ConvLSTM2D(1, 1).get_config()["recurrent_activation"])
if moved["sigmoid"] > 1e-6 or not 0.09 < moved["hard_sigmoid"] < 0.11:
    raise SystemExit("the outputs are others now")
PYTHON
