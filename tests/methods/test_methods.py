import math

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import assert_sliced, plain_cnn, randomize, residual_cnn, trainable
from tfprune.errors import PlanError, UsageError
from tfprune.graph.walk import stream_normalizations
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.paper.variants import VARIANTS, get_variant, is_design
from tfprune.surgery.rebuild import clone
from tfprune.training.regimes import REGIMES

# The table of the paper, by hand: model, kept widths of the layers in question, params, FLOPs cut, epochs of
# Scratch-B. A channel between two 3x3 convolutions of n channels and its gamma and beta are 2 * 9 * n + 2 params,
# from which those of ResNet-34 follow: 1,154, 2,306 and 4,610 in its stages of 64, 128 and 256.
TABLE = {
    "VGG-16-A": (
        "vgg16_l1",
        [32, 64, 128, 128, 256, 256, 256, 256, 256, 256, 256, 256, 256],
        (14_987_722, 5_397_034),
        0.342,
        243,
    ),
    "ResNet-56-A": (
        "resnet56",
        [14] * 7 + [16, 14] + [32] + [28] * 8 + [64] + [57] * 7 + [64],
        (853_018, 773_336),
        0.104,
        178,
    ),
    "ResNet-56-B": (
        "resnet56",
        [6] * 7 + [16, 16] + [32] + [22] * 6 + [32, 22] + [64] + [57] * 7 + [64],
        (853_018, 735_712),
        0.275,
        220,
    ),
    "ResNet-110-A": ("resnet110", [8] * 17 + [16] + [32] * 18 + [64] * 18, (1_727_962, 1_688_522), 0.158, 190),
    "ResNet-110-B": (
        "resnet110",
        [8] * 17 + [16] + [32] + [19] * 17 + [64] + [44] * 17,
        (1_727_962, 1_168_424),
        0.386,
        260,
    ),
    "ResNet-34-A": (
        "imagenet_resnet34",
        [64, 44, 44] + [128, 89, 89, 128] + [256] + [179] * 4 + [256] + [512] * 3,
        (21_797_672, 21_797_672 - 40 * 1_154 - 78 * 2_306 - 308 * 4_610),
        0.154,
        106,
    ),
    "ResNet-34-B": (
        "imagenet_resnet34",
        [64, 32, 32] + [128, 51, 51, 128] + [256] + [153] * 4 + [256] + [512] * 3,
        (21_797_672, 21_797_672 - 64 * 1_154 - 154 * 2_306 - 412 * 4_610),
        0.240,
        118,
    ),
}


def images_and_classes(model_name):
    return ((224, 224, 3), 1000) if model_name.startswith("imagenet") else ((32, 32, 3), 10)


@pytest.fixture(scope="module")
def networks():
    """Each network of the table once, with random weights."""
    names = {row[0] for row in TABLE.values()}
    return {name: randomize(build_model(name, *images_and_classes(name)), 3) for name in names}


@pytest.fixture(scope="module")
def plans(networks):
    return {
        name: METHODS.get("l1_norm").plan(networks[row[0]], MethodSettings(ratios=VARIANTS[name].ratios))
        for name, row in TABLE.items()
    }


def studied(model_name, count):
    """The layers of the table's rows: all convolutions of VGG, the first of each block of a ResNet."""
    return [f"conv_{n}" for n in (range(1, 14) if "vgg" in model_name else range(2, 2 * count + 1, 2))]


@pytest.mark.parametrize("name", TABLE)
def test_variant_has_the_widths_params_flops_and_budget_of_the_paper(name, plans):
    model_name, widths, params, cut, epochs = TABLE[name]
    plan = plans[name]
    layers_of_row = studied(model_name, len(widths))
    assert [len(plan.keep[layer]) for layer in layers_of_row] == widths
    others = set(plan.keep) - set(layers_of_row)
    assert all(len(plan.keep[layer]) == plan.widths[layer] for layer in others)
    assert plan.params == params
    before, after = plan.flops
    assert 1 - after / before == pytest.approx(cut, abs=0.0006)
    base = 90 if model_name.startswith("imagenet") else 160
    assert int(base * before / after) == epochs
    assert REGIMES["scratch_b"].epochs(base, 40, before / after, None) == epochs


