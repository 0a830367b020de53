#!/usr/bin/env bash
# Found when decoders of other people's networks were taken apart: a normalization that had always worked inside of its
# layer could not be called on the embedding, which the network multiplies with the square root of its width.
#
# Keras 3.15.1: a dense KerasTensor times a number, or times a constant tensor, is marked as sparse (x / number is not).
# A layer of one's own that squares and averages, and does not tell its output shape, then cannot be called: Keras
# traces it with a SparseTensor. The same layer works on numbers, and on the tensor itself.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 tensorflow-cpu==2.21.0
cd "$scratch"
cat > case.py <<'PYTHON'
import keras
import numpy as np
from keras import layers, ops


class Rms(layers.Layer):
    def call(self, x):
        return x * ops.rsqrt(ops.mean(ops.square(x), axis=-1, keepdims=True) + 1e-6)


x = keras.Input((4,))
print("sparse:", "x", x.sparse, "| x * 2.0", (x * 2.0).sparse, "| x / 0.5", (x / 0.5).sparse)
assert not x.sparse
assert (x * 2.0).sparse
assert not (x / 0.5).sparse
print("on x and on x / 0.5:", Rms()(x).shape, Rms()(x / 0.5).shape)
print("on numbers:", Rms()(np.ones((2, 4), "float32") * 2.0).shape)
try:
    Rms()(x * 2.0)
except Exception as error:
    (told,) = [line for line in str(error).splitlines() if line.startswith("Failed to convert")]
    print("on x * 2.0:", type(error).__name__, told[:55])
else:
    raise SystemExit("It is called on x * 2.0 now: this finding is out of date.")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 "$scratch/venv/bin/python" case.py 2> errors.txt || { tail -n 5 errors.txt; exit 1; }
