#!/usr/bin/env bash
# Found by running the tests of a pruning library with Keras' nightly build.
#
# keras-nightly 3.16.0.dev2026102704. Dropout called with training=None on symbolic tensors, as every subclassed model
# does that hands its own training on, never drops in the functional model that this makes, also with training=True.
# Called without the argument it drops. With Keras 3.15.1 both drop.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/drop.py" <<'PYTHON'
import keras
import numpy as np

drops = {}
for name, given in (("nothing", {}), ("training=None", {"training": None})):
    inputs = keras.Input((1000,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(inputs, **given))
    drops[name] = bool((np.asarray(model(np.ones((1, 1000), "float32"), training=True)) == 0).any())
print(f"Keras {keras.__version__}: drops while it trains, called with", drops)
PYTHON
for keras in keras==3.15.1 keras-nightly==3.16.0.dev2026102704; do
  python3 -m venv "$folder/${keras%%==*}"
  "$folder/${keras%%==*}/bin/pip" install --quiet "$keras" jax==0.7.2 numpy==2.3.4
  KERAS_BACKEND=jax "$folder/${keras%%==*}/bin/python" "$folder/drop.py" | tee -a "$folder/told"
done
grep -q "^Keras 3.15.1: .*'nothing': True, 'training=None': True" "$folder/told"
grep -q "^Keras 3.16.0.*: .*'nothing': True, 'training=None': False" "$folder/told"
