#!/usr/bin/env bash
# Found when a SavedModel of a residual network, folded, was slower than its operations.
#
# TensorFlow 2.21.0, Keras 3.15.1, on a CPU with oneDNN. A convolution, its bias, a residual sum and a ReLU become one
# kernel, if the bias is added by tf.nn.bias_add. Keras adds the biases of its convolutions reshaped to
# (1, 1, 1, channels): then the convolution, the bias, the sum and the ReLU are four operations, although without the
# sum TensorFlow fuses a reshaped bias as well. ResNet-50 has 16 such sums.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
cat > example.py <<'PYTHON'
import numpy as np
import tensorflow as tf
from tensorflow.python.eager import context

kernel = tf.Variable(np.ones((1, 1, 16, 16), "float32"))
bias = tf.Variable(np.ones(16, "float32"))


def by_bias_add(x):
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)


def reshaped(x):
    return tf.nn.conv2d(x, kernel, 1, "SAME") + tf.reshape(bias, (1, 1, 1, 16))


def operations(function):
    compiled = tf.function(function, input_signature=[tf.TensorSpec((None, 8, 8, 16))], autograph=False)
    images = tf.ones((2, 8, 8, 16))
    context.context().enable_run_metadata()
    compiled(images)
    ran = context.context().export_run_metadata()
    context.context().disable_run_metadata()
    nodes = [node for one in ran.function_graphs for graph in one.partition_graphs for node in graph.node]
    kinds = ("Conv2D", "Add", "Relu", "Bias")
    return sorted(node.op for node in nodes if any(kind in node.op for kind in kinds))


found = {}
for add in (by_bias_add, reshaped):
    found[add.__name__, "sum"] = operations(lambda x: tf.nn.relu(tf.nn.relu(x) * 2 + add(x)))
    found[add.__name__, "alone"] = operations(lambda x: tf.nn.relu(add(x)))
for (how, what), kinds in found.items():
    print(f"{how}, {what}: {', '.join(kinds)}")
counts = {key: len(kinds) for key, kinds in found.items()}
expected = {("by_bias_add", "sum"): 2, ("by_bias_add", "alone"): 1, ("reshaped", "alone"): 1}
if any(counts[key] != count for key, count in expected.items()) or counts["reshaped", "sum"] < 4:
    raise SystemExit("TensorFlow fuses otherwise now")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python example.py 2> log || { cat log; exit 1; }