@pytest.mark.parametrize("name", TABLE)
def test_variant_keeps_the_filters_with_the_largest_sum_of_absolute_weights(name, plans, networks):
    model_name, widths, *_ = TABLE[name]
    for layer, width in zip(studied(model_name, len(widths)), widths, strict=True):
        sums = np.abs(networks[model_name].get_layer(layer).kernel.numpy().astype("float64")).sum((0, 1, 2))
        largest = np.sort(np.argsort(sums)[len(sums) - width :])
        assert plans[name].keep[layer] == tuple(largest), layer


@pytest.mark.parametrize("name", ["VGG-16-A", "ResNet-56-B", "ResNet-110-B", "ResNet-34-A"])
def test_variant_slices_filters_statistics_and_what_reads_them(name, plans, networks):
    model = networks[TABLE[name][0]]
    convs = studied(TABLE[name][0], len(TABLE[name][1]))
    readers = [f"conv_{int(conv.removeprefix('conv_')) + 1}" for conv in convs]
    if name == "VGG-16-A":
        readers[-1] = "fc_1"  # the last map is of one pixel
    kept = [plans[name].keep[conv] for conv in convs]
    outputs = {
        layer: keep for conv, keep in zip(convs, kept, strict=True) for layer in (conv, conv.replace("conv", "bn"))
    }
    assert_sliced(plans[name].apply(model), model, dict(zip(readers, kept, strict=True)), outputs)


# Of ThiNet and regression, the kept widths of all convolutions, from the official code of the study.
VGG_CONV = [32, 32, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512]
VGG_5X = [24, 22, 41, 51, 108, 89, 111, 184, 276, 228, 512, 512, 512]


def bottleneck_widths(*inner):
    """A stem of 64; per block its two inner convolutions and the block's output, which stays whole."""
    blocks = [(width, width, 256 * 2**stage) for stage, width in enumerate(inner) for _ in range((3, 4, 6, 3)[stage])]
    return [64, *(width for block in blocks for width in block)]


WIDTHS = {
    "VGG-Conv": ("thinet", "imagenet_vgg16", VGG_CONV, None),
    "ResNet-50-30%": ("thinet", "imagenet_resnet50", bottleneck_widths(19, 38, 76, 153), None),
    "ResNet-50-50%": ("thinet", "imagenet_resnet50", bottleneck_widths(32, 64, 128, 256), None),
    "ResNet-50-70%": ("thinet", "imagenet_resnet50", bottleneck_widths(44, 89, 179, 358), 141),
    "VGG-16-5x": ("regression", "imagenet_vgg16", VGG_5X, None),
}


@pytest.fixture(scope="module")
def imagenet_networks():
    return {name: build_model(name, (224, 224, 3), 1000) for name in ("imagenet_vgg16", "imagenet_resnet50")}


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_variant_of_thinet_or_regression_has_the_widths_and_budget_of_the_paper(name, imagenet_networks):
    method, model_name, widths, epochs = WIDTHS[name]
    plan = METHODS.get(method).plan(imagenet_networks[model_name], MethodSettings(ratios=VARIANTS[name].ratios))
    assert [len(plan.keep[f"conv_{n}"]) for n in range(1, len(widths) + 1)] == widths
    assert plan.notes == ()
    others = {layer for layer in plan.keep if not layer.removeprefix("conv_").isdigit()}
    assert all(len(plan.keep[layer]) == plan.widths[layer] for layer in others)
    before, after = plan.flops
    if epochs:
        assert int(90 * before / after) == epochs
    else:  # the paper's cap of twice the epochs
        assert before / after >= 2


def test_variants_are_those_of_the_tables():
    blocks = {name for name, variant in VARIANTS.items() if variant.bypass}
    assert set(VARIANTS) - blocks == {*TABLE, *WIDTHS, *DESIGNS}
    for name, row in TABLE.items():
        assert get_variant(name, "l1_norm", row[0]).models[0] == row[0]
    for name, (method, model_name, *_) in WIDTHS.items():
        assert get_variant(name, method, model_name).models == (model_name,)


