import gzip
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import pytest
from absl import flags
from keras import layers

from tests.commands import refused
from tfprune.errors import UsageError
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.training.regimes import REGIMES


def parse(*argv):
    values = flags.FlagValues()
    define_flags(values)
    values(["run", "--dry_run", *argv])
    (settings,) = settings_from_flags(values)
    return settings


# Defaults.


def test_no_flag_at_all_is_the_quickstart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = parse()
    assert (settings.dataset, settings.model, settings.width) == ("fashion_mini", "vgg16", 0.25)
    assert (settings.method, settings.ratio, settings.variant) == ("network_slimming", 0.5, None)
    assert settings.regimes == ("finetune", "scratch_e", "scratch_b")
    assert settings.seeds == (0,)
    assert (settings.epochs, settings.finetune_epochs, settings.batch_size) == (6, 2, 64)
    assert (settings.learning_rate, settings.weight_decay) == (0.1, 1e-4)
    assert (settings.budget_cap, settings.train_examples, settings.data_dir) == (None, None, None)
    assert (settings.strategy, settings.precision, settings.xla) == ("auto", "float32", False)
    assert settings.export
    assert settings.workdir == Path("runs")
    assert settings.name == "ratio=0.5"


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "fashion_mnist"])
def test_other_data_sets_have_the_papers_recipe(dataset):
    settings = parse(f"--dataset={dataset}")
    assert (settings.epochs, settings.width, settings.batch_size, settings.finetune_epochs) == (160, 1.0, 64, 40)
    assert (settings.learning_rate, settings.weight_decay, settings.options["gamma_l1"]) == (0.1, 1e-4, 1e-4)
    assert settings.model == "vgg16"


def test_imagenet_has_the_papers_recipe():
    settings = parse("--dataset=imagenet", "--model=ResNet50")
    assert (settings.epochs, settings.finetune_epochs, settings.batch_size) == (90, 20, 256)
    assert (settings.learning_rate, settings.drops, settings.weight_decay) == (0.1, "imagenet", 1e-4)
    assert (settings.budget_cap, settings.options["gamma_l1"], settings.image_size) == (2.0, 1e-4, 224)
    assert parse("--dataset=imagenet", "--model=imagenet_vgg11_bn").options["gamma_l1"] == pytest.approx(1e-5)
    for model in ("VGG16", "imagenet_vgg16"):  # without batch normalization
        assert parse("--dataset=imagenet", f"--model={model}").learning_rate == pytest.approx(0.01)
    assert parse("--dataset=imagenet", "--model=VGG16", "--learning_rate=.1").learning_rate == 0.1
    assert parse("--dataset=imagenet", "--epochs=10").finetune_epochs == 3
    assert parse("--dataset=imagenet", "--budget_cap=3").budget_cap == 3
    assert parse("--dataset=imagenet", "--budget_cap=inf").budget_cap is None


def test_a_folder_has_the_recipe_of_cifar_and_a_size():
    settings = parse("--dataset=folder", "--data_dir=/d")
    assert (settings.epochs, settings.width, settings.drops, settings.image_size) == (160, 1.0, "cifar", 32)
    assert parse("--dataset=folder", "--data_dir=/d", "--image_size=64").image_size == 64
    assert parse("--dataset=cifar10").image_size is None


def test_a_model_that_is_named_has_its_full_width():
    assert parse("--model=vgg16").width == 1.0
    assert parse("--model=resnet20").width == 1.0
    assert parse("--width=0.5").width == 0.5
    assert parse("--model=MobileNetV2").width == 1.0


@pytest.mark.parametrize(
    ("dataset", "method", "expected"),
    [
        ("cifar10", "soft_filter", (200, 128, 0.1, "soft_filter", 5e-4, True)),
        ("fashion_mini", "soft_filter", (6, 64, 0.1, "cifar", 1e-4, False)),
        ("imagenet", "soft_filter", (90, 256, 0.1, "imagenet", 1e-4, False)),
        ("cifar10", "sparse_structure_selection", (160, 64, 0.1, "cifar", 1e-4, False)),
        ("imagenet", "sparse_structure_selection", (100, 128, 0.1, "sss", 1e-4, True)),
    ],
)
def test_some_methods_have_a_recipe_of_their_own(dataset, method, expected):
    argv = [f"--dataset={dataset}", f"--method={method}", "--model=imagenet_resnet50"]
    settings = parse(*argv)
    fields = ("epochs", "batch_size", "learning_rate", "drops", "weight_decay", "nesterov")
    assert tuple(getattr(settings, field) for field in fields) == expected
    assert "gamma_l1" not in settings.options
    assert not parse(*argv, "--nonesterov").nesterov


