import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tfprune
from tests.helpers import images, plain_cnn, predict, randomize, relative_error, residual_cnn, weights_by_path
from tfprune.errors import PlanError, UsageError
from tfprune.methods import METHODS
from tfprune.methods.base import MethodSettings
from tfprune.models import build_model
from tfprune.plans.channels import ChannelPlan
from tfprune.plans.loading import load_plan


@pytest.fixture(scope="module")
def model():
    return plain_cnn()


def test_by_hand_removes_what_was_named(model):
    plan = ChannelPlan.from_removed(model, {"conv_a": [5, 0], "fc": np.array([2])})
    assert plan.keep == {
        "conv_a": (1, 2, 3, 4),
        "conv_b": tuple(range(10)),
        "fc": (0, 1, 3, 4, 5, 6, 7),
        "logits": (0, 1, 2, 3, 4),
    }
    assert plan.widths == {"conv_a": 6, "conv_b": 10, "fc": 8, "logits": 5}
    assert plan.frozen == {"logits": "model output"}


def test_coupled_layers_follow_by_themselves():
    plan = ChannelPlan.from_removed(residual_cnn(), {"branch_b": [3]})
    assert plan.keep["stem"] == plan.keep["branch_b"] == (0, 1, 2, 4, 5, 6, 7)
    assert plan == ChannelPlan.from_removed(residual_cnn(), {"stem": [3, 3]})


def test_keep_is_of_plain_sorted_integers(model):
    plan = tfprune.plan_channels(model, 0.5)
    for channels in plan.keep.values():
        assert list(channels) == sorted(channels)
        assert {type(channel) for channel in channels} == {int}


def test_printed_table_has_layers_totals_reasons_and_notes(model):
    plan = ChannelPlan.from_removed(model, {"conv_a": [0, 1]}, notes=["a word"])
    lines = str(plan).splitlines()
    (row,) = [line.split() for line in lines if line.startswith("conv_a")]
    assert row == ["conv_a", "6", "4", "162", "108", "10,368", "6,912"]
    (total,) = [line.split() for line in lines if line.startswith("total")]
    assert total[1:3] == ["29", "27"]
    assert total[3] == "2,077"
    # Less: 2 filters of 27 weights, 2 gammas and betas, 2 inputs of 9 x 10 weights.
    assert total[4] == f"{2077 - 54 - 4 - 180:,}"
    assert "frozen: logits (model output)" in lines
    assert lines[-1] == "note: a word"


@pytest.mark.parametrize(
    ("removed", "fragments"),
    [
        ({"conv_z": [0]}, ("'conv_z'", "conv_a, conv_b, fc, logits")),
        ({"relu_a": [0]}, ("'relu_a'", "creates channels")),
        ({"conv_a": [6]}, ("conv_a", "0 to 5", "received 6")),
        ({"conv_a": [-1]}, ("conv_a", "0 to 5", "received -1")),
        ({"conv_a": [1.5]}, ("conv_a", "1.5")),
        ({"logits": [0]}, ("frozen", "model output")),
        ({"conv_a": range(6)}, ("conv_a", "without any channel")),
        (["conv_a"], ("removed=['conv_a']", "dictionary: layer name -> channels to remove")),
        (None, ("removed=None", "dictionary")),
        ({"conv_a": 3}, ("removed['conv_a']=3", "list of channel indices")),
        ({"conv_a": "01"}, ("removed['conv_a']='01'", "list of channel indices")),
    ],
    ids=str,
)
def test_wrong_hand_made_plan_is_told(model, removed, fragments):
    with pytest.raises(PlanError) as error:
        ChannelPlan.from_removed(model, removed)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_frozen_channel_is_told_with_its_layer(model):
    with pytest.raises(PlanError, match="logits"):
        ChannelPlan.from_removed(model, {"logits": [0]})


def test_unknown_weights_are_told(model):
    with pytest.raises(PlanError, match=r"weights='old'.*'inherit'.*'fresh'"):
        tfprune.plan_channels(model, 0.5).apply(model, weights="old")


def test_saved_and_loaded_plan_is_the_same(model, tmp_path):
    plan = tfprune.plan_channels(model, 0.6, min_channels=4, skip=["fc"])
    assert plan.notes
    plan.save(tmp_path / "plan.json")
    loaded = tfprune.load_plan(tmp_path / "plan.json")
    assert loaded == plan
    assert str(loaded) == str(plan)
    assert load_plan(str(tmp_path / "plan.json")).keep == plan.keep


