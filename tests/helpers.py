"""What several test files share: random weights and statistics, and small models."""

from collections.abc import Iterable, Mapping

import keras
import numpy as np
import pytest
from keras import layers
from packaging.version import Version

import tfprune
from tfprune.plans.channels import ChannelPlan


def since(version):
    """Marks a test of what older versions of Keras do not have."""
    return pytest.mark.skipif(Version(keras.__version__) < Version(version), reason=f"Keras {version} brought it")


def named(names: Iterable[str], newer: Mapping[str, str]) -> list:
    """Names to run a test with; `newer` has the version of Keras that brought what some of them need."""
    return [pytest.param(name, marks=since(newer[name])) if name in newer else name for name in names]


def randomize(model, seed=0):
    """Gives every weight of a model random, non-trivial values: no gamma of one, no mean of zero."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        shape, name = tuple(variable.shape), variable.name
        if name == "gamma":
            value = generator.uniform(0.3, 1.3, shape) * generator.choice([-1.0, 1.0], shape, p=[0.2, 0.8])
        elif name in ("beta", "bias", "moving_mean"):
            value = generator.normal(0.0, 0.3, shape)
        elif name == "moving_variance":
            value = generator.uniform(0.5, 2.0, shape)
        else:
            fan_in = max(1, int(np.prod(shape[:-1])))
            value = generator.normal(0.0, fan_in**-0.5, shape)
        variable.assign(value.astype("float32"))
    return model


def trainable(model):
    """Number of trainable parameters: what the paper and PyTorch count."""
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def convolutions(model):
    """The 2-D convolutions of a model, in order."""
    return [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]


def normalizations(model):
    """The batch normalizations of a model, in order."""
    return [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def predict(model, *inputs):
    """The flat list of a model's outputs for some inputs, as arrays."""
    outputs = model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)
    return [np.asarray(keras.ops.convert_to_numpy(output)) for output in keras.tree.flatten(outputs)]


def relative_error(expected, received):
    """max |expected - received| / max |expected|, the worst over pairs of outputs."""
    worst = 0.0
    for one, other in zip(expected, received, strict=True):
        assert one.shape == other.shape
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        worst = max(worst, np.abs(one - other).max() / np.abs(one).max())
    return worst


def images(model, examples=3, seed=0):
    """Random normal inputs for a model with a single input."""
    shape = tuple(size or 12 for size in model.input_shape[1:])
    return np.random.default_rng(seed).standard_normal((examples, *shape)).astype("float32")


def weights_by_path(model):
    """Weight path -> value."""
    return {weight.path: np.array(weight.numpy()) for weight in model.weights}


def network(body, *shapes, dtype="float32"):
    """The model that a function of its inputs makes, with random weights."""
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes]
    model = keras.Model(inputs if len(inputs) > 1 else inputs[0], body(*inputs))
    return randomize(model)


def prove(model, plan):
    """Verifies a plan, and that the costs it predicts are those of the network that it makes, which is returned."""
    assert tfprune.verify(model, plan) <= 1e-5
    small = plan.apply(model)
    built = tfprune.profile(small)
    assert (built.params, built.macs, built.flops) == (plan.params[1], plan.macs[1], plan.flops[1])
    assert small.count_params() < model.count_params()
    return small


def assert_as_zeroed(model, plan, small, *inputs):
    """Compares a smaller network with the model in which the weights of what goes are zero; the model stays as it is.

    What enters and leaves removed channels is zero then, whatever lies between.
    """
    graph = plan.graph(model)
    kept, before = plan.kept(graph), {}
    for record in graph.records.values():
        for index, axes in record.axes.items():
            weight, value = record.weights[index], np.array(record.weights[index].numpy())
            before.setdefault(id(weight), (weight, value.copy()))
            for axis, labels in axes.items():
                value[(slice(None),) * axis + (~kept[labels],)] = 0
            weight.assign(value)
    expected = predict(model, *inputs)
    for weight, value in before.values():
        weight.assign(value)
    assert relative_error(expected, predict(small, *inputs)) <= 1e-4


def assert_sliced(small, model, inputs, outputs):
    """Compares all weights of a network with slices of a larger one's.

    `inputs` and `outputs` name the layers that lose channels, with what they keep, as bool arrays or indices.
    """
    large = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    assert {layer.name for layer in small.layers if layer.weights} == set(large)
    for name, weights in large.items():
        read, made = inputs.get(name, slice(None)), outputs.get(name, slice(None))
        for weight, received in zip(weights, small.get_layer(name).get_weights(), strict=True):
            rows = weight if weight.ndim == 1 else weight[..., read, :]
            assert np.array_equal(received, rows[..., made]), name


