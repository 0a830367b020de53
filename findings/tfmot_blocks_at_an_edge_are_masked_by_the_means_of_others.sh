#!/usr/bin/env bash
# Found by comparing block masks with means of blocks that were computed in numpy.
#
# tensorflow-model-optimization 0.8.1, TensorFlow 2.21.0. Block sparsity takes the mean magnitude of each block by
# pooling with padding "same", which puts half of the padding in front. The masks, though, are laid out from the first
# row and column on. So where the size of a kernel is no multiple of the block, the means are of other weights than the
# block that is masked. Here a matrix of four columns has blocks of three: the first of the two blocks, columns 0 to 2,
# is judged by columns 0 and 1, the second, column 3 alone, by columns 2 and 3. The block of larger mean goes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 tf_keras==2.21.0 tensorflow-model-optimization==0.8.1 \
    numpy==2.3.4 setuptools==80.9.0
cd "$folder"
TF_CPP_MIN_LOG_LEVEL=3 TF_USE_LEGACY_KERAS=1 "$folder/venv/bin/python" -W ignore - 2> log <<'PYTHON'
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
from tensorflow_model_optimization.sparsity import keras as sparsity

kernel = np.array([[1, 1, 9, 2]] * 2, "float32")  # blocks of 1 x 3: means 3.67 and 2
weight, mask = tf.Variable(kernel), tf.Variable(tf.ones(kernel.shape))
schedule = sparsity.ConstantSparsity(0.5, begin_step=0, frequency=1)
pruning_impl.Pruning(lambda: 1, [(weight, mask, tf.Variable(0.0))], schedule, [1, 3], "AVG").conditional_mask_update()
print("rows", kernel[0].tolist(), "in blocks of 3 and 1, of which one of two goes; mask", mask.numpy()[0].tolist())
if mask.numpy()[0].tolist() != [0.0, 0.0, 0.0, 1.0]:
    raise SystemExit("the block of least mean goes now")
PYTHON
