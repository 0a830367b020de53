"""A method and a network that are registered from outside of the package, as a user's script would."""

import csv
import re
from contextlib import contextmanager

import keras
import pytest
from absl import flags
from keras import layers

from tfprune.errors import UsageError
from tfprune.experiments.reporting.writing import write_report
from tfprune.experiments.run import main
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.methods import METHODS, Option
from tfprune.methods.base import Decision, Method, MethodSettings
from tfprune.models import MODELS, build_model
from tfprune.planning.channels import plan_channels


class Gentle(Method):
    """The widest channels stay; a part of the ratio goes."""

    def plan(self, model, settings):
        return plan_channels(model, settings.ratio / settings.option("gentleness"), criterion="l2")


@contextmanager
def registered(registry, name, *what, **traits):
    registry.add(name, *what, **traits)
    try:
        yield name
    finally:
        registry.remove(name)


def the_method():
    divisor = Option("gentleness", "What gentle divides its ratio by. Default: 1.", default=1.0, least=1.0)
    return registered(METHODS, "gentle", Gentle(), [divisor], in_rounds=True)


@pytest.fixture
def gentle():
    with the_method() as name:
        yield name


def small(name, input_shape, classes, width):
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(int(32 * width), 3, strides=4, name="first")(inputs)
    x = layers.Conv2D(int(64 * width), 3, strides=2, activation="relu", name="second")(x)
    return keras.Model(inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)), name=name)


@pytest.fixture
def network():
    with registered(MODELS, "small", small) as name:
        yield name


def resolved(*argv):
    values = flags.FlagValues()
    define_flags(values)
    values(["run", "--dry_run", *argv])
    return settings_from_flags(values)


