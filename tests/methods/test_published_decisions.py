"""What is pruned, beside the published algorithms: these are written down here in numpy, from their description.

Network Slimming and magnitude pruning sort all n values, take the one at int(n * percent) as the threshold, and keep
what is strictly above it: int(n * percent) + 1 go, and more with ties. Here as many go as are asked. Of channels,
floor(n * (1 - percent)) stay: the published ones, and the one at the threshold too where n * percent is whole. Of
weights, floor(n * percent) go: the published ones but for the one at the threshold. L1-norm is beside its variants, in
test_methods.
"""

import numpy as np
import pytest

from tests.helpers import accuracy, assert_sliced, convolutions, drawn_plan, normalizations, prove, randomize
from tests.trainings import STRATEGY
from tfprune.data import load
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.surgery.rebuild import clone
from tfprune.training.loop import Trainer, TrainingConfig
from tfprune.training.schedules import Schedule


def published(values, percent):
    """What is kept of arrays by name, as bool arrays, and the threshold."""
    pooled = np.sort(np.concatenate([np.abs(value).ravel() for value in values.values()]))
    threshold = pooled[int(len(pooled) * percent)]
    return {name: np.abs(value) > threshold for name, value in values.items()}, threshold


# Network Slimming.

SLIMMING = METHODS.get("network_slimming")
# Network -> channels of all batch normalizations, and the percentages of the paper.
SLIMMED = {
    "vgg16": (4_224, (0.6,)),
    "vgg19": (5_504, (0.5, 0.7)),
    "preresnet56": (4_048, (0.8,)),
    "preresnet164": (12_112, (0.4, 0.6)),
    "densenet40": (9_360, (0.4, 0.6, 0.8)),
    "imagenet_vgg11_bn": (2_752 + 2 * 4_096, (0.5,)),
}


@pytest.fixture(scope="module")
def networks():
    """Every network, with gammas of another scale in every layer, and one that is large, so that none is emptied."""
    made, generator = {}, np.random.default_rng(5)
    for name in SLIMMED:
        made[name] = randomize(build_model(name, (32, 32, 3), 10), 4)
        for layer in normalizations(made[name]):
            gamma = layer.gamma.numpy() * np.float32(generator.uniform(0.8, 1.25))
            gamma[generator.integers(len(gamma))] = generator.uniform(2, 3)
            layer.gamma.assign(gamma)
    return made


def gammas_of(model):
    return {layer.name: layer.gamma.numpy() for layer in normalizations(model)}


def kept_by_slimming(model, percent):
    """Batch normalization -> mask: the published rule, with the one at the threshold where it is one too many."""
    gammas = gammas_of(model)
    total = sum(map(len, gammas.values()))
    masks, threshold = published(gammas, percent)
    assert sum(int(mask.sum()) for mask in masks.values()) == total - int(total * percent) - 1
    if total * percent > int(total * percent):
        return masks
    return {name: mask | (np.abs(gammas[name]) == threshold) for name, mask in masks.items()}


def maker(name, bn):
    """The layer that loses the channels of a normalization; itself where the code selects from a stream behind it."""
    number = bn.removeprefix("bn_")
    if "vgg" in name:
        return number if "fc" in number else f"conv_{number}"
    # Every one of a DenseNet selects; of a PreResNet the first of the three of a block, and the last of all.
    selects = name.startswith("densenet") or (int(number) - 2) % 3 == 0
    return bn if selects else f"conv_{int(number) - 1}"


@pytest.mark.parametrize(
    ("name", "percent"), [(name, percent) for name, (_, percents) in SLIMMED.items() for percent in percents]
)
def test_slimming_removes_the_channels_that_the_published_rule_removes(name, percent, networks):
    model = networks[name]
    masks = kept_by_slimming(model, percent)
    assert sum(map(len, masks.values())) == SLIMMED[name][0]
    plan = SLIMMING.plan(model, MethodSettings(ratio=percent))
    assert plan.notes == ()
    expected = {maker(name, bn): tuple(np.flatnonzero(mask)) for bn, mask in masks.items()}
    assert {layer: plan.keep[layer] for layer in expected} == expected
    others = set(plan.keep) - set(expected)  # what makes streams, and the classifier
    assert all(len(plan.keep[layer]) == plan.widths[layer] for layer in others)
    shares = [mask.mean() for mask in masks.values()]
    assert max(shares) > min(shares) + 0.2  # a global ranking, not one by layer