def test_settings_of_methods_with_flags_of_their_own_have_names():
    assert parse("--method=soft_filter", "--pretrained", "--ratio=.3").name == "pretrained ratio=0.3"
    blocks = ["--method=sparse_structure_selection", "--model=resnet56"]
    assert (parse(*blocks).name, parse(*blocks).options["gate_l1"], parse(*blocks).ratio) == ("gate_l1=0.1", 0.1, None)
    assert parse(*blocks, "--dataset=cifar10").options["gate_l1"] == 0.01
    assert parse(*blocks, "--ratio=.3").name == "ratio=0.3"
    neurons, groups = ([*blocks, f"--gates={gates}"] for gates in ("neurons", "groups"))
    assert (parse(*neurons).name, parse(*neurons).options["gate_l1"]) == ("gates=neurons gate_l1=0.005", 0.005)
    assert (parse(*groups).name, parse(*groups).options["gate_l1"]) == ("gates=groups gate_l1=0.005", 0.005)
    assert parse(*groups, "--gate_l1=.3", "--ratio=.3").name == "gates=groups ratio=0.3"
    shape = parse("--method=sparse_structure_selection", "--model=imagenet_resnet50", "--variant=ResNet-26")
    assert (shape.name, shape.ratios, len(shape.bypass)) == ("ResNet-26", {}, 8)


@pytest.mark.parametrize(
    ("dataset", "model", "gamma_l1", "learning_rate"),
    [
        # Section 4 of the paper and its code: 1e-4 for VGG, 1e-5 for deeper networks; 0.01 without normalization.
        ("cifar10", "vgg19", 1e-4, 0.1),
        ("cifar10", "preresnet164", 1e-5, 0.1),
        ("cifar100", "densenet40", 1e-5, 0.1),
        ("cifar10", "imagenet_vgg11_bn", 1e-5, 0.1),
        ("cifar10", "imagenet_vgg16", 1e-4, 0.01),
        ("fashion_mini", "vgg16", 1e-3, 0.1),
        ("fashion_mini", "preresnet56", 1e-4, 0.1),
        ("fashion_mini", "imagenet_vgg16", 1e-3, 0.01),
        ("cifar10", "imagenet_vgg_gap", 1e-4, 0.01),
    ],
)
def test_some_networks_have_a_penalty_or_a_learning_rate_of_their_own(dataset, model, gamma_l1, learning_rate):
    settings = parse(f"--dataset={dataset}", f"--model={model}")
    assert (settings.options["gamma_l1"], settings.learning_rate) == (gamma_l1, learning_rate)
    settings = parse(f"--dataset={dataset}", f"--model={model}", "--gamma_l1=.5", "--learning_rate=.25")
    assert (settings.options["gamma_l1"], settings.learning_rate) == (0.5, 0.25)


def test_all_regimes_of_a_design_are_those_of_new_weights():
    tiny = ("--method=thinet", "--model=imagenet_vgg16", "--variant=VGG-Tiny")
    for argv, regimes in (
        ((), ("scratch_e", "scratch_b")),
        (("--regimes=all",), ("scratch_e", "scratch_b")),
        (("--regimes=scratch_b",), ("scratch_b",)),
        (("--regimes=scratch_b,scratch_e",), ("scratch_e", "scratch_b")),
    ):
        settings = parse(*tiny, *argv)
        assert settings.regimes == regimes
        assert (settings.name, settings.design, settings.learning_rate) == ("VGG-Tiny", "imagenet_vgg_tiny", 0.01)
    assert parse("--method=thinet", "--model=imagenet_vgg16", "--variant=VGG-Conv").design is None
    assert parse("--model=vgg16").design is None


def test_finetuning_takes_a_quarter_of_the_epochs_rounded_up():
    lengths = [parse(f"--epochs={epochs}").finetune_epochs for epochs in (1, 2, 4, 5, 160)]
    assert lengths == [1, 1, 1, 2, 40]
    assert parse("--epochs=10", "--finetune_epochs=7").finetune_epochs == 7


