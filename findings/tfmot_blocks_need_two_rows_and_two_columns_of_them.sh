#!/usr/bin/env bash
# Found by pruning a dense layer of three outputs with the block size of TFMOT's own example.
#
# tensorflow-model-optimization 0.8.1, TensorFlow 2.21.0. Where the blocks of a kernel make one row or one column, the
# axis of one is squeezed away, and the mask cannot be laid out: "Input tensor must be rank 2". So a layer whose outputs
# fit into one block, such as most heads with blocks of 1 x 4, cannot be pruned in blocks, though all is valid.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 tf_keras==2.21.0 tensorflow-model-optimization==0.8.1 \
    numpy==2.3.4 setuptools==80.9.0
cd "$folder"
TF_CPP_MIN_LOG_LEVEL=3 TF_USE_LEGACY_KERAS=1 "$folder/venv/bin/python" -W ignore - 2> log <<'PYTHON'
import numpy as np
import tf_keras
from tensorflow_model_optimization.sparsity import keras as sparsity

for outputs in (8, 3):
    model = tf_keras.Sequential([tf_keras.layers.InputLayer((8,)), tf_keras.layers.Dense(outputs)])
    schedule = sparsity.ConstantSparsity(0.5, begin_step=1, frequency=1)
    model = sparsity.prune_low_magnitude(model, schedule, block_size=(1, 4))
    model.compile("sgd", "mse")
    x, y = np.ones((8, 8)), np.ones((8, outputs))
    try:
        model.fit(x, y, epochs=2, verbose=0, callbacks=[sparsity.UpdatePruningStep()])
        told = "trained"
    except ValueError as error:
        told = "ValueError, rank 2" if "Input tensor must be rank 2" in str(error) else str(error)
    print(outputs, "outputs, blocks of 1 x 4:", told)
    if told != {8: "trained", 3: "ValueError, rank 2"}[outputs]:
        raise SystemExit("it can be pruned now")
PYTHON
