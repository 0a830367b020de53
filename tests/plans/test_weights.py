import json

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import images, network, plain_cnn, predict, randomize, residual_cnn, weights_by_path
from tfprune.errors import PlanError, VerificationError
from tfprune.models import build_model
from tfprune.plans.weights import WeightPlan

KERNELS = {"stem": (3, 3, 3, 8), "branch_a": (3, 3, 8, 6), "branch_b": (3, 3, 6, 8)}
WEIGHTS = 216 + 432 + 432


@pytest.fixture(scope="module")
def model():
    return residual_cnn()


@pytest.fixture
def plan(model):
    return tfprune.plan_weights(model, sparsity=0.8)


def kernels(model, names=KERNELS):
    return {name: model.get_layer(name).kernel.numpy() for name in names}


def count_zeros(model, names=KERNELS):
    return {name: int((kernel == 0).sum()) for name, kernel in kernels(model, names).items()}


# What a sparse network holds.


def test_the_sparse_network_has_the_zeros_of_the_plan_and_nothing_else_changed(model, plan):
    sparse = plan.apply(model)
    zeros = count_zeros(sparse)
    assert sum(zeros.values()) == int(WEIGHTS * 0.8)
    assert zeros == {layer: before - after for layer, (before, after) in plan.sizes().items()}
    ours, theirs = weights_by_path(sparse), weights_by_path(model)
    for path, value in theirs.items():
        mask = plan.arrays().get(path.removesuffix("/kernel"), np.ones(value.shape, bool))
        assert np.array_equal(ours[path], np.where(mask, value, 0)), path


# Costs.


def test_flops_of_nonzero_weights_equal_an_independent_count(model, plan):
    sparse = plan.apply(model)
    counted = 0
    for layer in sparse.layers:
        if isinstance(layer, layers.Conv2D):
            counted += 2 * np.count_nonzero(layer.kernel.numpy()) * 64  # 8 x 8 outputs, no bias
        elif isinstance(layer, layers.BatchNormalization):
            counted += 2 * 64 * layer.gamma.shape[0]
        elif isinstance(layer, layers.ReLU):
            counted += int(np.prod(layer.output.shape[1:]))
        elif isinstance(layer, layers.Dense):
            counted += 2 * 8 * 5 + 5
    profile = tfprune.profile(sparse)
    assert plan.flops[1] == profile.flops == counted
    assert plan.flops[0] == tfprune.profile(model).flops == counted + 2 * 64 * int(WEIGHTS * 0.8)
    assert plan.params == (profile.params, profile.params)
    assert plan.macs == (profile.macs, profile.macs)
    assert plan.nonzero == (profile.params, profile.nonzero_params)


def test_zeros_of_dense_layers_save_no_flops_as_in_the_paper(model):
    plan = tfprune.plan_weights(model, 0.5, skip=[*KERNELS], dense=True)
    assert plan.flops[0] == plan.flops[1]
    assert plan.nonzero[0] - plan.nonzero[1] == 20


def test_the_printed_table_has_weights_sparsity_macs_totals_and_notes(model):
    masks = {"stem": np.arange(216).reshape(KERNELS["stem"]) % 4 == 0}
    plan = WeightPlan.from_masks(model, masks, notes=["a word"])
    lines = [line.split() for line in str(plan).splitlines()]
    assert ["stem", "216", "54", "75.0", "%", "13,824", "3,456"] in lines
    assert ["total", "216", "54", "75.0", "%", "13,824", "3,456"] in lines
    assert str(plan).splitlines()[-1] == "note: a word"


# Fresh weights.


def test_fresh_weights_are_those_of_the_initializers_under_the_mask(model, plan):
    fresh, again, other = (plan.apply(model, weights="fresh", seed=seed) for seed in (1, 1, 2))
    assert count_zeros(fresh) == count_zeros(plan.apply(model))
    for name, mask in plan.arrays().items():
        values = fresh.get_layer(name).kernel.numpy()
        assert np.array_equal(values != 0, mask)
        assert np.array_equal(values, again.get_layer(name).kernel.numpy())
        assert not np.array_equal(values, other.get_layer(name).kernel.numpy())
        assert not np.array_equal(values, plan.apply(model).get_layer(name).kernel.numpy())
    assert (fresh.get_layer("bn_stem").moving_mean.numpy() == 0).all()


def test_rescaled_weights_have_the_deviation_of_the_weights_that_are_left():
    def two(x):
        return layers.Conv2D(64, 3, name="b")(layers.Conv2DTranspose(48, 3, name="a")(x))

    model = network(two, (8, 8, 32))
    masks = {}
    for name, sparsity in (("a", 0.9), ("b", 0.5)):
        shape = model.get_layer(name).kernel.shape
        masks[name] = np.random.default_rng(1).random(shape) >= sparsity
    plan = WeightPlan.from_masks(model, masks)
    fresh = plan.apply(model, weights="fresh", seed=3, rescale=True)
    plain = plan.apply(model, weights="fresh", seed=3)
    for name, inputs in (("a", 32), ("b", 48)):
        values, mask = fresh.get_layer(name).kernel.numpy(), masks[name]
        assert np.array_equal(values != 0, mask)
        assert values[mask].std() == pytest.approx((2 * inputs / mask.sum()) ** 0.5, rel=0.05)
        assert values[mask].std() > 1.3 * plain.get_layer(name).kernel.numpy()[mask].std()
    again = plan.apply(model, weights="fresh", seed=3, rescale=True)
    assert np.array_equal(again.get_layer("a").kernel, fresh.get_layer("a").kernel)


