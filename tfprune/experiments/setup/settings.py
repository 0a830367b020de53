"""The settings of a study, and the flag of each.

What the values of flags make of these is `tfprune.experiments.setup.resolving`. Nothing here imports TensorFlow, so
that --help and a wrong flag are answered at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tfprune.data import DATASETS, IMAGE_SIZES, is_own
from tfprune.engines.names import DEFAULT_FORMATS, FORMATS
from tfprune.experiments.setup.recipes import A_TENTH_OF_THE_RATE
from tfprune.methods import METHODS, Entry
from tfprune.methods.catalog import CHANNELS, WEIGHTS, Options
from tfprune.models import MODELS
from tfprune.paper.variants import VARIANTS, is_design
from tfprune.plans.patterns import Pattern
from tfprune.support.files import file_name
from tfprune.training import PRECISIONS, STRATEGIES
from tfprune.training.regimes import ALL, REGIMES, Regime

WEIGHTS_OF_LARGE = ("fresh", "trained")
OPTIMIZERS = ("auto", "model", "paper")


@dataclasses.dataclass(frozen=True)
class Flag:
    """The flag of a setting.

    Attributes:
        kind: str, int, float, bool, or list for a list of texts.
        help: What --help says; a function of nothing where this names what somebody may yet register.
        default: Of the flag; None leaves it to the recipe.
        unset: Of the setting, where neither the flag nor the recipe says anything.
        each: For a list of which every value, or combination of values, is a setting of its own: the kind of a value.
        name: Of the flag, where the setting has another name.
    """

    kind: type
    help: str | Callable[[], str]
    default: Any = None
    unset: Any = None
    each: type | None = None
    name: str | None = None


def _flag(kind: type, text: str | Callable[[], str], default: Any = None, **more: Any) -> Any:
    return dataclasses.field(metadata={"flag": Flag(kind, text, default, **more)})


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _ratio_help() -> str:
    others: dict[str, list[str]] = {WEIGHTS: []}
    for entry in METHODS.entries():
        if entry.counts != CHANNELS:
            others.setdefault(entry.counts, []).append(entry.name)
    counted = [f"of {counts} in {' and '.join(names)}" for counts, names in others.items()]
    decided = [entry.decided_by.decides for entry in METHODS.entries() if entry.decided_by]
    without = ["0.5, unless --macs, --variant or --guide is given", *decided]
    return f"Fraction of channels to remove, {_listed(counted)}; in (0, 1). Default: {'; '.join(without)}."


@dataclasses.dataclass(frozen=True)
class Settings:
    """One setting of a study, for any number of seeds and regimes; all fields are resolved.

    `guide` is the pattern itself, `options` has the values of the method's own flags, which the catalogue of methods
    declares. `drops`, when the learning rate drops, has no flag, nor has `in_memory`: that data and network are objects
    of a Python program.
    """

    dataset: str = _flag(
        list,
        lambda: (
            f"Data set: {_listed(DATASETS.names())}, or a function as package.module:name, which gives (train, test), "
            "as arrays (x, y) or datasets. Like --model, --method, --ratio, --macs, --variant, --guide and "
            "--learning_rate it takes a list: every combination is run."
        ),
        "fashion_mini",
        each=str,
    )
    data_dir: str | None = _flag(
        str,
        "Folder with the data set's files, for fashion_mnist, cifar10 and cifar100. For npz the .npz file with the "
        "arrays x_train, y_train, x_test and y_test, of any shape; for a function what it is called with, if anything. "
        "For folder and imagenet it holds "
        "train/<class>/* and test/<class>/* (or val); for folder also <class>/*, of which a fifth is for testing. "
        "imagenet without it comes from tensorflow-datasets.",
    )
    image_size: int | None = _flag(
        int,
        f"Height and width that the images of {' and '.join(IMAGE_SIZES)} get. Default: "
        f"{', '.join(f'{size} for {name}' for name, size in IMAGE_SIZES.items())}.",
    )
    model: str = _flag(
        list,
        lambda: f"{_listed(MODELS.names())}, a keras.applications name, or a path ending in .keras.",
        "vgg16",
        each=str,
    )
    weights: str = _flag(
        str,
        "Of the large network: fresh, it is trained here; or trained, those in the .keras file are taken as they are, "
        "and nothing large is trained. --epochs is then what scratch_e gets.",
        WEIGHTS_OF_LARGE[0],
    )
    imports: tuple[str, ...] = _flag(
        list,
        "Python modules to import first, for layers and functions in a .keras file that are no part of Keras; the "
        "current folder and PYTHONPATH are searched.",
        name="import",
    )
    loss: str | None = _flag(
        str, "A loss of Keras, for npz and functions. Default: the network's own, or cross-entropy for classes."
    )
    metrics: tuple[str, ...] = _flag(
        list, "Metrics of Keras, likewise; the verdict is about the first. Default: the network's own, or accuracy."
    )
    judged_by: str | None = _flag(str, "The metric that the verdict is about, if it is not the first one.")
    better: str | None = _flag(str, "higher or lower: which is better of that metric, where Keras does not tell.")
    optimizer: str = _flag(
        str,
        "For npz and functions: model, the optimizer and the learning rates with which the network is compiled; paper, "
        "the paper's SGD, to which --learning_rate, --weight_decay and --nesterov belong; auto, the first if there is "
        "one and none of these flags is given.",
        OPTIMIZERS[0],
    )
    width: float = _flag(
        float, "Width multiplier of the model's channels. Default: 1, or 0.25 on fashion_mini with no --model."
    )
    method: str = _flag(list, lambda: f"Pruning method: {_listed(METHODS.names())}.", "network_slimming", each=str)
    ratio: float | None = _flag(list, _ratio_help, each=float)
    macs: float | None = _flag(
        list,
        lambda: (
            "Instead of --ratio, the fraction of the MACs to keep; for "
            f"{_listed(METHODS.having('takes_macs'))}; in (0, 1)."
        ),
        each=float,
    )
    guide: Pattern | None = _flag(  # noqa: RUF009, it makes a field
        list,
        lambda: (
            "Files with patterns, as tfprune.experiments.search writes them: "
            f"{_listed(METHODS.having('guided'))} makes networks to them."
        ),
        each=str,
    )
    skip: tuple[str, ...] = _flag(
        list,
        lambda: (
            "Layers that keep everything, by name or pattern: fc_*. With a --ratio of "
            f"{_listed(METHODS.having('skips'))}."
        ),
    )
    variant: str | None = _flag(
        list, f"A predefined architecture of the paper instead of --ratio: {_listed(VARIANTS)}.", each=str
    )
    options: Options
    regimes: tuple[str, ...] = _flag(
        list,
        f"Of {_listed(REGIMES)}; all is {_listed(ALL)}; without finetune for {_listed(filter(is_design, VARIANTS))}.",
        "all",
    )
    round: int = _flag(
        int,
        lambda: (
            "Prune in so many rounds, each removing --ratio of what the ones before have left from the trained "
            f"winning ticket; with --regimes=winning_ticket and {_listed(METHODS.having('in_rounds'))}. Default: 1."
        ),
        name="rounds",
    )
    rewind_epoch: int = _flag(
        int,
        "Start winning_ticket from the weights after so many epochs of the training that was pruned. They are kept "
        "while that runs, so what was trained without this flag is trained again. Default: 0.",
        unset=0,
    )
    seeds: tuple[int, ...] = _flag(list, "How many seeds (3 is 0, 1, 2), or the seeds themselves: 3,7.", "1")
    epochs: int = _flag(
        int,
        "Epochs of the large model. Default: 160, in soft_filter 200 (fashion_mini: 6, imagenet: 90, or 100 in "
        "sparse_structure_selection; npz and functions: 40).",
    )
    finetune_epochs: int = _flag(
        int, "Epochs of fine-tuning. Default: a quarter of --epochs, or two ninths on imagenet."
    )
    batch_size: int = _flag(
        int,
        "Global batch size. Default: 64; 128 in soft_filter, unless on fashion_mini; 256 on imagenet, or 128 in "
        "sparse_structure_selection.",
    )
    learning_rate: float = _flag(
        list,
        "Learning rate; x 0.1 at half and at three quarters of the epochs, or after every third on imagenet. In "
        "soft_filter x 0.2 after 30, 60 and 80 % and a first epoch at a tenth, in sparse_structure_selection on "
        f"imagenet x 0.1 after 30, 60 and 90 %. Default: 0.1, or 0.01 for {_listed(A_TENTH_OF_THE_RATE)}.",
        each=float,
    )
    drops: str
    weight_decay: float = _flag(
        float, "Coupled weight decay, on all parameters. Default: 1e-4, or 5e-4 in soft_filter on CIFAR."
    )
    nesterov: bool = _flag(
        bool,
        "Nesterov momentum, as the paper says. Its code, and so the default, has it in soft_filter only; the code of "
        "sparse_structure_selection on imagenet has it too.",
    )
    budget: str = _flag(
        str,
        "What scratch_b may spend: flops, those of the large network's training; flops_plus_finetune, these and those "
        "of fine-tuning, which together is what the fine-tuned network has had; or epochs, those of the large network, "
        "where scratch_b is scratch_e, so that --regimes=all leaves it out. Of a method that trains sparse, its "
        "training is the large network's, in the same epochs; that soft_filter --pretrained comes after another one, "
        "and what pruning itself takes, is not counted.",
        "flops",
    )
    budget_cap: float | None = _flag(
        float, "The most by which Scratch-B multiplies the epochs. Default: no cap (inf), or 2 on imagenet."
    )
    validation_fraction: float = _flag(
        float,
        "Hold out this fraction of every class's training images; best_accuracy is then the test accuracy of the epoch "
        "that does best on them. The result is the last epoch's in any case. Default: 0, and best_accuracy is the best "
        "on the test images, as the paper's code logs it.",
        unset=0.0,
    )
    train_examples: int | None = _flag(int, "Use a stratified subset of so many training images.")
    strategy: str = _flag(str, f"Where to train: {_listed(STRATEGIES)}.", "auto")
    precision: str = _flag(
        str,
        f"{_listed(PRECISIONS)}. mixed_float16 scales the loss and leaves out steps whose gradients overflow.",
        "float32",
    )
    xla: bool = _flag(
        bool, "Compile the training's forward and backward pass with XLA. For GPUs; on CPUs it is slower.", False
    )
    workdir: Path = _flag(  # noqa: RUF009, likewise
        str, "Folder for results; finished stages that are there are used. With --smoke: runs/smoke.", "runs"
    )
    deterministic: bool = _flag(
        bool, "Use only operations that give the same result every time, on GPUs too, where they are slower.", False
    )
    export: bool = _flag(bool, "Export every regime's network of the first seed, in the files of --formats.", True)
    formats: tuple[str, ...] = _flag(
        list,
        f"The files of --export: {_listed(FORMATS)}. onnx and openvino need the extras of these names; litert_int8 is "
        "made with training examples.",
        ",".join(DEFAULT_FORMATS),
    )
    after_cut: bool = _flag(
        bool,
        "Evaluate the pruned network also with the statistics of its batch normalizations measured anew, with the "
        "means of what is removed put into biases, and with both: more rows of the regime pruned, told apart by the "
        "column budget. The regimes begin without.",
        False,
    )
    dry_run: bool = _flag(bool, "Print what would be done, and stop.", False)
    in_memory: bool = False

    @property
    def has_own_data(self) -> bool:
        """Whether the data are the user's own arrays, of any shape."""
        return self.in_memory or is_own(self.dataset)

    @property
    def is_given(self) -> bool:
        """Whether the large network comes with the weights that it is to have."""
        return self.weights == "trained"

    @property
    def entry(self) -> Entry:
        """What the catalogue says of the method."""
        return METHODS.entry(self.method)

    @property
    def name(self) -> str:
        """As the column `setting` has it: the variant, the pattern, or how much is pruned how, or the penalty."""
        if self.guide:
            return f"guide={file_name(self.guide.name)}-{self.guide.digest}"
        if self.variant:
            return self.variant
        parts = [own.text(self.options[own.name]) for own in self.entry.changed(self.options, "flag", "value")]
        if self.ratio is not None:
            parts.append(f"ratio={self.ratio:g}")
        elif self.macs is not None:
            parts.append(f"macs={self.macs:g}")
        elif decides := self.entry.decided_by:
            parts.append(decides.text(self.options[decides.name]))
        if self.skip:
            parts.append(f"skip={'+'.join(self.skip)}")
        if self.round > 1:
            parts.append(f"round={self.round}")
        return " ".join(parts)

    @property
    def asked(self) -> str:
        """The method and all that it is asked, whatever the round: what tells one setting's pruning from others'."""
        hidden = [own.text(self.options[own.name]) for own in self.entry.changed(self.options, "training")]
        return " ".join([self.method, dataclasses.replace(self, round=1).name, *hidden])

    @property
    def fresh_options(self) -> dict[str, Any]:
        """The options, with other values than the defaults, that concern the new weights of scratch_e and scratch_b."""
        return {own.name: self.options[own.name] for own in self.entry.changed(self.options, "fresh")}

    @property
    def ratios(self) -> dict[str, float] | None:
        """Layer -> fraction to remove, of the variant; None when a ratio is given."""
        return dict(VARIANTS[self.variant].ratios) if self.variant else None

    @property
    def bypass(self) -> dict[str, int] | None:
        """Addition -> the operand that it passes on alone, of the variant; None without one."""
        return dict(VARIANTS[self.variant].bypass) if self.variant else None

    @property
    def design(self) -> str | None:
        """Name of the network that the variant is; None where it is what removing channels leaves."""
        return VARIANTS[self.variant].design if self.variant else None

    @property
    def regime_list(self) -> list[Regime]:
        """The regimes to run, in the order of the paper's tables."""
        return [REGIMES[name] for name in self.regimes]