def test_a_plan_file_from_before_whole_groups_is_loaded(model, tmp_path):
    plan, path = tfprune.plan_channels(model, 0.5), tmp_path / "plan.json"
    plan.save(path)
    content = json.loads(path.read_text())
    del content["grouped"]
    path.write_text(json.dumps(content))
    assert load_plan(path) == plan


def test_plan_asked_for_with_numpy_scalars_is_saved(model, tmp_path):
    plan = tfprune.plan_channels(model, np.float32(0.5), seed=np.int64(3), max_ratio=np.float64(0.9))
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").keep == plan.keep


@pytest.mark.parametrize(
    ("wrong", "fragments"),
    [
        (residual_cnn, ("'conv_a'", "6 channels", "no such layer", "residual_cnn")),
        (lambda: other_width(), ("'conv_b'", "10 channels", "12 channels")),
        (lambda: coupled_otherwise(), ("another model", "conv_a", "coupled")),
    ],
    ids=["other layers", "other width", "other coupling"],
)
def test_plan_for_another_model_names_the_layer_that_differs(model, wrong, fragments):
    plan = ChannelPlan.from_removed(model, {"conv_a": [0], "fc": [1]})
    for use in (plan.apply, lambda other: tfprune.verify(other, plan)):
        with pytest.raises(PlanError) as error:
            use(wrong())
        assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def other_width():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="conv_a")(inputs)
    x = layers.Conv2D(12, 3, name="conv_b")(x)
    x = layers.Dense(8, name="fc")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(5, name="logits")(x))


def coupled_otherwise():
    """The layers of `plain_cnn`, with channels of conv_a and fc that go together."""
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(6, 3, name="conv_a")(inputs)
    b = layers.GlobalAveragePooling2D()(layers.Conv2D(10, 3, name="conv_b")(inputs))
    fc = layers.Dense(8, name="fc")(b)
    padded = keras.ops.pad(layers.GlobalAveragePooling2D()(a), ((0, 0), (0, 2)))
    return keras.Model(inputs, layers.Dense(5, name="logits")(layers.Add()([fc, padded])))


def damage(change):
    def apply(content):
        change(content)
        return json.dumps(content)

    return apply


DAMAGES = {
    "text": lambda content: "not a plan",
    "cut off": lambda content: json.dumps(content)[:-40],
    "a list": lambda content: "[1, 2]",
    "other format": damage(lambda content: content.update(format="tfprune channel plan 0")),
    "no keep": damage(lambda content: content.pop("keep")),
    "no rows": damage(lambda content: content.pop("rows")),
    "rows without costs": damage(lambda content: content.update(rows=[{"layer": "conv_a"}])),
    "keep a list": damage(lambda content: content.update(keep=[1])),
    "channels null": damage(lambda content: content["keep"].update(conv_a=None)),
    "flops a number": damage(lambda content: content.update(flops=3)),
    "widths a list": damage(lambda content: content.update(widths=[1])),
    "keep lacks a layer": damage(lambda content: content["keep"].pop("conv_a")),
    "keep has a layer more": damage(lambda content: content["keep"].update(extra=[0])),
    "keep out of range": damage(lambda content: content["keep"].update(conv_a=[0, 99])),
    "keep of text": damage(lambda content: content["keep"].update(conv_a=["a"])),
    "empty layer": damage(lambda content: content["keep"].update(conv_a=[])),
    "no row": damage(lambda content: content.update(rows=[])),
    "frozen a list": damage(lambda content: content.update(frozen=["x"])),
    "bypass a list": damage(lambda content: content.update(bypass=[1])),
    "grouped a text": damage(lambda content: content.update(grouped="conv_a")),
    "one flops": damage(lambda content: content.update(flops=[1])),
    "flops of text": damage(lambda content: content.update(flops=["a", "b"])),
    "notes a text": damage(lambda content: content.update(notes="abc")),
    "keep of floats": damage(
        lambda content: content["keep"].update(conv_a=[float(c) for c in content["keep"]["conv_a"]])
    ),
    "keep of truths": damage(lambda content: content["keep"].update(conv_a=[False, True])),
    "keep reversed": damage(lambda content: content["keep"]["conv_a"].reverse()),
    "keep twice": damage(lambda content: content["keep"].update(conv_a=[1, 1])),
    "keep nested": damage(lambda content: content["keep"].update(conv_a=[[0, 1]])),
    "width a text": damage(lambda content: content["widths"].update(conv_a="6")),
    "row with more": damage(lambda content: content["rows"][0].update(extra=1)),
    "frozen channel": damage(lambda content: content["keep"].update(logits=[0])),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_plan_file_is_told_at_the_latest_when_it_is_applied(name, model, tmp_path):
    path = tmp_path / "plan.json"
    tfprune.plan_channels(model, 0.5).save(path)
    path.write_text(DAMAGES[name](json.loads(path.read_text())))
    with pytest.raises(PlanError):
        load_plan(path).apply(model)


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("no row", ("rows is []", "a row for each layer")),
        ("flops of text", ("flops is ['a', 'b']", "[int, int]")),
        ("keep reversed", ("keep['conv_a'] is [", "ascending, each once")),
        ("keep out of range", ("keep['conv_a'] is [0, 99]", "from 0 to 5")),
        ("keep nested", ("keep is {'conv_a': [[0, 1]]", "{str: [int]}")),
        ("width a text", ("widths is {'conv_a': '6'", "{str: int}")),
        ("notes a text", ("notes is 'abc'", "[str]")),
        ("bypass a list", ("bypass is [1]", "{str: int}")),
        ("grouped a text", ("grouped is 'conv_a'", "[str]")),
        ("keep lacks a layer", ("keep is ['conv_b', 'fc', 'logits']", "conv_a, conv_b")),
    ],
)
def test_damaged_plan_file_is_told_with_the_field_and_what_it_must_be(name, fragments, model, tmp_path):
    path = tmp_path / "plan.json"
    tfprune.plan_channels(model, 0.5).save(path)
    path.write_text(DAMAGES[name](json.loads(path.read_text())))
    with pytest.raises(PlanError, match="is damaged") as error:
        load_plan(path)
    assert all(fragment in str(error.value) for fragment in (*fragments, "from_removed")), str(error.value)