def test_slimming_of_vgg16_leaves_as_many_channels_as_in_the_paper(networks):
    # Table 7: 1689.2 of 4224, the sum of averages that are rounded to a tenth.
    plan = SLIMMING.plan(networks["vgg16"], MethodSettings(ratio=0.6))
    assert sum(len(plan.keep[f"conv_{number}"]) for number in range(1, 14)) == 1_689


@pytest.mark.parametrize(("name", "length"), [("vgg16", 13), ("preresnet56", 55), ("densenet40", 39)])
def test_slimming_slices_what_the_published_code_slices(name, length, networks):
    model = networks[name]
    masks = kept_by_slimming(model, 0.4)
    small = SLIMMING.plan(model, MethodSettings(ratio=0.4)).apply(model)
    # In VGG the next convolution reads a normalization, in the others that of the same number.
    readers = [*(conv.name for conv in convolutions(model)[1:] if "shortcut" not in conv.name), "logits"]
    inputs = dict(zip(readers, masks.values(), strict=True))
    assert_sliced(small, model, inputs, masks | {maker(name, bn): mask for bn, mask in masks.items()})
    cfg = [int(mask.sum()) for mask in masks.values()]  # what the code hands to the small network
    assert [small.get_layer(reader).kernel.shape[-2] for reader in readers] == cfg
    assert len(cfg) == length


# What runs of the algorithm have left of VGG-19 on CIFAR-10, as github.com/foolwood/pytorch-slimming tells. Every sum
# is what the published rule leaves of 5504 channels, which checks how it is written down here.
OF_VGG19 = {
    0.5: (52, 64, 128, 128, 256, 254, 245, 214, 179, 117, 116, 229, 228, 220, 210, 111),
    0.6: (51, 64, 128, 128, 256, 254, 245, 213, 165, 85, 92, 153, 83, 86, 87, 111),
    0.7: (49, 64, 128, 128, 256, 254, 234, 198, 114, 41, 24, 11, 14, 13, 19, 104),
}


@pytest.mark.parametrize("percent", OF_VGG19)
def test_slimming_thins_layers_as_far_as_the_published_rule_did(percent):
    model, generator = build_model("vgg19", (32, 32, 3), 10), np.random.default_rng(9)
    for layer, kept in zip(normalizations(model), OF_VGG19[percent], strict=True):
        size = layer.gamma.shape[0]
        small, large = generator.uniform(0, 0.1, size - kept), generator.uniform(0.2, 0.5, kept)
        layer.gamma.assign(generator.permutation(np.concatenate([small, large])))
    masks, _ = published(gammas_of(model), percent)
    assert tuple(int(mask.sum()) for mask in masks.values()) == OF_VGG19[percent]
    plan = SLIMMING.plan(model, MethodSettings(ratio=percent))
    assert plan.notes == ()
    kept = [len(plan.keep[f"conv_{number}"]) for number in range(1, 17)]
    more = [ours - theirs for ours, theirs in zip(kept, OF_VGG19[percent], strict=True)]
    assert sorted(more, reverse=True) == [percent == 0.5] + [0] * 15  # half of 5504 is whole


def test_slimming_keeps_a_channel_of_layers_that_the_published_rule_empties():
    model = randomize(build_model("preresnet56", (32, 32, 3), 10), 6)
    for bn in ("bn_8", "bn_10"):  # the first selects from a stream, the other is inside of a block
        layer = model.get_layer(bn)
        layer.gamma.assign(layer.gamma.numpy() / 100)
    gammas = gammas_of(model)
    masks, _ = published(gammas, 0.5)
    assert [bn for bn, mask in masks.items() if not mask.any()] == ["bn_8", "bn_10"]
    plan = SLIMMING.plan(model, MethodSettings(ratio=0.5))
    # One by one from the smallest; the last of a layer stays, and the next in rank goes instead.
    channels = sorted((abs(gamma), bn, index) for bn, values in gammas.items() for index, gamma in enumerate(values))
    left, kept = {bn: set(range(len(values))) for bn, values in gammas.items()}, len(channels)
    for _, bn, index in channels:
        if kept > len(channels) // 2 and len(left[bn]) > 1:
            left[bn].remove(index)
            kept -= 1
    for bn, indices in left.items():
        assert plan.keep[maker("preresnet56", bn)] == tuple(sorted(indices)), bn
    assert sorted(note.split(":")[0] for note in plan.notes) == ["bn_8", "conv_9"]
    prove(model, plan)