@pytest.mark.parametrize(
    ("text", "seeds"), [("5", (0, 1, 2, 3, 4)), ("1", (0,)), ("3,7", (3, 7)), ("7,3", (7, 3)), ("0,1", (0, 1))]
)
def test_seeds_are_a_number_of_them_or_a_list(text, seeds):
    assert parse(f"--seeds={text}").seeds == seeds


def test_every_flag_reaches_the_settings():
    settings = parse(
        "--dataset=cifar10", "--data_dir=/d", "--model=vgg16_l1", "--width=.75", "--method=l1_norm",
        "--variant=VGG-16-A", "--regimes=scratch_b,finetune", "--seeds=3,7", "--epochs=9", "--finetune_epochs=3",
        "--batch_size=32", "--learning_rate=.05", "--weight_decay=0", "--budget_cap=2", "--train_examples=100",
        "--strategy=mirrored", "--precision=mixed_bfloat16", "--workdir=w", "--noexport", "--nesterov", "--xla",
    )  # fmt: skip
    expected = {
        "dataset": "cifar10", "data_dir": "/d", "model": "vgg16_l1", "width": 0.75, "method": "l1_norm", "ratio": None,
        "variant": "VGG-16-A", "regimes": ("finetune", "scratch_b"), "seeds": (3, 7), "epochs": 9, "finetune_epochs": 3,
        "batch_size": 32, "learning_rate": 0.05, "weight_decay": 0.0, "budget_cap": 2.0, "train_examples": 100,
        "strategy": "mirrored", "precision": "mixed_bfloat16", "workdir": Path("w"), "export": False,
        "nesterov": True, "dry_run": True, "xla": True,
    }  # fmt: skip
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.name == "VGG-16-A"
    assert settings.ratios == {f"conv_{number}": 0.5 for number in (1, 8, 9, 10, 11, 12, 13)}
    assert settings.regime_list == [REGIMES["finetune"], REGIMES["scratch_b"]]


def test_a_flagfile_is_read(tmp_path):
    (tmp_path / "flags").write_text("--dataset=cifar10\n--model=resnet56\n--seeds=5\n", encoding="utf-8")
    settings = parse(f"--flagfile={tmp_path / 'flags'}", "--ratio=0.3")
    assert (settings.dataset, settings.model, len(settings.seeds), settings.ratio) == ("cifar10", "resnet56", 5, 0.3)
    assert settings.width == 1.0


def test_smoke_shrinks_any_command():
    settings = parse("--smoke", "--dataset=cifar100", "--data_dir=/d", "--model=resnet56", "--epochs=160", "--ratio=.3")
    assert (settings.dataset, settings.data_dir, settings.train_examples) == ("synthetic", None, None)
    assert (settings.epochs, settings.finetune_epochs, settings.budget_cap) == (1, 1, 2.0)
    assert settings.width == 0.25
    assert (settings.model, settings.ratio) == ("resnet56", 0.3)
    assert parse("--smoke", "--model=MobileNetV2").width == 1.0  # has no multiplier of ours
    settings = parse("--smoke", "--dataset=imagenet", "--image_size=160", "--data_dir=/d", "--model=ResNet50")
    assert (settings.dataset, settings.image_size, settings.data_dir) == ("synthetic", None, None)
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (1, 256, 0.1)


def test_the_workdir_is_made_unless_nothing_is_to_be_written(tmp_path):
    parse(f"--workdir={tmp_path / 'a' / 'b'}")
    assert list(tmp_path.iterdir()) == []
    parse("--nodry_run", f"--workdir={tmp_path / 'a' / 'b'}")
    assert list((tmp_path / "a" / "b").iterdir()) == []


# Mistakes that are known before TensorFlow is imported: one process for all of them, where importing it fails.

