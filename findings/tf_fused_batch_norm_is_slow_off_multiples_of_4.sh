#!/usr/bin/env bash
# Found when a ResNet-50 of half of its MACs, of uneven widths, was served only 1.2 times as fast.
#
# TensorFlow 2.21.0 on a CPU with oneDNN. At inference, fused_batch_norm takes 3 times as long for 127 channels as for
# 128, and several times as long as the same sum and product as a depthwise convolution with kernels of one number. So
# it is best folded into the layer before it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
cat > example.py <<'PYTHON'
import time

import numpy as np
import tensorflow as tf


def functions(channels):
    numbers = tf.Variable(np.linspace(0.5, 1.5, channels, dtype="float32"))
    images = tf.constant(np.ones((32, 28, 28, channels), "float32"))

    @tf.function(autograph=False)
    def fused():
        given = tf.compat.v1.nn.fused_batch_norm(images, numbers, numbers, numbers, numbers, is_training=False)
        return tf.nn.relu(given[0])

    @tf.function(autograph=False)
    def depthwise():
        kernel = tf.reshape(numbers, (1, 1, -1, 1))
        return tf.nn.relu(tf.nn.bias_add(tf.nn.depthwise_conv2d(images, kernel, (1, 1, 1, 1), "VALID"), numbers))

    return fused, depthwise


def seconds(function):
    start = time.perf_counter()
    for _ in range(5):
        function()
    return time.perf_counter() - start


forms = dict(zip(("fused 127", "depthwise 127", "fused 128", "depthwise 128"), functions(127) + functions(128)))
rounds = [{name: seconds(function) for name, function in forms.items()} for _ in range(23)][3:]
least = {name: min(one[name] for one in rounds) for name in forms}
print({name: f"{1e3 * value / 5:.2f} ms" for name, value in least.items()})
if least["fused 127"] < 1.5 * least["fused 128"] or least["fused 127"] < 1.5 * least["depthwise 127"]:
    raise SystemExit("the fused batch normalization is as fast off multiples of 4 now")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python example.py 2> log || { cat log; exit 1; }
