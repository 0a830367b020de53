"""Plans of networks that stand beside the large one: what they cost, what is new in them, what is refused."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import images, other_head, plain_cnn, predict, residual_cnn, trainable, weights_by_path
from tfprune.errors import PlanError
from tfprune.plans.designs import DesignPlan
from tfprune.plans.loading import load_plan


@pytest.fixture(scope="module")
def model():
    return plain_cnn()


@pytest.fixture(scope="module")
def plan(model):
    return DesignPlan.beside(model, other_head(), notes=["a word"])


def test_costs_of_both_networks_are_counted_by_hand(plan):
    # plain_cnn: conv_a 3->6 and bn_a on 8x8, conv_b 6->10 with bias and bn_b on 4x4, fc 160->8, logits 8->5.
    large = 162 + 12 + 540 + 10 + 20 + 1280 + 8 + 40 + 5
    large_macs = 64 * 162 + 16 * 540 + 1280 + 40
    # The design: conv_a 3->4, bn_a, head 3->5.
    assert plan.params == (large, 108 + 8 + 15 + 5)
    assert plan.macs == (large_macs, 64 * 108 + 15)
    # 2 FLOPs a MAC and 1 a bias; of every element 2 for normalization and 1 for ReLU; 4 of a 2x2 pool's window.
    large_flops = 2 * large_macs + 64 * 6 * 3 + 16 * 6 * 4 + 16 * 10 * (1 + 3) + 8 + 5
    assert plan.flops == (large_flops, 2 * (64 * 108 + 15) + 64 * 4 * 3 + 5)
    assert plan.sizes() == {"conv_a": (6, 4), "conv_b": (10, 0), "fc": (8, 0), "logits": (5, 0), "head": (0, 5)}


def test_the_design_is_a_plain_network_of_the_foretold_cost_with_reproducible_weights(plan, model):
    made, again, other = (plan.apply(model, seed=seed) for seed in (3, 3, 4))
    assert trainable(made) == plan.params[1]
    assert made.to_json() == again.to_json()
    one, same, different = map(weights_by_path, (made, again, other))
    assert one.keys() == same.keys() == different.keys() == weights_by_path(other_head()).keys()
    assert all(np.array_equal(one[path], same[path]) for path in one)
    assert not np.array_equal(one["conv_a/kernel"], different["conv_a/kernel"])
    assert not np.array_equal(weights_by_path(plan.apply(model))["conv_a/kernel"], one["conv_a/kernel"])
    # It computes what the design computes.
    twin = other_head()
    twin.set_weights(made.get_weights())
    assert np.array_equal(predict(made, images(model))[0], predict(twin, images(model))[0])
    assert "136 params" in plan.prove(model)


def test_the_design_is_compiled_as_the_large_network_is(plan):
    large = plain_cnn()
    large.compile("sgd", "mse")
    made = plan.apply(large)
    assert isinstance(made.optimizer, keras.optimizers.SGD)
    assert not plan.apply(plain_cnn()).compiled


def test_weights_that_are_zero_cost_as_much_as_others():
    large = plain_cnn()
    plan = DesignPlan.beside(large, other_head(kernel="zeros"))
    assert plan.flops == DesignPlan.beside(large, other_head()).flops
    for weight in large.weights:
        weight.assign(np.zeros(weight.shape, "float32"))
    assert plan.apply(large).count_params() > 0  # still fits


def test_saved_and_loaded_plan_is_the_same_and_makes_the_same_network(plan, model, tmp_path):
    before = json.dumps(plan.architecture)
    made = plan.apply(model, seed=1)
    assert json.dumps(plan.architecture) == before
    plan.save(tmp_path / "plan.json")
    loaded = load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert isinstance(loaded, tfprune.DesignPlan)
    again = loaded.apply(model, seed=1)
    assert again.to_json() == made.to_json()
    assert all(np.array_equal(*pair) for pair in zip(again.get_weights(), made.get_weights(), strict=True))
    assert (loaded.edit(), loaded.callbacks(), loaded.inherits) == (None, [], False)


def test_printed_table_has_both_networks_and_the_notes(plan):
    lines = str(plan).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["layer"] == ["channels", "design", "params", "design", "MACs", "design"]
    assert rows["conv_a"] == ["6", "4", "162", "108", "10,368", "6,912"]
    assert rows["fc"] == ["8", "0", "1,288", "0", "1,280", "0"]
    assert rows["total"] == ["29", "9", "2,077", "136", "20,328", "6,927"]
    assert lines[-1] == "note: a word"


def test_nested_and_sequential_designs_become_plain_functional_ones(model):
    body = keras.Sequential([layers.Conv2D(2, 3), layers.GlobalAveragePooling2D()], name="body")
    design = keras.Sequential([keras.Input((8, 8, 3)), body, layers.Dense(5)])
    made = DesignPlan.beside(model, design).apply(model)
    assert type(made).__name__ == "Functional"
    assert not [layer for layer in made.layers if isinstance(layer, keras.Model)]
    assert trainable(made) == (27 + 1) * 2 + (2 + 1) * 5


# What is wrong is told.


@pytest.mark.parametrize("weights", ["inherit", "old", None])
def test_a_design_inherits_nothing(plan, model, weights):
    with pytest.raises(PlanError, match=r"no weights that it could inherit.*'fresh'"):
        plan.apply(model, weights=weights)
    with pytest.raises(PlanError, match=r"plan\.prove\(model\)"):
        tfprune.verify(model, plan)


@pytest.mark.parametrize(
    ("design", "fragments"),
    [
        (lambda: other_head(outputs=6), ("'other_head'", "(8, 8, 3) to (6,)", "(8, 8, 3) to (5,)", "same inputs")),
        (lambda: other_head(size=9), ("(9, 9, 3) to (5,)", "'plain_cnn'")),
        (lambda: keras.Sequential([layers.Dense(5)]), ("input shape",)),
        (lambda: 3, ("Keras 3 model", "int")),
        (lambda: with_lambda(), ("Keras cannot make the design", "Lambda")),
    ],
    ids=["outputs", "inputs", "not built", "no model", "Lambda"],
)
def test_what_can_be_no_design_is_told(model, design, fragments):
    with pytest.raises(PlanError) as error:
        DesignPlan.beside(model, design())
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def with_lambda():
    inputs = keras.Input((8, 8, 3))
    x = layers.Lambda(lambda x: x[:, 0, 0], output_shape=(3,))(inputs)
    return keras.Model(inputs, layers.Dense(5)(x))


@pytest.mark.parametrize("other", [residual_cnn, lambda: plain_cnn(classes=6)], ids=["layers", "classes"])
def test_a_plan_for_another_network_is_told(plan, other):
    for use in (plan.apply, plan.prove):
        with pytest.raises(PlanError, match=r"does not fit .*FLOPs.*another one"):
            use(other())


def test_a_plan_for_images_of_another_form_is_told_where_the_cost_is_the_same():
    def made(*shape):
        inputs = keras.Input(shape)
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same", name="conv")(inputs))
        return keras.Model(inputs, layers.Dense(5, name="logits")(x))

    plan = DesignPlan.beside(made(8, 8, 3), other_head())
    assert plan.flops == DesignPlan.beside(made(4, 16, 3), made(4, 16, 3)).flops[:1] + plan.flops[1:]
    with pytest.raises(PlanError, match=r"design maps \(8, 8, 3\) to \(5,\), .* maps \(4, 16, 3\) to"):
        plan.apply(made(4, 16, 3))


def first_layer(architecture):
    return architecture["config"]["layers"][1]


DAMAGES = {
    "no architecture": (lambda c: c.pop("architecture"), ("architecture is None", "DesignPlan.beside")),
    "architecture a text": (lambda c: c.update(architecture="{}"), ("architecture is '{}'", "dict")),
    "architecture empty": (lambda c: c.update(architecture={}), ("Expected a Keras 3 model",)),
    "a layer for a model": (
        lambda c: c.update(architecture=first_layer(c["architecture"])), ("Expected a Keras 3 model", "Conv2D")
    ),
    "no layers": (lambda c: c["architecture"]["config"].pop("layers"), ("cannot make the design",)),
    "layer without filters": (
        lambda c: first_layer(c["architecture"])["config"].pop("filters"), ("cannot make the design", "filters")
    ),
    "unknown class": (
        lambda c: first_layer(c["architecture"]).update(class_name="Conv9D"), ("cannot make the design", "Conv9D")
    ),
    "a class that is no layer": (
        lambda c: first_layer(c["architecture"]).update(module="subprocess", class_name="Popen", registered_name=None),
        ("cannot make the design", "Popen"),
    ),
    "code": (
        lambda c: c.update(architecture=json.loads(with_lambda().to_json())),
        ("cannot make the design", "arbitrary code"),
    ),
    "other width": (lambda c: first_layer(c["architecture"])["config"].update(filters=5), ("cannot make the design",)),
    "other kernel": (
        lambda c: first_layer(c["architecture"])["config"].update(kernel_size=[1, 1]), ("does not fit", "edited")
    ),
    "flops a number": (lambda c: c.update(flops=3), ("flops is 3", "[int, int]")),
    "other flops": (lambda c: c["flops"].reverse(), ("does not fit", "FLOPs")),
    "no rows": (lambda c: c.update(rows=[]), ("rows is []",)),
    "rows without costs": (lambda c: c.update(rows=[{"layer": "conv_a"}]), ("rows is",)),
    "other params": (lambda c: c["rows"][0].update(params=[162, 107]), ("does not fit", "params", "edited")),
    "notes a text": (lambda c: c.update(notes="abc"), ("notes is 'abc'", "[str]")),
    "no origin": (lambda c: c.pop("origin"), ("origin is None",)),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_plan_file_is_told_at_the_latest_when_it_is_proved(name, plan, model, tmp_path):
    change, fragments = DAMAGES[name]
    path = tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError) as error:
        load_plan(path).prove(model)
    message = str(error.value)
    assert all(fragment in message for fragment in fragments), message
    assert "\n" not in message


def test_an_older_or_newer_format_is_told(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text().replace("design plan 1", "design plan 0")
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match=r"no plan of this version.*'tfprune design plan 1'"):
        load_plan(tmp_path / "plan.json")