def rows(workdir):
    with (workdir / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_method_and_a_network_from_outside_run_from_end_to_end(network, tmp_path, capsys):
    argv = ["--smoke", "--model=small", "--method=gentle,uniform", "--ratio=.5", "--gentleness=2", "--noexport"]
    with the_method():
        assert main([*argv, f"--workdir={tmp_path}"]) == 0
        capsys.readouterr()
        assert main([*argv, "--dry_run", f"--workdir={tmp_path}"]) == 0  # what was run is found again
        assert "0 trainings left" in capsys.readouterr().out
    found = {(row["method"], row["setting"], row["regime"]): row for row in rows(tmp_path)}
    kept = {("gentle", "gentleness=2 ratio=0.5"): (6, 12), ("uniform", "ratio=0.5"): (4, 8)}  # of a quarter of 32, 64
    regimes = ("unpruned", "pruned", "finetune", "scratch_e", "scratch_b")
    assert set(found) == {(*setting, regime) for setting in kept for regime in regimes}
    assert {(row["model"], row["width"]) for row in found.values()} == {("small", "0.25")}
    for setting, (first, second) in kept.items():
        params = 10 * first + (9 * first + 1) * second + (second + 1) * 10
        assert int(found[*setting, "scratch_e"]["params"]) == params
    told = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(text in told for text in ("gentle", "gentleness=2 ratio=0.5", "small"))
    (tmp_path / "report.md").unlink()
    write_report(tmp_path)  # where neither is registered any more
    assert "gentleness=2 ratio=0.5" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_help_and_errors_know_a_method_from_outside(gentle, capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "guided, gentle. (default: network_slimming)" in text
    assert "--gentleness: What gentle divides its ratio by. Default: 1." in text
    assert "winning_ticket and l1_norm, magnitude, uniform, random, gentle." in text
    for argv, told in (
        (["--method=gentel"], "Did you mean 'gentle'? Valid names: l1_norm, "),
        (["--method=gentle", "--gentleness=.5"], "--gentleness=0.5 must be 1 or more."),
        (["--method=uniform", "--gentleness=2"], "--gentleness belongs to --method=gentle; received --method=uniform."),
        (["--method=gentle", "--macs=.5"], "--macs goes with network_slimming, uniform, random; received"),
        (["--method=gentle", "--skip=a"], "--skip goes with a --ratio of l1_norm, network_slimming, magnitude"),
    ):
        assert main([*argv, "--smoke"]) == 2
        assert told in capsys.readouterr().err


def test_a_setting_tells_the_options_that_are_not_the_defaults(gentle):
    for argv, name in ((["--gentleness=1"], "ratio=0.5"), (["--gentleness=1.5"], "gentleness=1.5 ratio=0.5")):
        (settings,) = resolved("--method=gentle", *argv)
        assert settings.name == name
        assert len({settings, *resolved("--method=gentle", *argv)}) == 1  # settings are keys
    others = resolved("--method=gentle", "--rounds=2", "--regimes=winning_ticket")
    assert [settings.name for settings in others] == ["ratio=0.5", "ratio=0.5 round=2"]


def test_trainings_of_a_method_from_outside_are_not_mixed_up(gentle):
    class Trained(Gentle):
        trains_sparse = True

    def key(*argv):
        return Trained().sparse_key(MethodSettings.of(resolved("--method=gentle", *argv)[-1], 0))

    every = [(), ("--ratio=.3",), ("--gentleness=2",), ("--gentleness=3",)]
    assert len({key(*argv) for argv in every}) == len(every)
    assert key() == key("--rounds=2", "--regimes=winning_ticket")  # rounds prune what one training has made
    assert Gentle().sparse_key(MethodSettings.of(resolved("--method=gentle")[0], 0)) == ""


def test_an_option_that_the_name_hides_is_told_to_the_training():
    with registered(METHODS, "secret", Gentle(), [Option("hidden", "", kind=int, default=0, shown="training")]):
        plain, other = (resolved("--method=secret", f"--hidden={value}")[0] for value in (0, 1))
        assert (plain.name, other.name) == ("ratio=0.5", "ratio=0.5")
        assert (plain.asked, other.asked) == ("secret ratio=0.5", "secret ratio=0.5 hidden=1")


def test_names_and_flags_are_given_once(gentle, network):
    with pytest.raises(ValueError, match="method 'gentle' is registered twice"):
        METHODS.add("gentle", Gentle())
    with pytest.raises(ValueError, match="--gentleness is registered twice: for gentle and other"):
        METHODS.add("other", Gentle(), [Option("gentleness", "")])
    with pytest.raises(ValueError, match="model 'small' is registered twice"):
        MODELS.add("small", small)
    assert "other" not in METHODS.names()
    with (
        registered(METHODS, "other", Gentle(), [Option("epochs", "")]),
        pytest.raises(ValueError, match="--epochs of the method other is a flag of every study"),
    ):
        define_flags(flags.FlagValues())


def test_help_and_errors_know_a_network_from_outside(network, capsys):
    assert main(["--help"]) == 0
    assert "imagenet_resnext50, small, a keras.applications name" in capsys.readouterr().out
    assert main(["--model=smal", "--smoke"]) == 2
    assert "Did you mean 'small'?" in capsys.readouterr().err
    assert build_model("small", (32, 32, 3), 7, 0.5).output_shape == (None, 7)


def test_what_is_taken_out_is_unknown_again():
    with registered(METHODS, "gone", Gentle(), [Option("gone_too", "")]):
        assert METHODS.owner("gone_too") == "gone"
    assert METHODS.owner("gone_too") is None
    for registry, name in ((METHODS, "gone"), (MODELS, "small")):
        with pytest.raises(UsageError, match="Unknown"):
            registry.get(name)
        with pytest.raises(UsageError, match="Unknown"):
            registry.remove(name)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"name": "--dashes"}, "without dashes"),
        ({"kind": "float"}, "kind='float'; valid: float, int, str, bool"),
        ({"shown": "nope"}, "shown='nope'; valid: flag, value, training, fresh"),
        ({"kind": str, "valid": ("x", "y"), "default": "z"}, "default 'z'"),
        ({"name": "help"}, "'help' is a flag of every command"),
        ({"kind": float, "default": "1"}, "default '1' of the option 'mine' is no float"),
        ({"kind": int, "default": True}, "default True of the option 'mine' is no int"),
        ({"excludes": ("macs",)}, "with 'macs'; valid: rounds, skip, variant"),
        ({"help": None}, "has help=None, which is no text"),
        ({"decides": 7}, "has decides=7, which is no text"),
        ({"usual": 5}, "has usual=5, which is no function"),
        ({"kind": str, "valid": "abc"}, "has valid='abc'; give the values in a tuple"),
        ({"kind": str, "least": 3}, "has least=3, which is for numbers"),
        ({"default": 1.0, "least": 2.0}, "The default 1.0 of the option 'mine' is below 2.0"),
    ],
)
def test_an_option_is_checked_when_it_is_declared(declared, told):
    with pytest.raises(ValueError, match=told):
        Option(**{"name": "mine", "help": "", **declared})


