#!/usr/bin/env bash
# Found when a network of open size was compared on images that are too small for it, and "gave" something.
#
# TensorFlow 2.21.0. A convolution without padding whose kernel is larger by one than the image has an output of size 0.
# In a graph that is an error, "Negative dimension size". Eagerly, with oneDNN, the default on x86, it gives something: of
# the shape of the input, its channels included, (1, 2, 2, 3) where four channels are asked for. A network goes on with
# it, to numbers that mean nothing. A kernel that is larger by two is an error there, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
cat > example.py <<'PYTHON'
import numpy as np
import tensorflow as tf

image = np.ones((1, 2, 2, 3), "float32")


def convolve(size, wrap=lambda function: function):
    kernel = np.ones((size, size, 3, 4), "float32")
    try:
        return tuple(wrap(lambda: tf.nn.conv2d(image, kernel, 1, "VALID"))().shape)
    except (ValueError, tf.errors.InvalidArgumentError):
        return "an error"


found = convolve(3), convolve(3, tf.function), convolve(4)
print(f"eagerly: {found[0]}, in a graph: {found[1]}, a kernel larger by two: {found[2]}")
if found != ((1, 2, 2, 3), "an error", "an error"):
    raise SystemExit("a convolution with nothing to give does something else now")
PYTHON
TF_ENABLE_ONEDNN_OPTS=1 TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python example.py 2> log || { cat log; exit 1; }
