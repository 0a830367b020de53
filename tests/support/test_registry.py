import inspect
import subprocess
import sys

import pytest

import tfprune
from tfprune.errors import UsageError
from tfprune.methods import METHODS
from tfprune.models import APPLICATIONS, MODELS, build_model, check_model
from tfprune.planning.criteria import CRITERIA
from tfprune.support.registry import Registry


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_name_given_twice_is_refused_and_both_targets_are_named():
    registry = Registry("fruit")
    registry.add("apple", "a:b")
    with pytest.raises(ValueError, match=r"fruit 'apple' is registered twice: a:b and c:d"):
        registry.add("apple", "c:d")
    assert registry.names() == ("apple",)


def test_unknown_name_lists_all_names_and_the_nearest():
    registry = Registry("fruit")
    for name in ("apple", "banana", "cherry"):
        registry.add(name, "math:pi")
    with pytest.raises(UsageError) as error:
        registry.get("bananna")
    message = str(error.value)
    assert "Unknown fruit 'bananna'" in message
    assert "Did you mean 'banana'?" in message
    assert "apple, banana, cherry" in message
    with pytest.raises(UsageError) as error:
        registry.check("zzz")
    assert "Did you mean" not in str(error.value)


def test_get_imports_the_target():
    registry = Registry("number")
    registry.add("pi", "math:pi")
    assert registry.check("pi") == "pi"
    assert 3.14 < registry.get("pi") < 3.15


@pytest.mark.parametrize("registry", [MODELS, METHODS, CRITERIA])
def test_every_registered_target_exists(registry):
    assert all(registry.get(name) is not None for name in registry.names())


def test_registered_names():
    assert set(CRITERIA.names()) >= {"l1", "l2", "gamma", "random"}
    assert set(METHODS.names()) >= {"l1_norm", "network_slimming", "uniform", "random"}
    assert set(MODELS.names()) == {
        *(f"vgg{depth}{head}" for depth in (11, 16, 19) for head in ("", "_l1")),
        *("vgg16_unstructured", "vgg19_unstructured"),
        *(f"resnet{depth}" for depth in (20, 32, 56, 110)),
        *("resnet50_cifar", "preresnet56", "preresnet110", "preresnet164", "densenet40", "densenet_bc100"),
        *(f"imagenet_{name}" for name in ("vgg11_bn", "vgg16", "vgg16_bn", "resnet34", "resnet50")),
        *("imagenet_vgg_gap", "imagenet_vgg_tiny", "imagenet_resnet50_2x", "imagenet_resnext50"),
    }


def test_applications_are_exactly_the_constructors_of_keras():
    import keras

    constructors = {
        name for name, value in vars(keras.applications).items() if inspect.isfunction(value) and name[0].isupper()
    }
    assert len(constructors) > 30
    assert set(APPLICATIONS) == constructors
    assert len(set(APPLICATIONS)) == len(APPLICATIONS)


def test_importing_tfprune_and_its_registries_imports_no_framework():
    code = (
        "import sys, tfprune, tfprune.models, tfprune.methods, tfprune.paper.variants, tfprune.support.registry;"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    assert run(code).strip() == "[]"


def test_checking_a_model_name_imports_no_framework():
    code = (
        "import sys; from tfprune.models import check_model; check_model('ResNet50'); check_model('vgg16', .5);"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    assert run(code).strip() == "[]"


def test_public_names_all_resolve_and_are_listed():
    for name in tfprune.__all__:
        assert getattr(tfprune, name) is not None
    assert dir(tfprune) == sorted([*tfprune.__all__, "rules"])
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = tfprune.nonsense


def test_public_names_stay_functions_after_every_submodule_was_imported():
    code = (
        "import importlib, pkgutil, tfprune\n"
        "for module in pkgutil.walk_packages(tfprune.__path__, 'tfprune.'):\n"
        "    try:\n        importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error:\n        assert error.name == 'torch'  # of the benchmark alone\n"
        "print(*[n for n in tfprune.__all__ if n[0] != '_' and not callable(getattr(tfprune, n))], 'end')"
    )
    assert run(code).split() == ["end"]


def test_another_backend_is_refused_in_one_line():
    code = (
        "import os; os.environ['KERAS_BACKEND'] = 'jax'\n"
        "import tfprune\n"
        "try:\n    tfprune.profile\nexcept tfprune.errors.UsageError as error:\n    print(error)"
    ).replace("import tfprune\n", "import tfprune, tfprune.errors\n")
    message = run(code)
    assert "KERAS_BACKEND='jax'" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "width", "fragments"),
    [
        (
            "resnet57",
            1.0,
            ("Unknown model 'resnet57'", "Did you mean 'resnet56'?", "vgg16_l1", "MobileNetV2", ".keras"),
        ),
        ("vgg16", 0.0, ("width=0.0", "above 0")),
        ("vgg16", -1.0, ("width=-1.0", "above 0")),
        ("ResNet50", 0.5, ("width=0.5", "'ResNet50'", "vgg16")),
        ("nowhere.keras", 1.0, ("no model file 'nowhere.keras'",)),
    ],
)
def test_wrong_model_name_or_width_is_told(name, width, fragments):
    with pytest.raises(UsageError) as error:
        check_model(name, width)
    assert all(fragment in str(error.value) for fragment in fragments)
    assert "\n" not in str(error.value)


def test_model_file_is_loaded_and_must_fit_the_data(tmp_path):
    from tests.helpers import images, plain_cnn, predict

    model = plain_cnn(classes=5)
    path = str(tmp_path / "mine.keras")
    model.save(path)
    loaded = build_model(path, (8, 8, 3), 5)
    assert (predict(model, images(model))[0] == predict(loaded, images(model))[0]).all()
    with pytest.raises(UsageError, match=r"the data set needs \(8, 8, 3\) to \(7,\)"):
        build_model(path, (8, 8, 3), 7)
    with pytest.raises(UsageError, match=r"the data set needs \(9, 9, 3\) to \(5,\)"):
        build_model(path, (9, 9, 3), 5)
    (tmp_path / "junk.keras").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"junk\.keras"):
        build_model(str(tmp_path / "junk.keras"), (8, 8, 3), 5)


def test_keras_application_is_built_with_logits():
    import keras

    model = build_model("MobileNetV2", (32, 32, 3), 7)
    assert model.output_shape == (None, 7)
    assert model.layers[-1].activation is keras.activations.linear
    with pytest.raises(UsageError, match="'InceptionV3' cannot be made for images of"):
        build_model("InceptionV3", (32, 32, 3), 7)
