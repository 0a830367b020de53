import keras
import numpy as np
import pytest

import tfprune
from tests.helpers import convolutions, normalizations, randomize, trainable
from tfprune.models import build_model


def make(name, classes=10, width=1.0, size=32):
    return build_model(name, (size, size, 3), classes, width)


def size_of(layers):
    return sum(int(np.prod(weight.shape)) for layer in layers for weight in layer.trainable_weights)


def output(model, before, after, x):
    """What the layers between two layers make of x."""
    return keras.Model(model.get_layer(before).output, model.get_layer(after).output)(x).numpy()


def preresnet_params(blocks, widths, classes, stem=16):
    """(convolutions, batch normalization, all) of pre-activation bottleneck blocks: n in, w inside, 4 w out."""
    convs, channels, entering = 3 * 9 * stem, 0, stem
    for w in widths:
        inside = w * 9 * w + w * 4 * w
        convs += entering * 4 * w + entering * w + inside + (blocks - 1) * (4 * w * w + inside)
        channels += entering + (blocks - 1) * 4 * w + blocks * 2 * w
        entering = 4 * w
    channels += entering
    return convs, 2 * channels, convs + 2 * channels + entering * classes + classes


def densenet_params(per_block, growth, classes, bottleneck):
    """(convolutions, batch normalization, all), layer by layer."""
    channels, convs, normalized = 2 * growth, 27 * 2 * growth, 0
    for block in range(3):
        for _ in range(per_block):
            convs += channels * 4 * growth + 9 * 4 * growth * growth if bottleneck else 9 * channels * growth
            normalized += channels + (4 * growth if bottleneck else 0)
            channels += growth
        normalized += channels
        if block < 2:
            after = channels // 2 if bottleneck else channels
            convs += channels * after
            channels = after
    return convs, 2 * normalized, convs + 2 * normalized + channels * classes + classes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "classes", "expected", "params", "bn_channels", "gamma"),
    [
        ("preresnet56", 10, preresnet_params(6, (16, 32, 64), 10), 590_426, 4_048, 0.5),
        ("preresnet110", 10, preresnet_params(12, (16, 32, 64), 10), 1_146_842, 8_080, 1.0),
        ("preresnet164", 10, preresnet_params(18, (16, 32, 64), 10), 1_703_258, 12_112, 0.5),
        ("preresnet164", 100, preresnet_params(18, (16, 32, 64), 100), 1_703_258 + 90 * 257, 12_112, 0.5),
        ("densenet40", 10, densenet_params(12, 12, 10, False), 1_059_298, 9_360, 0.5),
        ("densenet_bc100", 10, densenet_params(16, 12, 10, True), 769_162, 11_994, 1.0),
    ],
)
def test_parameters_and_channels_of_batch_normalization(name, classes, expected, params, bn_channels, gamma):
    model = make(name, classes)
    assert model.output_shape == (None, classes)
    convs, normalized, total = expected
    assert size_of(convolutions(model)) == convs
    assert size_of(normalizations(model)) == normalized == 2 * bn_channels
    assert trainable(model) == total == params
    assert all((layer.gamma.numpy() == gamma).all() for layer in normalizations(model))
    assert not any(conv.use_bias for conv in convolutions(model))
    assert tfprune.profile(model).params == params


@pytest.mark.slow
def test_weights_of_convolutions_are_those_that_the_figures_of_the_paper_count():
    # What the paper calls PreResNet-110 has, by the x axis of its figure 5, 1.6763 million of them.
    assert size_of(convolutions(make("preresnet164"))) == pytest.approx(1.6763e6, rel=2e-4)
    assert size_of(convolutions(make("preresnet110"))) == 1_128_112


