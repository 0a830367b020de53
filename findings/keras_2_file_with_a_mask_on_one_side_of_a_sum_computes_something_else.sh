#!/usr/bin/env bash
# Found by loading files of Keras 2 with masks of padded steps, and comparing outputs.
#
# tf_keras 2.21.0 (Keras 2), Keras 3.15.1, TensorFlow 2.21.0. A sum of an embedding with mask_zero=True and a tensor
# without a mask carries the mask on in Keras 2 and none in Keras 3. So an .h5 model of Keras 2 that pools such a sum is
# loaded by Keras 3 without a word of it, and the padded steps count in its mean. Without the sum both give the same.
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
from tf_keras import layers

tf_keras.utils.set_random_seed(0)
words = tf_keras.Input((4,), dtype="int32")
numbers = tf_keras.Input((4, 3))
embedded = layers.Embedding(5, 3, mask_zero=True)(words)
inputs = [np.array([[1, 2, 0, 0]]), np.ones((1, 4, 3), "float32")]
apart = {}
for name, tensor in (("embedding alone", embedded), ("embedding + numbers", layers.Add()([embedded, numbers]))):
    old = tf_keras.Model([words, numbers], [layers.GlobalAveragePooling1D()(tensor), layers.Flatten()(numbers)])
    old.save("old.h5")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        new = keras.saving.load_model("old.h5", compile=False)
    apart[name] = float(np.abs(np.asarray(new(inputs)[0]) - np.asarray(old(inputs)[0])).max())
    print(f"{name}: outputs differ by {apart[name]:.3f}; warnings of masks: {sum('mask' in str(one.message) for one in told)}")
if apart["embedding alone"] > 1e-6 or apart["embedding + numbers"] < 1e-3:
    raise SystemExit("the outputs are others now")
PYTHON
