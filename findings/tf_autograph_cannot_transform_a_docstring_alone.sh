#!/usr/bin/env bash
# Found when a base class got a method that does nothing, and a training began to warn.
#
# TensorFlow 2.21.0, gast 0.7.0. AutoGraph drops a docstring before it writes a function anew. A function whose body is
# a docstring and nothing else, which is plain Python, is left with no body: TensorFlow warns that it could not be
# transformed, asks to report this, and runs it as it is. The same function with "pass" is transformed without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0 gast==0.7.0 keras==3.15.1 numpy==2.3.4
cd "$folder"
cat > example.py <<'PYTHON'
import logging

import tensorflow as tf

told = []


class Kept(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())


logging.getLogger("tensorflow").addHandler(Kept())


def docstring_alone(value):
    """Does nothing."""


def docstring_and_pass(value):
    """Does nothing."""
    pass


counts = {}
for function in (docstring_alone, docstring_and_pass):
    told.clear()

    @tf.function
    def calls(value):
        function(value)
        return value

    calls(tf.constant(1.0))
    counts[function.__name__] = sum("AutoGraph could not transform" in message for message in told)
    print(f"{function.__name__}: warnings: {counts[function.__name__]}")
if counts != {"docstring_alone": 1, "docstring_and_pass": 0}:
    raise SystemExit("AutoGraph takes it otherwise now")
PYTHON
TF_CPP_MIN_LOG_LEVEL=3 venv/bin/python example.py 2> log || { cat log; exit 1; }