# Single weights.


@pytest.mark.parametrize(
    ("name", "width"), [("vgg19_unstructured", 0.25), ("resnet50_cifar", 1), ("preresnet110", 1), ("densenet_bc100", 1)]
)
def test_magnitude_removes_the_weights_that_the_published_rule_removes(name, width):
    model, generator = randomize(build_model(name, (32, 32, 3), 10, width), 7), np.random.default_rng(7)
    for conv in convolutions(model):  # of another scale in every layer, but none that would be emptied
        conv.kernel.assign(conv.kernel.numpy() / conv.kernel.numpy().std() * generator.uniform(0.8, 1.25))
    kernels = {conv.name: conv.kernel.numpy() for conv in convolutions(model)}
    total = sum(kernel.size for kernel in kernels.values())
    for percent in (0.3, 0.5, 0.8, 0.95):
        masks, threshold = published(kernels, percent)
        plan = METHODS.get("magnitude").plan(model, MethodSettings(ratio=percent))
        assert plan.notes == ()
        kept = plan.arrays()
        assert kept.keys() == kernels.keys()  # nothing else, no dense layer
        for layer, mask in masks.items():
            assert kept[layer][mask].all(), layer
            assert (np.abs(kernels[layer][kept[layer] & ~mask]) == threshold).all(), layer
        assert sum(int((~mask).sum()) for mask in kept.values()) == int(total * percent)
        assert sum(int((~mask).sum()) for mask in masks.values()) > int(total * percent)


# Soft filters.


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.3, 0.4])
def test_soft_filters_that_are_zeroed_are_those_of_the_published_rule(ratio):
    model = randomize(build_model("resnet56", (32, 32, 3), 10), 8)
    before = {conv.name: conv.kernel.numpy() for conv in convolutions(model)}
    (callback,) = METHODS.get("soft_filter").callbacks(MethodSettings(ratio=ratio))
    callback.set_model(model)
    callback.on_train_begin()
    rate = 1 - ratio  # the code is told the fraction that stays
    assert len(before) == 55
    for layer, kernel in before.items():
        norms = np.sqrt((kernel.astype(np.float64) ** 2).sum((0, 1, 2)))
        expected = kernel.copy()
        expected[..., np.argsort(norms)[: int(len(norms) * (1 - rate))]] = 0
        assert np.array_equal(model.get_layer(layer).kernel.numpy(), expected), layer


# On a trained network. Thinet, regression, soft_filter, sparse_structure_selection and magnitude have such a test of
# their own, in their files.


@pytest.mark.slow
@pytest.mark.parametrize(
    # The paper's decay and penalty take 160 epochs to draw channels apart; six epochs need stronger ones.
    ("method", "ratio", "weight_decay", "gamma_l1"),
    [("l1_norm", 0.2, 2e-2, 0.0), ("network_slimming", 0.3, 1e-4, 1e-2)],
)
def test_the_selection_beats_chance_at_the_same_shape_before_fine_tuning(method, ratio, weight_decay, gamma_l1):
    data, method = load("fashion_mini", None, 3000), METHODS.get(method)
    settings = MethodSettings(ratio=ratio, options={"gamma_l1": gamma_l1})
    model = clone(build_model("vgg11", data.input_shape, 10, 0.125), weights="fresh", seed=0)
    config = TrainingConfig(weight_decay=weight_decay)
    result = Trainer(model, data, config, STRATEGY, method.edit(settings)).run(
        model.get_weights(), 6, Schedule.paper(0.1, 6), seed=0
    )
    model.set_weights(result.weights)
    plan = method.plan(model, settings)
    chance = [drawn_plan(model, plan, seed) for seed in range(5)]
    assert all(control.params == plan.params for control in chance)
    reached = accuracy(plan.apply(model), data)
    assert accuracy(model, data) > 0.65
    assert reached > max(accuracy(control.apply(model), data) for control in chance) + 0.1