def drawn_plan(model, plan, seed):
    """A plan of the same widths, its channels drawn at random; for plans whose layers are not coupled."""
    generator = np.random.default_rng(seed)
    lost = {layer: width - len(plan.keep[layer]) for layer, width in plan.widths.items()}
    removed = {
        layer: generator.choice(plan.widths[layer], count, replace=False).tolist() for layer, count in lost.items()
    }
    return ChannelPlan.from_removed(model, removed, views=plan.views)


def accuracy(model, data):
    """The fraction of test images that a model gets right."""
    images = (data.test_images.astype("float32") / 255 - np.float32(data.mean)) / np.float32(data.std)
    return float((model.predict(images, verbose=0).argmax(-1) == data.test_labels).mean())


def plain_cnn(seed=0, classes=5):
    """conv_a (6) - bn - relu - pool - conv_b (10) - bn - relu - flatten - dense fc (8) - relu - logits."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv_a")(inputs)
    x = layers.BatchNormalization(name="bn_a")(x)
    x = layers.ReLU(name="relu_a")(x)
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.Conv2D(10, 3, padding="same", name="conv_b")(x)
    x = layers.BatchNormalization(name="bn_b")(x)
    x = layers.ReLU(name="relu_b")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(8, activation="relu", name="fc")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return randomize(keras.Model(inputs, outputs, name="plain_cnn"), seed)


def residual_cnn(seed=0, classes=5):
    """stem (8) -> block: branch_a (6) -> branch_b (8) + stem -> global pool -> logits."""
    inputs = keras.Input((8, 8, 3), name="image")
    stem = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(inputs)
    stem = layers.BatchNormalization(name="bn_stem")(stem)
    stem = layers.ReLU(name="relu_stem")(stem)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="branch_a")(stem)
    x = layers.BatchNormalization(name="bn_branch_a")(x)
    x = layers.ReLU(name="relu_branch_a")(x)
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="branch_b")(x)
    x = layers.BatchNormalization(name="bn_branch_b")(x)
    x = layers.Add(name="add")([stem, x])
    x = layers.ReLU(name="relu_out")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, name="logits")(x)
    return randomize(keras.Model(inputs, outputs, name="residual_cnn"), seed)


def preactivated(seed=0):
    """stem (8), and two blocks bn - relu - conv_a (6) - bn - relu - conv_b (8) on its stream; a last bn_end."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    for block in (1, 2):
        y = layers.ReLU()(layers.BatchNormalization(name=f"bn_{block}")(x))
        y = layers.Conv2D(6, 3, padding="same", use_bias=False, name=f"conv_{block}a")(y)
        y = layers.ReLU()(layers.BatchNormalization(name=f"bn_{block}a")(y))
        x = layers.Add(name=f"add_{block}")([x, layers.Conv2D(8, 3, padding="same", name=f"conv_{block}b")(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization(name="bn_end")(x)))
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(x)), seed)


def densely_connected(seed=0):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    for block in (1, 2):
        y = layers.ReLU()(layers.BatchNormalization(name=f"bn_{block}")(x))
        x = layers.Concatenate()([x, layers.Conv2D(4, 3, padding="same", name=f"conv_{block}")(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization(name="bn_end")(x)))
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(x)), seed)


def other_head(kernel="glorot_uniform", outputs=5, size=8):
    """The first convolution of `plain_cnn`, narrower, and a head that reads three of its channels."""
    inputs = keras.Input((size, size, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_initializer=kernel, name="conv_a")(inputs)
    x = layers.ReLU(name="relu_a")(layers.BatchNormalization(name="bn_a")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(keras.ops.take(x, [0, 2, 3], axis=-1))
    return keras.Model(inputs, layers.Dense(outputs, name="head")(x), name="other_head")


def user_network():
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(8, 3, strides=2, use_bias=False, name="first")(inputs)
    x = layers.BatchNormalization(momentum=0.8, name="bn_first")(x)
    x = layers.ReLU(name="relu_first")(x)
    x = layers.Conv2D(12, 3, strides=2, name="second")(x)
    x = layers.BatchNormalization(momentum=0.8, name="bn_second")(x)
    x = layers.ReLU(name="relu_second")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax", name="classes")(x), name="mine")