@pytest.mark.parametrize(
    ("layer", "fragments"),
    [
        ("conv_a", ("FLOPs", "was edited", "from_removed")),
        ("logits", ("'logits'", "cannot lose", "model output", "from_removed")),
        ("branch_b", ("'stem'", "layers coupled to it", "from_removed")),
    ],
)
def test_edited_plan_tells_what_is_wrong_and_how_to_edit(layer, fragments, model):
    model = residual_cnn() if layer == "branch_b" else model
    plan = tfprune.plan_channels(model, 0.5)
    edited = dataclasses.replace(plan, keep={**plan.keep, layer: plan.keep[layer][1:]})
    with pytest.raises(PlanError) as error:
        edited.apply(model)
    assert all(fragment in str(error.value) for fragment in fragments), str(error.value)


def test_plan_for_another_input_size_is_told():
    def made(size):
        inputs = keras.Input((size, size, 3))
        x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="conv")(inputs))
        return keras.Model(inputs, layers.Dense(2, name="head")(x))

    with pytest.raises(PlanError, match="another input size"):
        tfprune.plan_channels(made(8), 0.5).apply(made(9))


@pytest.mark.parametrize("removed", [{}, {"conv_a": []}])
def test_plan_that_removes_nothing_says_so(model, removed):
    assert str(ChannelPlan.from_removed(model, removed)).endswith("note: removes nothing")


@pytest.mark.parametrize(
    "use",
    [
        lambda model: load_plan(None),
        lambda model: load_plan(b"plan.json"),
        lambda model: ChannelPlan.from_removed(model, {}).save(None),
    ],
)
def test_what_is_no_path_is_told(model, use):
    with pytest.raises(PlanError, match=r"path=.* must be a path"):
        use(model)


@pytest.mark.parametrize("options", [{"bypass": ["x"]}, {"bypass": {1: 0}}, {"views": 3}, {"views": [None]}], ids=str)
def test_views_and_bypass_of_another_form_are_told(model, options):
    with pytest.raises(PlanError, match=r"(bypass|views)=.* must be a"):
        ChannelPlan.from_removed(model, {}, **options)


def test_missing_and_binary_plan_files_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"Cannot read the plan .*nowhere\.json.*No such file"):
        load_plan(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match="Cannot read"):
        load_plan(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="is no plan"):
        load_plan(tmp_path / "binary")