# Variants that pruning does not lead to: method, large network, and the epochs of Scratch-B without a cap.
DESIGNS = {
    "VGG-GAP": ("thinet", "imagenet_vgg16", 298),
    "VGG-Tiny": ("thinet", "imagenet_vgg16", 1381),
    "ResNet-50-2x": ("regression", "imagenet_resnet50", 134),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_is_planned_without_its_method(name):
    method, model_name, epochs = DESIGNS[name]
    assert is_design(name)
    design = get_variant(name, method, model_name).design
    settings = MethodSettings(ratios={}, design=design, width=0.25)
    large = build_model(model_name, (32, 48, 1), 7, 0.25)
    plan, known = METHODS.get(method).configured(settings).expected(large, settings)
    assert known
    assert (plan.inherits, plan.origin) == (False, {"design": design, "width": 0.25})
    made = plan.apply(large)
    assert (made.input_shape, made.output_shape) == ((None, 32, 48, 1), (None, 7))
    assert trainable(made) == trainable(build_model(design, (32, 48, 1), 7, 0.25)) == plan.params[1]
    whole = build_model(model_name, (224, 224, 3), 1000)
    settings = MethodSettings(design=design)
    before, after = METHODS.get(method).configured(settings).plan(whole, settings).flops
    assert int(90 * before / after) == epochs


def test_variants_that_pruning_leads_to_are_no_designs():
    assert {name for name in VARIANTS if is_design(name)} == set(DESIGNS)
    assert not is_design("ratio=0.5")
    assert not is_design(None)
    assert METHODS.get("thinet").configured(MethodSettings(ratio=0.5)) is METHODS.get("thinet")


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("VGG-16-B", "l1_norm", "vgg16"), ("'VGG-16-B'", "Did you mean 'VGG-16-A'?", "ResNet-110-B")),
        (("VGG-16-A", "uniform", "vgg16"), ("--method=l1_norm", "--method=uniform")),
        (("VGG-16-A", "l1_norm", "resnet56"), ("vgg16_l1 or vgg16", "resnet56", "ResNet-56-A, ResNet-56-B")),
        (("VGG-16-A", "l1_norm", "vgg19"), ("vgg19", "no variants", "--ratio")),
    ],
)
def test_variant_that_does_not_fit_is_told(arguments, fragments):
    with pytest.raises(UsageError) as error:
        get_variant(*arguments)
    assert all(fragment in str(error.value) for fragment in fragments)


def test_l1_norm_by_ratio_takes_uncoupled_convolutions_only():
    plan = METHODS.get("l1_norm").plan(residual_cnn(), MethodSettings(ratio=0.5))
    assert {layer: len(keep) for layer, keep in plan.keep.items()} == {
        "stem": 8,
        "branch_a": 3,
        "branch_b": 8,
        "logits": 5,
    }
    plan = METHODS.get("l1_norm").plan(plain_cnn(), MethodSettings(ratio=0.5))
    assert [len(plan.keep[layer]) for layer in ("conv_a", "conv_b", "fc")] == [3, 5, 8]


def test_l1_norm_without_an_uncoupled_convolution_is_told():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(4)(inputs)), name="dense_only")
    with pytest.raises(PlanError, match=r"'dense_only' has none.*'uniform'"):
        METHODS.get("l1_norm").plan(model, MethodSettings(ratio=0.5))


def slimmable(gammas):
    """A chain of convolutions, one for each list of gammas."""
    inputs = x = keras.Input((8, 8, 3))
    for number, values in enumerate(gammas):
        x = layers.Conv2D(len(values), 3, padding="same", name=f"conv_{number}")(x)
        x = layers.BatchNormalization(name=f"bn_{number}")(x)
        x = layers.ReLU()(x)
    model = randomize(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))))
    for number, values in enumerate(gammas):
        model.get_layer(f"bn_{number}").gamma.assign(np.asarray(values, "float32"))
    return model


def removed(plan):
    return {
        (layer, channel) for layer, keep in plan.keep.items() for channel in set(range(plan.widths[layer])) - set(keep)
    }


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.7])
def test_slimming_removes_exactly_the_lowest_ranked_gammas(ratio):
    generator = np.random.default_rng(5)
    gammas = [generator.normal(0, 1, n) for n in (12, 20, 8)]
    plan = METHODS.get("network_slimming").plan(slimmable(gammas), MethodSettings(ratio=ratio))
    owners = [(f"conv_{number}", index) for number, values in enumerate(gammas) for index in range(len(values))]
    order = np.argsort(np.abs(np.concatenate(gammas)), kind="stable")
    keep = {0.1: 36, 0.25: 30, 0.5: 20, 0.7: 12}[ratio]  # floor of 40 * (1 - ratio)
    assert removed(plan) == {owners[index] for index in order[: 40 - keep]}
    assert plan.notes == ()