L1 = ("--method=l1_norm", "--model=vgg16_l1")
TINY = ("--method=thinet", "--model=imagenet_vgg16", "--variant=VGG-Tiny")
EARLY = {
    "data set": (["--dataset=cifar11"], ["'cifar11'", "Did you mean 'cifar10'?", "fashion_mini"]),
    "model": (["--model=resnet21"], ["'resnet21'", "Did you mean 'resnet", "vgg16", "MobileNetV2", ".keras"]),
    "application": (["--model=mobilenetv2"], ["'mobilenetv2'", "Did you mean 'MobileNetV2'?"]),
    "method": (["--method=l1norm"], ["'l1norm'", "Did you mean 'l1_norm'?", "network_slimming"]),
    "regime": (["--regimes=finetune,scratchb"], ["'scratchb'", "Did you mean 'scratch_b'?", "scratch_e", "all"]),
    "no regime": (["--regimes="], ["finetune", "all"]),
    "strategy": (["--strategy=miror"], ["'miror'", "Did you mean 'mirrored'?", "multi_worker"]),
    "precision": (["--precision=float16"], ["'float16'", "float32", "mixed_bfloat16"]),
    "variant": ([*L1, "--variant=VGG16-A"], ["'VGG16-A'", "Did you mean 'VGG-16-A'?", "ResNet-56-B"]),
    "ratio 0": (["--ratio=0"], ["--ratio=0", "(0, 1)"]),
    "ratio 1": (["--ratio=1"], ["--ratio=1", "(0, 1)"]),
    "ratio -1": (["--ratio=-1"], ["--ratio=-1", "(0, 1)"]),
    "ratio 2": (["--ratio=2"], ["--ratio=2", "(0, 1)"]),
    "ratio nan": (["--ratio=nan"], ["--ratio=nan", "(0, 1)"]),
    "ratio text": (["--ratio=half"], ["--ratio", "half"]),
    "ratio and variant": ([*L1, "--variant=VGG-16-A", "--ratio=.5"], ["--ratio=.5", "--variant=VGG-16-A"]),
    "variant of another network": (
        ["--method=l1_norm", "--model=resnet110", "--variant=ResNet-56-A"],
        ["'ResNet-56-A'", "--model=resnet56", "resnet110", "ResNet-110-A, ResNet-110-B"],
    ),
    "variant for a network without": (
        ["--method=l1_norm", "--model=vgg19", "--variant=VGG-16-A"],
        ["--model=vgg16_l1", "vgg19", "--ratio"],
    ),
    "variant of another method": (
        ["--model=vgg16_l1", "--variant=VGG-16-A"],
        ["--method=l1_norm", "network_slimming"],
    ),
    "epochs 0": (["--epochs=0"], ["--epochs=0", "at least 1"]),
    "epochs -3": (["--epochs=-3"], ["--epochs=-3", "at least 1"]),
    "epochs 1.5": (["--epochs=1.5"], ["--epochs", "1.5"]),
    "finetune epochs": (["--finetune_epochs=0"], ["--finetune_epochs=0", "at least 1"]),
    "batch size": (["--batch_size=0"], ["--batch_size=0", "at least 1"]),
    "learning rate 0": (["--learning_rate=0"], ["--learning_rate=0", "above 0"]),
    "learning rate nan": (["--learning_rate=nan"], ["--learning_rate=nan", "above 0"]),
    "weight decay": (["--weight_decay=-1e-4"], ["--weight_decay=-0.0001", "0 or more"]),
    "weight decay nan": (["--weight_decay=nan"], ["--weight_decay=nan", "0 or more"]),
    "gamma_l1": (["--gamma_l1=-1"], ["--gamma_l1=-1", "0 or more"]),
    "width 0": (["--width=0"], ["0", "above 0"]),
    "width nan": (["--width=nan"], ["nan", "above 0"]),
    "width inf": (["--width=inf"], ["inf"]),
    "width of an application": (["--model=MobileNetV2", "--width=.5"], ["0.5", "'MobileNetV2'", "resnet20"]),
    "unknown flag": (["--seed=3"], ["seed", "seeds"]),
    "seeds 0": (["--seeds=0"], ["--seeds=0", "0,1"]),
    "seeds -1": (["--seeds=-1"], ["--seeds=-1", "3,7"]),
    "seeds x": (["--seeds=x"], ["--seeds=x", "3,7"]),
    "two amounts": (
        ["--method=network_slimming", "--macs=.5,.3", "--ratio=.5"],
        ["received --ratio=.5 and --macs=.5,.3."],
    ),
    "rewinding without tickets": (
        ["--smoke", "--rewind_epoch=2", "--regimes=finetune"],
        ["--rewind_epoch=2 is of --regimes=winning_ticket"],
    ),
    "seeds twice": (["--seeds=3,3"], ["--seeds=3,3", "different"]),
    "seeds empty": (["--seeds="], ["--seeds=", "3,7"]),
    "seeds too large": (["--seeds=1,99999999999"], ["99999999999", "3,7"]),
    "more seeds than anyone runs": (["--seeds=2000000000"], ["--seeds=2000000000"]),
    "budget cap": (["--budget_cap=.5"], ["--budget_cap=0.5", "at least 1"]),
    "budget cap nan": (["--budget_cap=nan"], ["--budget_cap=nan", "at least 1"]),
    "train examples": (["--train_examples=0"], ["--train_examples=0", "at least 1"]),
    "missing model": (["--model=nowhere/net.keras"], ["'nowhere/net.keras'"]),
    "model that is a folder": (["--model=./"], ["'./'"]),
    "a folder that is not named": (["--dataset=folder"], ["--data_dir"]),
    "image size": (["--image_size=64"], ["image_size=64", "folder and imagenet", "fashion_mini"]),
    "image size 0": (["--dataset=imagenet", "--image_size=0"], ["image_size=0", "8 to 1024"]),
    "stray argument": (["vgg16"], ["'vgg16'", "--name=value"]),
    "workdir that is a file": (["--workdir=a_file"], ["'a_file'", "folder"]),
    "workdir below a file": (["--workdir=a_file/runs"], ["'a_file/runs'", "folder"]),
    "a penalty for another method": (["--method=l1_norm", "--gamma_l1=.01"], ["network_slimming", "l1_norm"]),
    "gates for another method": (["--gate_l1=.01"], ["--gate_l1", "sparse_structure_selection", "network_slimming"]),
    "a start for another method": (["--method=l1_norm", "--pretrained"], ["--pretrained", "soft_filter", "l1_norm"]),
    "gate_l1": (["--method=sparse_structure_selection", "--gate_l1=-1"], ["--gate_l1=-1", "0 or more"]),
    "gates": (
        ["--method=sparse_structure_selection", "--gates=filters"],
        ["'filters'", "blocks, neurons, groups"],
    ),
    "gates of a variant": (
        ["--method=sparse_structure_selection", "--gates=neurons", "--variant=ResNet-26", "--model=imagenet_resnet50"],
        ["--gates=neurons and --variant=ResNet-26"],
    ),
    "gates on what for another method": (["--method=l1_norm", "--gates=groups"], ["--gates belongs to", "l1_norm"]),
    "a ratio of blocks": (["--method=sparse_structure_selection", "--ratio=1"], ["--ratio=1", "(0, 1)"]),
    "a variant of blocks": (
        ["--method=sparse_structure_selection", "--variant=ResNet-41", "--model=resnet56"],
        ["'ResNet-41'", "--model=imagenet_resnet50", "resnet56"],
    ),
    "fine-tuning of a design": (
        [*TINY, "--regimes=finetune"],
        ["--regimes=finetune", "VGG-Tiny is a network of its own", "Valid: scratch_e, scratch_b, all."],
    ),
    "fine-tuning of a design too": ([*TINY, "--regimes=scratch_b,all,finetune"], ["VGG-Tiny is a network of its own"]),
    "a ticket of a design": ([*TINY, "--regimes=winning_ticket"], ["winning_ticket is of what pruning leaves"]),
    "the budget of fine-tuning for a design": (
        [*TINY, "--budget=flops_plus_finetune"],
        ["--budget=flops_plus_finetune", "VGG-Tiny is a network of its own"],
    ),
    "a design of another network": (
        ["--method=regression", "--variant=ResNet-50-2x", "--model=imagenet_vgg16"],
        ["'ResNet-50-2x'", "--model=imagenet_resnet50", "VGG-GAP, VGG-Tiny"],
    ),
    "missing flagfile": (["--flagfile=nowhere"], ["nowhere"]),
}
DRIVER = """
import contextlib, io, json, resource, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "keras"):
            raise ImportError(f"{name} was wanted")

sys.meta_path.insert(0, Absent())
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from tfprune.experiments.run import main
results = {}
for name, argv in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(argv)
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
    results[name] = [status, out.getvalue(), err.getvalue()]
print(json.dumps([results, sorted({"tensorflow", "keras"} & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    folder = tmp_path_factory.mktemp("early")
    (folder / "a_file").touch()
    commands = {name: argv for name, (argv, _) in EARLY.items()}
    commands |= {"help": ["--help"], "help too": ["--epochs=0", "-h"]}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(commands), cwd=folder, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    results, imported = json.loads(done.stdout)
    assert imported == []
    return results | {"left": sorted(path.name for path in folder.iterdir())}


def test_a_mistake_leaves_nothing_behind(early):
    assert early["left"] == ["a_file"]


@pytest.mark.parametrize("case", EARLY)
def test_a_mistake_is_told_in_one_line_before_tensorflow_is_imported(case, early):
    status, out, err = early[case]
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in EARLY[case][1]:
        assert word in err


def test_help_names_every_flag_and_needs_no_tensorflow(early):
    for case in ("help", "help too"):
        status, out, err = early[case]
        assert (status, err) == (0, "")
        names = (
            "dataset data_dir image_size model width method ratio variant regimes seeds epochs finetune_epochs "
            "batch_size learning_rate weight_decay budget_cap train_examples strategy precision xla workdir export "
            "smoke dry_run"
        )
        for name in names.split():
            assert f"--{name}:" in out
        assert "network_slimming" in out
        assert "mixed_bfloat16" in out


# Mistakes that only the data or the network show.


def save(path, *last, size=32, channels=1):
    inputs = keras.Input((size, size, channels))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    for layer in last:
        x = layer(x)
    keras.Model(inputs, x).save(path)
    return path


def test_a_missing_data_dir(capsys, tmp_path):
    for dataset in ("fashion_mnist", "cifar10", "cifar100"):
        err = refused(
            capsys, f"--dataset={dataset}", f"--data_dir={tmp_path / 'nowhere'}", f"--workdir={tmp_path / 'w'}"
        )
        assert str(tmp_path / "nowhere") in err


def test_a_truncated_data_file(capsys, tmp_path):
    whole = struct.pack(">4B3I", 0, 0, 8, 3, 10, 28, 28) + bytes(10 * 28 * 28)
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(whole[:-100])
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 10) + bytes(range(10)))
    err = refused(capsys, "--dataset=fashion_mnist", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'w'}")
    assert "train-images-idx3-ubyte.gz" in err
    assert str(10 * 28 * 28) in err


def test_a_data_dir_for_a_data_set_that_reads_none(capsys, tmp_path):
    err = refused(capsys, f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'w'}")
    assert "fashion_mini" in err
    assert str(tmp_path) in err


def test_a_number_of_training_examples_that_the_data_does_not_have(capsys, tmp_path):
    for count in (6001, 9):
        err = refused(capsys, f"--train_examples={count}", f"--workdir={tmp_path / 'w'}")
        assert str(count) in err
        assert "6000" in err


def test_a_batch_larger_than_the_data(capsys, tmp_path):
    err = refused(capsys, "--smoke", "--batch_size=257", f"--workdir={tmp_path / 'w'}")
    assert "257" in err
    assert "256" in err


@pytest.mark.parametrize("content", ["text", "empty", "zip", "zip with a config"])
def test_a_model_file_that_is_none(content, capsys, tmp_path):
    path = tmp_path / "net.keras"
    if content.startswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json" if "config" in content else "other.txt", "{}")
    else:
        path.write_text("no network" * (content == "text"), encoding="utf-8")
    err = refused(capsys, "--smoke", f"--model={path}", f"--workdir={tmp_path / 'w'}")
    assert str(path) in err


def test_a_model_file_that_does_not_fit_the_data(capsys, tmp_path):
    for path in (
        save(tmp_path / "classes.keras", layers.Dense(7)),
        save(tmp_path / "size.keras", layers.Dense(10), size=28),
        save(tmp_path / "colours.keras", layers.Dense(10), channels=3),
    ):
        err = refused(capsys, "--smoke", f"--model={path}", f"--workdir={tmp_path / 'w'}")
        assert str(path) in err
        assert "(32, 32, 1)" in err


def test_a_width_for_a_model_file(capsys, tmp_path):
    path = save(tmp_path / "net.keras", layers.Dense(10))
    err = refused(capsys, "--smoke", f"--model={path}", "--width=.5", f"--workdir={tmp_path / 'w'}")
    assert "width=0.5" in err
    assert "resnet20" in err


def test_a_model_file_with_code_in_it_is_not_run(capsys, tmp_path):
    path = save(tmp_path / "net.keras", layers.Dense(10), layers.Lambda(lambda x: x + 1))
    assert str(path) in refused(capsys, "--smoke", f"--model={path}", f"--workdir={tmp_path / 'w'}")


@pytest.mark.parametrize("member", ["../outside.txt", "/tmp/outside.txt", "assets/../../outside.txt"])
def test_a_model_file_with_a_member_that_leads_outside(capsys, tmp_path, member):
    path = save(tmp_path / "net.keras", layers.Dense(10))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, "planted")
    err = refused(capsys, "--smoke", f"--model={path}", f"--workdir={tmp_path / 'w'}")
    assert repr(member) in err
    assert not list(tmp_path.rglob("outside.txt"))


def test_a_model_file_that_is_a_pickle_is_not_unpickled(capsys, tmp_path):
    class Harmful:
        def __reduce__(self):
            return (pytest.fail, ("code in a model file was run",))

    path = tmp_path / "net.keras"
    path.write_bytes(pickle.dumps(Harmful()))
    assert str(path) in refused(capsys, "--smoke", f"--model={path}", f"--workdir={tmp_path / 'w'}")


def test_an_application_that_is_too_large_for_the_images(capsys, tmp_path):
    err = refused(capsys, "--smoke", "--model=InceptionV3", f"--workdir={tmp_path / 'w'}")
    assert "'InceptionV3'" in err
    assert "(32, 32, 1)" in err


def test_a_method_that_finds_nothing_to_prune(capsys, tmp_path):
    inputs = keras.Input((32, 32, 1))
    outputs = layers.Dense(10)(layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, outputs, name="bare").save(tmp_path / "bare.keras")
    for method in ("l1_norm", "uniform", "network_slimming"):
        err = refused(
            capsys, "--smoke", f"--model={tmp_path / 'bare.keras'}", f"--method={method}", f"--workdir={tmp_path / 'w'}"
        )
        assert "bare" in err


@pytest.mark.parametrize(
    "config",
    [
        None,
        "no json",
        "[]",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": "first"}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 5}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "master", "index": 0}}',
        '{"cluster": "a:1", "task": {"type": "worker", "index": 0}}',
    ],
)
def test_a_cluster_that_cannot_be_read(config, capsys, tmp_path, monkeypatch):
    if config is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", config)
    err = refused(capsys, "--smoke", "--strategy=multi_worker", f"--workdir={tmp_path / 'w'}")
    assert "TF_CONFIG" in err
    assert '"cluster"' in err  # an example


# Flags that take several values.


def test_every_combination_of_lists_is_a_setting(tmp_path):
    values = flags.FlagValues()
    define_flags(values)
    values(["run", "--dry_run", "--model=vgg11,resnet20", "--method=l1_norm,network_slimming", "--ratio=.3,.5",
            "--gamma_l1=0.002"])  # fmt: skip
    found = settings_from_flags(values)
    assert len(found) == 8
    assert {(one.model, one.method, one.ratio) for one in found} == {
        (model, method, ratio)
        for model in ("vgg11", "resnet20")
        for method in ("l1_norm", "network_slimming")
        for ratio in (0.3, 0.5)
    }
    # What belongs to one of the methods is for that one alone.
    assert {(one.method, *one.options.items()) for one in found} == {
        ("l1_norm",),
        ("network_slimming", ("gamma_l1", 0.002)),
    }
    assert {one.name for one in found} == {"ratio=0.3", "ratio=0.5"}


def test_rounds_are_settings_of_which_the_first_is_as_ever():
    values = flags.FlagValues()
    define_flags(values)
    values(["run", "--dry_run", "--method=magnitude", "--ratio=.2,.4", "--rounds=3", "--regimes=winning_ticket"])
    assert [one.name for one in settings_from_flags(values)] == [
        "ratio=0.2", "ratio=0.2 round=2", "ratio=0.2 round=3", "ratio=0.4", "ratio=0.4 round=2", "ratio=0.4 round=3",
    ]  # fmt: skip


def test_what_is_skipped_is_part_of_the_setting():
    settings = parse("--method=uniform", "--skip=fc_*,conv_1")
    assert (settings.skip, settings.name) == (("fc_*", "conv_1"), "ratio=0.5 skip=fc_*+conv_1")


@pytest.mark.parametrize(
    "argv", [["--method=thinet"], ["--method=l1_norm", "--model=vgg16_l1", "--variant=VGG-16-A"],
             ["--method=magnitude", "--schedule=polynomial"]]
)  # fmt: skip
def test_methods_that_do_not_choose_the_layers_cannot_skip_any(argv):
    with pytest.raises(UsageError, match="--skip goes with a --ratio of l1_norm, network_slimming"):
        parse(*argv, "--skip=conv_1")
