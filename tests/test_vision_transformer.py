"""The whole way of a user: a vision transformer with a layer of their own, pruned, trained by `fit`, saved, loaded."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import predict
from tfprune.data import load

MODULE = '''
import keras
from keras import layers, ops


@keras.saving.register_keras_serializable("vision_transformer")
class Tokens(layers.Layer):
    """Patches of an image, a class token in front of them, and learned positions."""

    def __init__(self, width, patch=8, **options):
        super().__init__(**options)
        self.width, self.patch = width, patch
        self.project = layers.Conv2D(width, patch, strides=patch, name="project")

    def build(self, shape):
        self.project.build(shape)
        self.count = (shape[1] // self.patch) * (shape[2] // self.patch)
        self.token = self.add_weight(shape=(1, 1, self.width), initializer="zeros", name="token")
        self.positions = self.add_weight(shape=(1, self.count + 1, self.width), name="positions")

    def call(self, images):
        patches = ops.reshape(self.project(images), (-1, self.count, self.width))
        token = ops.broadcast_to(self.token, (ops.shape(images)[0], 1, self.width))
        return ops.concatenate([token, patches], axis=1) + self.positions

    def get_config(self):
        return {**super().get_config(), "width": self.width, "patch": self.patch}
'''


def vision_transformer(tokens, width=64, heads=4, depth=2):
    images = keras.Input((32, 32, 1), name="images")
    x = tokens(width, name="tokens")(layers.Rescaling(1 / 255)(images))
    for number in range(depth):
        y = layers.LayerNormalization(name=f"norm_{number}a")(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads, name=f"attention_{number}")(y, y)])
        y = layers.Dense(4 * width, activation="gelu", name=f"wide_{number}")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width, name=f"narrow_{number}")(y)
    return keras.Model(images, layers.Dense(10, name="classes")(layers.LayerNormalization()(x)[:, 0]))


@pytest.mark.slow
def test_a_vision_transformer_loses_half_of_its_width_and_heads_and_is_trained_by_fit(tmp_path, monkeypatch):
    (tmp_path / "own_tokens.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    from own_tokens import Tokens

    keras.utils.set_random_seed(0)
    data = load("fashion_mini")
    model = vision_transformer(Tokens)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(data.train_images, data.train_labels, batch_size=64, epochs=3, verbose=0)

    plan = tfprune.plan_channels(model, 0.5, normalization="narrowed")
    proof = tfprune.verify(model, plan, power=True)
    assert (proof <= 1e-5, proof.unnoticed) == (True, ())
    small = plan.apply(model)
    assert small.get_layer("tokens").width == 32
    assert [small.get_layer(f"attention_{number}").num_heads for number in range(2)] == [2, 2]
    assert plan.params[1] < 0.3 * plan.params[0]

    pruned = small.evaluate(data.test_images, data.test_labels, batch_size=500, verbose=0)[1]
    small.fit(data.train_images, data.train_labels, batch_size=64, epochs=3, verbose=0)
    tuned = small.evaluate(data.test_images, data.test_labels, batch_size=500, verbose=0)[1]
    assert tuned > max(pruned, 0.6)

    small.save(tmp_path / "small.keras")
    np.save(tmp_path / "images.npy", data.test_images[:8])
    np.save(tmp_path / "logits.npy", predict(small, data.test_images[:8].astype("float32"))[0])
    script = (
        "import sys, numpy as np, keras, own_tokens\n"
        "model = keras.saving.load_model('small.keras')\n"
        "logits = model.predict(np.load('images.npy').astype('float32'), verbose=0)\n"
        "np.testing.assert_allclose(logits, np.load('logits.npy'), atol=1e-4)\n"
        "assert 'tfprune' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