@pytest.mark.slow
def test_width_multiplies_the_channels():
    assert trainable(make("preresnet56", width=0.5)) == preresnet_params(6, (8, 16, 32), 10, stem=8)[2]
    assert trainable(make("densenet40", width=0.5)) == densenet_params(12, 6, 10, False)[2]
    assert trainable(make("densenet_bc100", 7, 0.25)) == densenet_params(16, 3, 7, True)[2]
    assert trainable(make("preresnet56", width=0.01)) == preresnet_params(6, (1, 1, 1), 10, stem=1)[2]
    assert trainable(make("densenet40", width=0.01)) == densenet_params(12, 1, 10, False)[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "depth"), [("preresnet56", 56), ("preresnet110", 110), ("densenet40", 40), ("densenet_bc100", 100)]
)
def test_the_depth_counts_the_numbered_convolutions_and_the_classifier(name, depth):
    model = make(name, width=0.1)
    numbered = [conv.name for conv in convolutions(model) if "shortcut" not in conv.name]
    assert numbered == [f"conv_{n}" for n in range(1, depth)]
    # Batch normalization comes before all of them but the stem, and before the classifier.
    assert [layer.name for layer in normalizations(model)] == [f"bn_{n}" for n in range(2, depth + 1)]


def test_preresnet_halves_the_map_in_the_3x3_convolution_of_the_first_block_of_a_stage():
    model = make("preresnet56", width=0.25)
    strided = {conv.name for conv in convolutions(model) if conv.strides == (2, 2)}
    assert strided == {"conv_21", "conv_39", "conv_shortcut_2", "conv_shortcut_3"}
    sizes = [model.get_layer(f"add_{number}").output.shape[1:] for number in (19, 37, 55)]
    assert sizes == [(32, 32, 16), (16, 16, 32), (8, 8, 64)]
    assert model.get_layer("average_pool").output.shape == (None, 64)


def test_a_block_of_preresnet_adds_a_branch_that_begins_with_normalization_to_what_it_reads():
    model = randomize(make("preresnet56", width=0.125))
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 8)).astype("float32")
    block = output(model, "add_4", "add_7", x)
    branch = output(model, "add_4", "conv_7", x)
    assert np.allclose(block - branch, x, atol=1e-5)  # neither normalized nor cut at zero
    bn = model.get_layer("bn_5")
    normalized = (x - bn.moving_mean.numpy()) / np.sqrt(bn.moving_variance.numpy() + 1e-5)
    activated = np.maximum(normalized * bn.gamma.numpy() + bn.beta.numpy(), 0)
    expected = activated @ model.get_layer("conv_5").kernel.numpy()[0, 0]
    assert np.allclose(output(model, "add_4", "conv_5", x), expected, atol=1e-4)


def test_the_shortcut_convolution_of_preresnet_reads_what_the_block_reads_and_is_not_normalized():
    model = randomize(make("preresnet56", width=0.125))
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 8)).astype("float32")
    block = output(model, "add_19", "add_22", x)
    branch = output(model, "add_19", "conv_22", x)
    expected = x[:, ::2, ::2] @ model.get_layer("conv_shortcut_2").kernel.numpy()[0, 0]
    assert np.allclose(block - branch, expected, atol=1e-4)


def test_a_layer_of_densenet_puts_its_channels_behind_those_that_it_reads():
    model = randomize(make("densenet40", width=0.25))
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 6)).astype("float32")
    after = output(model, "conv_1", "concatenate_2", x)
    assert after.shape[-1] == 9
    assert (after[..., :6] == x).all()
    assert np.allclose(after[..., 6:], output(model, "conv_1", "conv_2", x), atol=1e-5)


@pytest.mark.parametrize(("name", "convs", "channels"), [("densenet40", (14, 27), (168, 312)),
                                                         ("densenet_bc100", (34, 67), (108, 150))])  # fmt: skip
def test_transitions_of_densenet_halve_the_map_and_in_bc_the_channels(name, convs, channels):
    model = make(name)
    for number, (conv, filters) in enumerate(zip(convs, channels, strict=True), 1):
        assert model.get_layer(f"conv_{conv}").kernel.shape[:2] == (1, 1)
        assert model.get_layer(f"conv_{conv}").filters == filters
        assert model.get_layer(f"pool_{number}").output.shape[1:3] == (32 // 2**number,) * 2


def test_layers_of_densenet_bc_narrow_to_four_times_the_growth_first():
    model = make("densenet_bc100")
    kernels = [model.get_layer(f"conv_{number}").kernel.shape for number in (2, 3, 32, 33)]
    assert kernels == [(1, 1, 24, 48), (3, 3, 48, 12), (1, 1, 24 + 15 * 12, 48), (3, 3, 48, 12)]