def test_the_sparse_network_is_plain_keras_and_computes_with_masked_kernels(model, plan, tmp_path):
    sparse = plan.apply(model)
    sparse.save(tmp_path / "sparse.keras")
    assert "tfprune" not in json.dumps(sparse.get_config())
    masked = residual_cnn()
    for name, mask in plan.arrays().items():
        masked.get_layer(name).kernel.assign(masked.get_layer(name).kernel * mask)
    loaded = keras.saving.load_model(tmp_path / "sparse.keras")
    batch = images(model)
    assert np.array_equal(predict(loaded, batch)[0], predict(masked, batch)[0])


def test_the_proof_compares_every_weight(model, plan, monkeypatch):
    assert plan.prove(model) == "864 masked weights are exactly zero, all others are the network's own"
    apply = WeightPlan.apply

    def careless(self, *args, **kwargs):
        made = apply(self, *args, **kwargs)
        kernel = made.get_layer("branch_b").kernel
        kernel.assign(kernel + np.eye(8)[:6] * 1e-3)
        return made

    monkeypatch.setattr(WeightPlan, "apply", careless)
    with pytest.raises(VerificationError, match="branch_b"):
        plan.prove(model)


# Files.


def test_saved_and_loaded_plan_is_the_same(model, tmp_path):
    plan = tfprune.plan_weights(model, np.float32(0.7), skip=["stem"])
    plan.save(tmp_path / "plan.json")
    loaded = tfprune.load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert str(loaded) == str(plan)
    assert isinstance(loaded, tfprune.WeightPlan)
    assert np.array_equal(
        loaded.apply(model).get_layer("branch_a").kernel, plan.apply(model).get_layer("branch_a").kernel
    )


def test_a_plan_file_takes_less_than_two_bits_a_weight(tmp_path):
    model = build_model("resnet20", (32, 32, 3), 10)
    tfprune.plan_weights(model, 0.95).save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").stat().st_size < model.count_params() * 2 / 8


DAMAGES = {
    "no masks": lambda c: c.pop("masks"),
    "masks a list": lambda c: c.update(masks=[1]),
    "bits that are no base64": lambda c: c["masks"]["stem"].update(bits="§"),
    "bits that are cut off": lambda c: c["masks"]["stem"].update(bits=c["masks"]["stem"]["bits"][:8]),
    "bits of another mask": lambda c: c["masks"]["stem"].update(bits=c["masks"]["branch_a"]["bits"]),
    "a mask of another layer": lambda c: c["masks"].update(branch_a=c["masks"]["branch_b"]),
    "another shape": lambda c: c["masks"]["stem"].update(shape=[3, 3, 3, 9]),
    "a negative shape": lambda c: c["masks"]["stem"].update(shape=[-216]),
    "no rows": lambda c: c.pop("rows"),
    "rows without weights": lambda c: c.update(rows=[{"layer": "stem"}]),
    "rows that tell otherwise": lambda c: c["rows"][0].update(weights=[216, 1]),
    "flops a number": lambda c: c.update(flops=3),
    "flops that were edited": lambda c: c.update(flops=[10, 5]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_plan_file_is_told_at_the_latest_when_it_is_applied(name, model, plan, tmp_path):
    path = tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    DAMAGES[name](content)
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError):
        tfprune.load_plan(path).apply(model)


# What is wrong is told.


@pytest.mark.parametrize(
    ("masks", "fragments"),
    [
        ({"stem": np.ones((3, 3, 3, 8))}, ("stem", "bool", "float64")),
        ({"stem": np.ones((3, 3, 3, 9), bool)}, ("'stem'", "(3, 3, 3, 9)", "(3, 3, 3, 8)")),
        ({"bn_stem": np.ones(8, bool)}, ("'bn_stem'", "stem, branch_a, branch_b, logits")),
    ],
    ids=["dtype", "shape", "layer"],
)
def test_wrong_masks_are_told(model, masks, fragments):
    with pytest.raises(PlanError) as error:
        WeightPlan.from_masks(model, masks)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_a_plan_for_another_model_names_the_layer_that_differs(model, plan):
    with pytest.raises(PlanError, match=r"another model.*'plain_cnn' has no.*'stem'.*conv_a, conv_b"):
        plan.apply(plain_cnn())
    wider = randomize(network(lambda x: layers.Conv2D(9, 3, name="stem")(x), (8, 8, 3)))
    with pytest.raises(PlanError, match=r"another model.*'stem'.*\(3, 3, 3, 8\).*\(3, 3, 3, 9\)"):
        plan.apply(wider)


def test_arguments_of_apply_that_do_not_go_together_are_told(model, plan):
    with pytest.raises(PlanError, match=r"weights='old'.*'inherit'.*'fresh'"):
        plan.apply(model, weights="old")
    with pytest.raises(PlanError, match="seed=3 goes with weights='fresh'"):
        plan.apply(model, seed=3)
    with pytest.raises(PlanError, match="rescale=True goes with weights='fresh'"):
        plan.apply(model, rescale=True)


def test_verify_of_a_weight_plan_tells_what_to_use(model, plan):
    with pytest.raises(PlanError, match=r"plan\.prove\(model\)"):
        tfprune.verify(model, plan)