def test_slimming_cuts_ties_by_position_so_the_count_is_exact():
    plan = METHODS.get("network_slimming").plan(slimmable([[0.5] * 10, [-0.5] * 10]), MethodSettings(ratio=0.45))
    assert removed(plan) == {("conv_0", index) for index in range(9)}


def test_slimming_holds_every_layer_at_its_minimum_and_tells():
    low, high = np.linspace(0.01, 0.02, 40), np.linspace(0.5, 1.0, 60)
    plan = METHODS.get("network_slimming").plan(slimmable([low, high]), MethodSettings(ratio=0.5))
    # 50 of 100 go. All of conv_0 ranks lowest, but one channel stays; conv_1 gives 11 instead of 10.
    assert plan.keep["conv_0"] == (39,)
    assert plan.keep["conv_1"] == tuple(range(11, 60))
    (note,) = plan.notes
    assert "conv_0" in note
    assert "minimum of 1 of 40" in note
    assert "removed 1 more" in note


def test_slimming_tells_when_every_layer_is_at_its_minimum():
    plan = METHODS.get("network_slimming").plan(slimmable([[0.1] * 20, [0.2] * 20]), MethodSettings(ratio=0.99))
    assert [len(plan.keep[layer]) for layer in ("conv_0", "conv_1")] == [1, 1]
    assert any("2 channels fewer than asked" in note for note in plan.notes)


def test_slimming_trains_with_the_gradient_lambda_sign_gamma():
    import tensorflow as tf

    method = METHODS.get("network_slimming")
    model = slimmable([[0.5, -2.0, 0.0], [1.0, -0.25]])
    sparse = clone(model, method.edit(MethodSettings(options={"gamma_l1": 0.003})))
    gammas = [sparse.get_layer(f"bn_{n}").gamma.value for n in range(2)]
    with tf.GradientTape() as tape:
        penalty = tf.add_n(sparse.losses)
    assert float(penalty) == pytest.approx(0.003 * 3.75)
    for gradient, signs in zip(tape.gradient(penalty, gammas), ([1, -1, 0], [1, -1]), strict=True):
        assert np.allclose(gradient, 0.003 * np.asarray(signs))
    assert len(sparse.losses) == 2  # gammas alone
    assert METHODS.get("l1_norm").edit(MethodSettings()) is None


@pytest.mark.parametrize("normalized", [False, True])
def test_network_slimming_refuses_a_network_without_gammas_before_it_is_trained(normalized):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3)(inputs)
    x = layers.BatchNormalization(scale=False)(x) if normalized else x
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)), name="plain")
    with pytest.raises(PlanError, match=r"gamma of batch normalization; 'plain' has none\. Take a network with"):
        METHODS.get("network_slimming").expected(model, MethodSettings(ratio=0.5))


def test_uniform_and_random_take_every_layer_by_the_same_ratio():
    model = plain_cnn()
    uniform = METHODS.get("uniform").plan(model, MethodSettings(ratio=0.3))
    chance = METHODS.get("random").plan(model, MethodSettings(ratio=0.3, seed=1))
    other = METHODS.get("random").plan(model, MethodSettings(ratio=0.3, seed=2))
    for plan in (uniform, chance, other):
        assert [len(plan.keep[layer]) for layer in ("conv_a", "conv_b", "fc", "logits")] == [4, 7, 5, 5]
    assert chance.keep != other.keep
    assert chance.keep == METHODS.get("random").plan(model, MethodSettings(ratio=0.3, seed=1)).keep
    sums = np.abs(model.get_layer("conv_b").kernel.numpy()).sum((0, 1, 2))
    assert uniform.keep["conv_b"] == tuple(np.sort(np.argsort(sums)[3:]))


def test_uniform_rounds_what_a_layer_keeps_up_to_multiples():
    settings = MethodSettings(ratio=0.3, options={"round_to": "4"})
    plan = METHODS.get("uniform").plan(plain_cnn(), settings)
    # 4, 7, 5 without rounding; of conv_a, which has 6, all stay before there would be 8.
    assert [len(plan.keep[layer]) for layer in ("conv_a", "conv_b", "fc")] == [4, 8, 8]


