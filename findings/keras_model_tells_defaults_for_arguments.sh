#!/usr/bin/env bash
# Found by making subclassed models again from their configs, with other widths.
#
# Keras 3.15.1, TensorFlow 2.21.0. A subclass of keras.Layer without a get_config tells the arguments that it was made
# with. A subclass of keras.Model tells the defaults of its constructor instead, whatever it was made with. So a model of
# factor 3 is loaded from its own file, without a word, as one of the default factor, and gives a third of what it gave.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
TF_CPP_MIN_LOG_LEVEL=3 "$folder/venv/bin/python" - 2> log <<'PYTHON'
import keras
import numpy as np


class Layer(keras.layers.Layer):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor


@keras.saving.register_keras_serializable("finding")
class Model(keras.Model):
    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor, self.dense = factor, keras.layers.Dense(2)

    def call(self, x):
        return self.dense(x) * self.factor


model, x = Model(factor=3.0), np.ones((1, 4), "float32")
expected = np.asarray(model(x))
model.save("model.keras")
received = np.asarray(keras.saving.load_model("model.keras")(x))
told = {"layer": Layer(factor=3.0).get_config()["factor"], "model": model.get_config()["factor"]}
print(f"factor=3.0, told: {told}; what the loaded model gives, times the saved one: {(received / expected).mean():.2f}")
if told != {"layer": 3.0, "model": 1.0} or not np.allclose(3 * received, expected):
    raise SystemExit("arguments are told now")
PYTHON
