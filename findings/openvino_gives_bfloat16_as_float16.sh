#!/usr/bin/env bash
# Found when a network of mixed_bfloat16 was right in every engine but OpenVINO.
#
# OpenVINO 2026.4.1, TensorFlow 2.21.0. An output of type bf16 reaches Python as a NumPy array of dtype float16 that
# holds the bits of bfloat16: 1.0 is read as 1.875. Viewed as ml_dtypes.bfloat16 the numbers are right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 keras==3.15.1 numpy==2.3.4 openvino==2026.4.1
cd "$folder"
cat > example.py <<'PYTHON'
import ml_dtypes
import numpy as np
import openvino
import tensorflow as tf


@tf.function(input_signature=[tf.TensorSpec((2,), tf.float32)])
def short(x):
    return tf.cast(x, tf.bfloat16)


module = tf.Module()
module.short = short
tf.saved_model.save(module, "saved", signatures={"serving_default": short})
compiled = openvino.Core().compile_model(openvino.convert_model("saved"), "CPU")
(value,) = compiled([np.array([1.0, 2.0], "float32")]).values()
viewed = value.view(ml_dtypes.bfloat16).astype("float32")
print(f"1, 2: {value.dtype} {value.tolist()}, viewed as bfloat16 {viewed.tolist()}")
if compiled.output(0).element_type != openvino.Type.bf16 or value.dtype != np.float16:
    raise SystemExit("the dtype is another one now")
if value.tolist() != [1.875, 2.0] or viewed.tolist() != [1.0, 2.0]:
    raise SystemExit("the numbers are others now")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python example.py 2> log || { cat log; exit 1; }
