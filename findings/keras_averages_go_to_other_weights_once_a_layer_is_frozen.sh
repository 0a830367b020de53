#!/usr/bin/env bash
# Found by holding masks in every setting of the optimizer, layers that are frozen later among them.
#
# Keras 3.15.1, TensorFlow 2.21.0. With use_ema=True the averages are put into the weights at the end of fit, one after
# the other. Where a layer is frozen between two calls of fit, the trainable weights are fewer than the averages, and
# each gets the average of another: a layer that is trained ends with the average of the layer that was frozen. Nothing
# is told where their shapes are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2> log <<'PYTHON'
import keras
import numpy as np
from keras import layers

keras.utils.set_random_seed(0)
first, second = layers.Dense(4, use_bias=False), layers.Dense(4, use_bias=False)
model = keras.Sequential([keras.Input((4,)), first, second])
model.compile(keras.optimizers.SGD(1e-3, use_ema=True), "mse")
x = np.random.default_rng(0).normal(size=(8, 4))
model.fit(x, x, verbose=0)
frozen = first.kernel.numpy()
before = second.kernel.numpy()
first.trainable = False
model.fit(x, x, verbose=0)
after = second.kernel.numpy()
apart = {"itself before": float(np.abs(after - before).max()), "the frozen layer": float(np.abs(after - frozen).max())}
print("second layer after one more step of 0.001 differs from", {name: round(value, 3) for name, value in apart.items()})
if apart["the frozen layer"] > 0.05 or apart["itself before"] < 0.1:
    raise SystemExit("the average is the layer's own now")
PYTHON
