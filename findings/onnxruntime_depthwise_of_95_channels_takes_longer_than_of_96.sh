#!/usr/bin/env bash
# Found when a MobileNetV2 at half of its MACs was slower in ONNX Runtime than the whole one.
#
# ONNX Runtime 1.32.0, x86 (AMD Zen 4, AVX-512). A depthwise convolution of 95 channels takes several times as long as one of 96, and
# one of 94 too, though they compute less: with channels that are no multiple of 4, it is not in the blocked layout
# (NCHWc). One of 92 is as fast as it should be. It is valid ONNX, made without a converter; the times are taken in
# turns, on one thread, and the fastest of many counts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.3.4
cd "$folder"
cat > example.py <<'PYTHON'
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def session(channels, layers=4, size=56):
    generator, nodes, weights, name = np.random.default_rng(0), [], [], "x"
    for number in range(layers):
        kernel = generator.normal(size=(channels, 1, 3, 3)).astype("float32")
        weights.append(numpy_helper.from_array(kernel, f"w{number}"))
        nodes.append(
            helper.make_node("Conv", [name, f"w{number}"], [f"y{number}"], group=channels, pads=[1] * 4, kernel_shape=[3, 3])
        )
        name = f"y{number}"
    shape = [1, channels, size, size]
    inputs, outputs = (helper.make_tensor_value_info(own, TensorProto.FLOAT, shape) for own in ("x", name))
    graph = helper.make_graph(nodes, "depthwise", [inputs], [outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    made = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    value = {"x": generator.normal(size=shape).astype("float32")}
    return lambda: made.run(None, value)


runs = {channels: session(channels) for channels in (96, 95, 94, 92)}
seconds = {channels: [] for channels in runs}
for _ in range(60):
    for channels, run in runs.items():
        start = time.perf_counter()
        run()
        seconds[channels].append(time.perf_counter() - start)
best = {channels: min(own) for channels, own in seconds.items()}
beside = {channels: best[channels] / best[96] for channels in best}
print("times beside 96 channels:", {channels: round(own, 2) for channels, own in beside.items()})
if not (beside[95] > 2 and beside[94] > 2 and beside[92] < 1.5):
    raise SystemExit("ONNX Runtime takes other times now")
PYTHON
venv/bin/python example.py