def test_a_training_that_is_not_there_cannot_tell_an_option(network, capsys):
    options = [Option("hidden", "", kind=int, default=0, shown="training")]
    with registered(METHODS, "secret", Gentle(), options):
        assert main(["--smoke", "--dry_run", "--model=small", "--method=secret"]) == 2
    assert "--hidden of secret is declared with shown='training'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("added", "told"),
    [
        (("a,b", Gentle()), "letters, digits, _ and -, a letter first; received 'a,b'"),
        ((3, Gentle()), "received 3"),
        (("mine", None), "'package.module:attribute', or the thing itself; received None"),
        (("mine", "no_colon"), "received 'no_colon'"),
        (("mine", Gentle(), [Option("one", ""), Option("one", "")]), "--one is registered twice: for mine and mine"),
        (("mine", Gentle(), Option("one", "")), "must be a list of Option; received Option"),
        (("mine", Gentle(), ["one"]), "must be a list of Option; received \\['one'\\]"),
    ],
)
def test_what_is_registered_is_checked(added, told):
    with pytest.raises(ValueError, match=told):
        METHODS.add(*added)
    assert METHODS.names()[-1] != "mine"


def test_a_trait_that_no_method_has_is_told():
    with pytest.raises(ValueError, match="'mine' has no trait 'in_round'; valid: check, control, counts,"):
        METHODS.add("mine", Gentle(), in_round=True)


def test_a_network_of_keras_applications_is_not_replaced():
    with pytest.raises(ValueError, match="The model 'ResNet50' exists already"):
        MODELS.add("ResNet50", small)


@pytest.mark.parametrize("target", ["no_such_module:mine", "keras:no_such_name"])
def test_a_target_that_cannot_be_imported_is_told(target):
    with (
        registered(MODELS, "far", target),
        pytest.raises(UsageError, match=f"'far' is registered as '{target}', which cannot be imported: .*no_such"),
    ):
        build_model("far", (32, 32, 1), 10)


def saying(**functions):
    return type("Odd", (Gentle,), functions)()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Gentle, "must be registered as an instance of a subclass of tfprune.methods.base.Method; received <class"),
        (Method(), "needs a plan"),
        (saying(plan=lambda self, *given: None), "Odd.plan must return a plan; it returned None"),
        (saying(plan=lambda self, *given: Decision(None)), "Odd.plan must return a plan; it returned Decision"),
        (saying(expected=lambda self, *given: None), "Odd.expected must return a plan and a bool; it returned None"),
        (saying(plan=lambda self, model, asked: asked.option("nope")), "Unknown option of a method 'nope'"),
        (saying(decide=lambda self, *given: None), "Odd.decide must return a Decision"),
        (saying(decide=lambda self, *given: Decision(None)), "Odd.decide must return a plan; it returned None"),
        (
            saying(decide=lambda self, model, asked, _: Decision(self.plan(model, asked), model.get_weights()[1:])),
            "Odd.decide must return weights like those of model.get_weights\\(\\), 6 arrays; it returned 5",
        ),
    ],
)
def test_a_method_from_outside_that_is_none_is_told(network, method, told, tmp_path, capsys):
    argv = ["--smoke", "--model=small", "--method=odd", "--ratio=.5", "--noexport", f"--workdir={tmp_path}"]
    with registered(METHODS, "odd", method, [Option("gentleness", "", default=1.0)]):
        assert main(argv) == 2
    assert re.search(told, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("builder", "told"),
    [(lambda *asked: None, "must return a functional keras.Model; it returned None"),
     (lambda name, shape, classes, width: small(name, shape, classes + 3, width), "the data set needs"),
     (lambda name, shape: None, r"must be a function of \(name, input_shape, classes, width\); received <function"),
     (3, r"must be a function of .*; received 3"),
     (lambda *asked: {}["x"], r"cannot be made for images of \(32, 32, 1\): KeyError: 'x'")],
)  # fmt: skip
def test_a_network_from_outside_that_does_not_fit_is_told(builder, told):
    with registered(MODELS, "odd", builder), pytest.raises(UsageError, match=told):
        build_model("odd", (32, 32, 1), 10)
