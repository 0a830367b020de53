#!/usr/bin/env bash
# Found by making the layers of other people's networks again from their configs.
#
# Keras 3.15.1. Identity(dtype=policy), with a DTypePolicy object in the place of its name, works, and a model with it
# can be used; but its get_config raises NotImplementedError, so the model can neither be cloned nor saved. Other layers
# take the same object: Dense(1, dtype=policy) has a config.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet keras==3.15.1 jax==0.7.2 numpy==2.3.4
KERAS_BACKEND=jax "$folder/venv/bin/python" - <<'PYTHON'
import keras

policy = keras.DTypePolicy("float32")
print(keras.layers.Dense(1, dtype=policy).get_config()["dtype"])
print(keras.layers.Identity(dtype="float32").get_config()["dtype"])
try:
    keras.layers.Identity(dtype=policy).get_config()
except NotImplementedError as error:
    print("NotImplementedError:", " ".join(str(error).split())[:120])
else:
    raise SystemExit("it has a config now")
PYTHON