APPLY = """
import sys, json, keras, numpy, tfprune
folder = sys.argv[1]
model = keras.models.load_model(folder + "/model.keras")
small = tfprune.load_plan(folder + "/plan.json").apply(model)
fresh = tfprune.load_plan(folder + "/plan.json").apply(model, weights="fresh", seed=4)
for name, made in (("small", small), ("fresh", fresh)):
    numpy.savez(f"{folder}/{name}.npz", *[weight.numpy() for weight in made.weights])
json.dump(small.get_config(), open(folder + "/config.json", "w"))
"""


@pytest.mark.slow
def test_plan_applied_in_another_process_gives_the_identical_network(tmp_path):
    model = randomize(build_model("resnet20", (32, 32, 3), 10, 0.25))
    plan = tfprune.plan_channels(model, 0.4)
    model.save(tmp_path / "model.keras")
    plan.save(tmp_path / "plan.json")
    small, fresh = plan.apply(model), plan.apply(model, weights="fresh", seed=4)
    keras.utils.set_random_seed(999)  # nothing may depend on the state of a process
    subprocess.run([sys.executable, "-c", APPLY, str(tmp_path)], check=True, capture_output=True)
    for name, here in (("small", small), ("fresh", fresh)):
        there = np.load(tmp_path / f"{name}.npz")
        assert len(there.files) == len(here.weights)
        for index, weight in enumerate(here.weights):
            assert np.array_equal(there[f"arr_{index}"], weight.numpy()), weight.path
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(small.get_config()))


def test_one_plan_after_another_equals_their_union(model):
    first = ChannelPlan.from_removed(model, {"conv_a": [1, 4], "conv_b": [0]})
    small = first.apply(model)
    # What was channel 5 of conv_a is now channel 3; channel 9 of conv_b is now 8.
    twice = ChannelPlan.from_removed(small, {"conv_a": [3], "conv_b": [8], "fc": [7]}).apply(small)
    union = ChannelPlan.from_removed(model, {"conv_a": [1, 4, 5], "conv_b": [0, 9], "fc": [7]}).apply(model)
    one, other = weights_by_path(twice), weights_by_path(union)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[path], other[path]) for path in one)
    assert np.array_equal(predict(twice, images(model))[0], predict(union, images(model))[0])


# One plan for two.


def two_plans(model, first, second):
    one = ChannelPlan.from_removed(model, first)
    return one, ChannelPlan.from_removed(one.apply(model), second)


def test_one_plan_after_another_is_one_plan():
    model = residual_cnn()
    randomize(model)
    one, second = two_plans(model, {"branch_a": [0, 3], "stem": [1]}, {"branch_a": [1], "stem": [0, 6]})
    both = one.then(model, second)
    # Of branch_a 1, 2, 4, 5 are left, of the stream all but 1; places 1, and 0 and 6, of these go.
    assert both.keep["branch_a"] == (1, 4, 5)
    assert both.keep["stem"] == both.keep["branch_b"] == (2, 3, 4, 5, 6)
    at_once, in_two = weights_by_path(both.apply(model)), weights_by_path(second.apply(one.apply(model)))
    assert at_once.keys() == in_two.keys()
    for path, value in at_once.items():
        np.testing.assert_array_equal(value, in_two[path])
    assert both.params == (one.params[0], second.params[1])


def test_what_is_in_a_removed_block_stays_removed():
    model = build_model("resnet20", (32, 32, 3), 10, 0.5)
    randomize(model)
    one = ChannelPlan.from_removed(model, {}, bypass={"add_3": 1})
    small = one.apply(model)
    second = tfprune.plan_channels(small, 0.3)
    both = one.then(model, second)
    assert both.flops == (one.flops[0], second.flops[1])
    x = images(model)
    assert relative_error(predict(second.apply(small), x), predict(both.apply(model), x)) <= 1e-5


def test_plans_with_views_are_not_put_together():
    model = build_model("preresnet56", (32, 32, 3), 10, 0.25)
    plan = METHODS.get("network_slimming").plan(model, MethodSettings(ratio=0.3))
    with pytest.raises(PlanError, match="views"):
        plan.then(model, tfprune.plan_channels(plan.apply(model), 0.3))


def test_a_second_plan_for_another_network_names_the_layer(model):
    _, second = two_plans(model, {"conv_a": [0]}, {"conv_a": [0]})
    with pytest.raises(PlanError, match="'conv_a' the first one leaves 4 channels, the second one begins with 5"):
        ChannelPlan.from_removed(model, {"conv_a": [0, 1]}).then(model, second)
