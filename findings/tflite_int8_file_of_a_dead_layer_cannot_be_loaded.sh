#!/usr/bin/env bash
# Found when a pruned network with a layer of dead units was quantized.
#
# TensorFlow 2.21.0. A convolution that gives nothing but zeros on the representative data (ReLU of what is negative) is
# converted to int8 without a word. The file cannot be run: "failed to create XNNPACK runtime". With other biases, so that
# it gives something, the same network's file can.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
cat > example.py <<'PYTHON'
import keras
import numpy as np
import tensorflow as tf

images = np.random.default_rng(0).standard_normal((16, 8, 8, 3)).astype("float32")


def runs(bias):
    inputs = keras.Input((8, 8, 3), name="x")
    layer = keras.layers.Conv2D(4, 3, activation="relu", bias_initializer=keras.initializers.Constant(bias))
    x = keras.layers.Conv2D(5, 3, activation="relu")(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    model.export("saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model("saved")
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([images[k : k + 1]] for k in range(16))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    try:
        interpreter.get_signature_runner()(x=images[:1])
    except RuntimeError as error:
        return "XNNPACK" not in str(error) and str(error)
    return True


found = runs(1.0), runs(-1000.0)
print(f"alive: {found[0]}, dead: {found[1]}")
if found != (True, False):
    raise SystemExit("files of dead layers are others now")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python example.py 2> log || { cat log; exit 1; }