def test_which_methods_train_sparse_and_which_widths_follow_from_weights():
    traits = {name: (METHODS.get(name).trains_sparse, METHODS.get(name).automatic) for name in METHODS.names()}
    assert traits["network_slimming"] == traits["sparse_structure_selection"] == (True, True)
    assert traits["soft_filter"] == (True, False)
    assert traits["l1_norm"] == traits["uniform"] == traits["random"] == (False, False)


RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        # Figures 3 and 6 of the paper, the x axes.
        ("vgg16", 10, [11.89, 9.39, 7.20, 5.29, 3.68, 2.34]),
        ("vgg19", 100, [16.21, 12.82, 9.83, 7.23, 5.04, 3.20]),
    ],
)
def test_uniform_on_vgg_reaches_the_parameter_counts_of_the_paper(name, classes, millions):
    model = build_model(name, (32, 32, 3), classes)
    plans = [METHODS.get("uniform").plan(model, MethodSettings(ratio=ratio)) for ratio in RATIOS[:6]]
    assert [plan.params[1] / 1e6 for plan in plans] == pytest.approx(millions, abs=0.006)


def test_uniform_widths_in_front_of_streams_reach_the_parameter_counts_of_the_paper():
    # Figure 5: PreResNet-164, uniform too in what the blocks select from a stream that stays whole. The code counts the
    # normalizations in front of these selections at full width, and an index for each of their channels.
    model = build_model("preresnet164", (32, 32, 3), 10)
    views, params = stream_normalizations(model), []
    for ratio in RATIOS:
        plan = METHODS.get("uniform").plan(model, MethodSettings(ratio=ratio))
        whole = sum(plan.widths[view] for view in views)
        gone = whole - sum(len(plan.keep[view]) for view in views)
        params.append((plan.params[1] + 2 * gone + whole) / 1e6)
    assert params == pytest.approx([1.404, 1.165, 0.932, 0.741, 0.577, 0.409, 0.289], abs=0.0006)


def test_uniform_sparsification_takes_the_same_fraction_of_every_kernel_at_random():
    model = build_model("vgg11", (32, 32, 3), 10, 0.1)
    method = METHODS.get("uniform_sparsification")
    one, same, other = (method.plan(model, MethodSettings(ratio=0.3, seed=seed)) for seed in (1, 1, 2))
    for mask in (*one.arrays().values(), *other.arrays().values()):
        assert mask.size - mask.sum() == math.floor(mask.size * 0.3)
    assert one.masks == same.masks
    shared = np.mean(one.arrays()["conv_8"] & other.arrays()["conv_8"])
    assert shared == pytest.approx(0.49, abs=0.02)  # drawn apart: 0.7 * 0.7
    magnitudes = np.abs(model.get_layer("conv_8").kernel.numpy())
    assert magnitudes[one.arrays()["conv_8"]].mean() == pytest.approx(magnitudes.mean(), rel=0.03)


@pytest.mark.parametrize("method", ["network_slimming", "uniform", "random", "l1_norm", "magnitude"])
def test_layers_to_skip_keep_everything(method):
    model = build_model("imagenet_vgg11_bn", (32, 32, 3), 10, 0.05)
    randomize(model)
    skip = ("fc_*", "conv_2")
    chosen = METHODS.get(method)
    settings = MethodSettings(ratio=0.4, skip=skip[1:] if method in ("l1_norm", "magnitude") else skip)
    for plan in (chosen.plan(model, settings), chosen.expected(model, settings)[0]):
        sizes = plan.sizes()
        for layer in ("fc_1", "fc_2", "conv_2"):
            before, after = sizes.get(layer, (0, 0))
            assert before == after, layer
        assert any(after < before for before, after in sizes.values())


def test_skipping_all_that_l1_norm_prunes_is_refused():
    with pytest.raises(PlanError, match=r"leaves none of what l1_norm prunes: conv_1, conv_2"):
        METHODS.get("l1_norm").plan(build_model("vgg11", (32, 32, 3), 10, 0.1), MethodSettings(ratio=0.5, skip=["c*"]))
