import json

import pytest

from tfprune.errors import PlanError
from tfprune.plans.patterns import Pattern, load_pattern, mean_pattern

THREES = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]


@pytest.mark.parametrize(
    "pattern",
    [
        Pattern("channels", (0.5, 1.0), "mine", {"network": "vgg16", "seeds": [0, 1]}),
        Pattern("weights", [{"3x3": THREES, "1x1": [[0.5]]}, {"3": [0.1, 0.2, 0.3]}], "masks"),
    ],
)
def test_a_pattern_is_saved_and_loaded(pattern, tmp_path):
    path = tmp_path / "pattern.json"
    pattern.save(path)
    found = load_pattern(path)
    assert found == pattern
    assert (found.name, found.origin, found.digest) == (pattern.name, pattern.origin, pattern.digest)


def test_a_pattern_is_edited_by_hand(tmp_path):
    path = tmp_path / "pattern.json"
    Pattern("channels", (0.5, 1.0)).save(path)
    content = json.loads(path.read_text())
    content["stages"][0] = 0.25
    del content["origin"], content["name"]
    path.write_text(json.dumps(content))
    found = load_pattern(path)
    assert found.stages == (0.25, 1.0)
    assert found.digest != Pattern("channels", (0.5, 1.0)).digest


def test_patterns_that_keep_the_same_are_equal_whatever_they_are_called():
    one, other = Pattern("channels", [0.5, 1], "one"), Pattern("channels", (0.5, 1.0), "other")
    assert one == other
    assert hash(one) == hash(other)
    assert one != Pattern("channels", (0.5, 0.9), "one")
    assert one != Pattern("weights", [{"3x3": THREES}])


def test_the_mean_of_patterns():
    mean = mean_pattern([Pattern("channels", (0.2, 1.0)), Pattern("channels", (0.4, 0.5))], "both", {"seeds": [0, 1]})
    assert mean.stages == pytest.approx((0.3, 0.75))
    assert (mean.name, mean.origin) == ("both", {"seeds": [0, 1]})
    stages = [{"3x3": THREES, "1x1": [[0.2]]}], [{"1x1": [[0.6]], "3x3": [[0.5] * 3] * 3}]
    (found,) = mean_pattern([Pattern("weights", own) for own in stages], "both", {}).stages
    assert found["1x1"] == [[pytest.approx(0.4)]]
    assert found["3x3"][0] == pytest.approx([0.3, 0.35, 0.4])


@pytest.mark.parametrize(
    "other",
    [
        Pattern("channels", (0.4,)),
        Pattern("weights", [{"3x3": THREES}, {"3x3": THREES}]),
    ],
)
def test_patterns_of_other_stages_have_no_mean(other):
    with pytest.raises(PlanError, match="with the same stages and sizes of kernels"):
        mean_pattern([Pattern("channels", (0.2, 1.0)), other], "both", {})


@pytest.mark.parametrize(
    "stages", [(), None, 0.5, (0.0, 1.0), (1.2,), (-0.1,), ("a",), (True,), ((0.5,),), (float("nan"),)]
)
def test_what_is_no_pattern_of_channels(stages):
    with pytest.raises(PlanError, match="one fraction above 0, and at most 1, for each stage; received"):
        Pattern("channels", stages)


@pytest.mark.parametrize(
    "stage",
    [
        0.5, {}, {"3x3": 0.5}, {"3x3": [[0.5]]}, {"1x1": [[1.5]]}, {"1x1": [[float("nan")]]},
        {"2x1": [[0.5], [0.5, 0.5]]}, {1: [[0.5]]},
    ],
)  # fmt: skip
def test_what_is_no_pattern_of_weights(stage):
    with pytest.raises(PlanError, match="for each stage the probabilities, from 0 to 1, of each position"):
        Pattern("weights", [stage])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is no pattern"),
        ("[]", "is no pattern of this version"),
        ('{"format": "other"}', "its format should be 'tfprune pattern 1'"),
        ('{"format": "tfprune pattern 1"}', "has no kind and no stages"),
        ('{"format": "tfprune pattern 1", "kind": "channels", "stages": [1], "orgin": {}}', "has orgin, which"),
        ('{"format": "tfprune pattern 1", "kind": "rows", "stages": [1]}', "is one of channels, weights"),
        ('{"format": "tfprune pattern 1", "kind": "channels", "stages": [2]}', "one fraction above 0"),
        ('{"format": "tfprune pattern 1", "kind": "channels", "stages": [1], "name": 3}', "its origin a dictionary"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_pattern(content, words, tmp_path):
    path = tmp_path / "pattern.json"
    path.write_text(content)
    with pytest.raises(PlanError, match=r"pattern\.json'") as caught:
        load_pattern(path)
    assert words in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(PlanError, match=r"Cannot read the pattern .*nowhere\.json': No such file"):
        load_pattern(tmp_path / "nowhere.json")
    with pytest.raises(PlanError, match="Cannot write the pattern"):
        Pattern("channels", (0.5,)).save(tmp_path / "nowhere" / "pattern.json")
