"""The flags of a study and their help; what their values mean is `tfprune.experiments.setup.settings`.

Nothing here imports TensorFlow, so that --help is answered at once.
"""

from __future__ import annotations

from absl import flags

from tfprune.data import DATASETS, IMAGE_SIZES
from tfprune.experiments.setup.recipes import A_TENTH
from tfprune.methods import GATES, METHODS
from tfprune.models import MODELS
from tfprune.paper.variants import VARIANTS, is_design
from tfprune.training import PRECISIONS, STRATEGIES
from tfprune.training.regimes import ALL, REGIMES

PATTERNS, SCHEDULES = ("2:4", "block"), ("polynomial",)
# Methods that prune a network again that they have pruned.
IN_ROUNDS = ("l1_norm", "magnitude", "uniform", "random")
# Methods that choose the layers to prune themselves.
SKIPPING = ("l1_norm", "network_slimming", "magnitude", "uniform", "random", "uniform_sparsification")
# Methods that can be asked for MACs.
WITH_MACS = ("network_slimming", "uniform", "random")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.run` on a set of flag values."""

    def string(name, default, text):
        flags.DEFINE_string(name, default, text, flag_values=values)

    def number(name, text, kind=flags.DEFINE_float):
        kind(name, None, text, flag_values=values)

    def switch(name, default, text):
        flags.DEFINE_boolean(name, default, text, flag_values=values)

    def several(name, default, text):
        flags.DEFINE_list(name, default, text, flag_values=values)

    several("dataset", "fashion_mini", f"Data set: {', '.join(DATASETS.names())}. Like --model, --method, --ratio, "
            "--macs, --variant, --guide and --learning_rate it takes a list: every combination is run.")  # fmt: skip
    string(
        "data_dir",
        None,
        "Folder with the data set's files, for fashion_mnist, cifar10 and cifar100. For folder and imagenet it holds "
        "train/<class>/* and test/<class>/* (or val); for folder also <class>/*, of which a fifth is for testing. "
        "imagenet without it comes from tensorflow-datasets.",
    )
    number(
        "image_size",
        f"Height and width that the images of {' and '.join(IMAGE_SIZES)} get. Default: "
        f"{', '.join(f'{size} for {name}' for name, size in IMAGE_SIZES.items())}.",
        flags.DEFINE_integer,
    )
    several("model", "vgg16", f"{', '.join(MODELS.names())}, a keras.applications name, or a path ending in .keras.")
    number("width", "Width multiplier of the model's channels. Default: 1, or 0.25 on fashion_mini with no --model.")
    several("method", "network_slimming", f"Pruning method: {', '.join(METHODS.names())}.")
    several(
        "ratio",
        None,
        "Fraction of channels to remove, of weights in magnitude and uniform_sparsification, of what --gates names in "
        "sparse_structure_selection; in (0, 1). Default: 0.5, unless --macs, --variant or --guide is given; of what is "
        "gated that whose gates are zero.",
    )
    several(
        "macs", None, f"Instead of --ratio, the fraction of the MACs to keep; for {', '.join(WITH_MACS)}; in (0, 1)."
    )
    several(
        "guide",
        None,
        "Files with patterns, as tfprune.experiments.search writes them: guided makes networks to them.",
    )
    several(
        "skip",
        None,
        f"Layers that keep everything, by name or pattern: fc_*. With a --ratio of {', '.join(SKIPPING)}.",
    )
    several("variant", None, f"A predefined architecture of the paper instead of --ratio: {', '.join(VARIANTS)}.")
    number(
        "gamma_l1",
        "L1 penalty on gamma in network_slimming. Default: 1e-4, or 1e-3 on fashion_mini; a tenth of it for "
        f"{', '.join(A_TENTH['gamma_l1'])}.",
    )
    number(
        "gate_l1",
        "L1 on the gates in sparse_structure_selection. Default: 0.01; 0.1 on fashion_mini; a twentieth of it for "
        "neurons and groups.",
    )
    string(
        "gates",
        None,
        "What sparse_structure_selection gates and removes: residual blocks, neurons (channels that no other layer "
        "makes), or groups of grouped convolutions, as in imagenet_resnext50. One of "
        f"{', '.join(GATES)}. Default: {GATES[0]}.",
    )
    switch("pretrained", None, "Start soft_filter from the trained network, at a tenth of the learning rate.")
    string("pattern", None, f"Weights that magnitude removes together: {', '.join(PATTERNS)}. Default: single ones.")
    string(
        "schedule",
        None,
        f"How magnitude prunes while the network trains: {', '.join(SCHEDULES)}. Default: at once, after the training.",
    )
    switch(
        "scratch_rescale",
        None,
        "Draw the new weights of scratch_e and scratch_b from N(0, sqrt(2 / n)), n the weights that magnitude leaves.",
    )
    several("regimes", "all", f"Of {', '.join(REGIMES)}; all is {', '.join(ALL)}; without finetune for "
            f"{', '.join(filter(is_design, VARIANTS))}.")  # fmt: skip
    number(
        "rounds",
        "Prune in so many rounds, each removing --ratio of what the ones before have left from the trained winning "
        f"ticket; with --regimes=winning_ticket and {', '.join(IN_ROUNDS)}. Default: 1.",
        flags.DEFINE_integer,
    )
    number(
        "rewind_epoch",
        "Start winning_ticket from the weights after so many epochs of the training that was pruned. They are kept "
        "while that runs, so what was trained without this flag is trained again. Default: 0.",
        flags.DEFINE_integer,
    )
    several("seeds", "1", "How many seeds (3 is 0, 1, 2), or the seeds themselves: 3,7.")
    number(
        "epochs",
        "Epochs of the large model. Default: 160, in soft_filter 200 (fashion_mini: 6, imagenet: 90, or 100 in "
        "sparse_structure_selection).",
        flags.DEFINE_integer,
    )
    number(
        "finetune_epochs",
        "Epochs of fine-tuning. Default: a quarter of --epochs, or two ninths on imagenet.",
        flags.DEFINE_integer,
    )
    number(
        "batch_size",
        "Global batch size. Default: 64; 128 in soft_filter, unless on fashion_mini; 256 on imagenet, or 128 in "
        "sparse_structure_selection.",
        flags.DEFINE_integer,
    )
    several(
        "learning_rate",
        None,
        "Learning rate; x 0.1 at half and at three quarters of the epochs, or after every third on imagenet. In "
        "soft_filter x 0.2 after 30, 60 and 80 % and a first epoch at a tenth, in sparse_structure_selection on "
        "imagenet x 0.1 after 30, 60 and 90 %. "
        f"Default: 0.1, or 0.01 for {', '.join(A_TENTH['learning_rate'])}.",
    )
    number("weight_decay", "Coupled weight decay, on all parameters. Default: 1e-4, or 5e-4 in soft_filter on CIFAR.")
    switch(
        "nesterov",
        None,
        "Nesterov momentum, as the paper says. Its code, and so the default, has it in soft_filter only; the code of "
        "sparse_structure_selection on imagenet has it too.",
    )
    string(
        "budget",
        "flops",
        "What scratch_b may spend: flops, those of the large network's training; flops_plus_finetune, these and those "
        "of fine-tuning, which together is what the fine-tuned network has had; or epochs, those of the large network, "
        "where scratch_b is scratch_e, so that --regimes=all leaves it out. Of a method that trains sparse, its "
        "training is the large network's, in the same epochs; that soft_filter --pretrained comes after another one, "
        "and what pruning itself takes, is not counted.",
    )
    number("budget_cap", "The most by which Scratch-B multiplies the epochs. Default: no cap (inf), or 2 on imagenet.")
    number(
        "validation_fraction",
        "Hold out this fraction of every class's training images; best_accuracy is then the test accuracy of the epoch "
        "that does best on them. The result is the last epoch's in any case. Default: 0, and best_accuracy is the best "
        "on the test images, as the paper's code logs it.",
    )
    number("train_examples", "Use a stratified subset of so many training images.", flags.DEFINE_integer)
    string("strategy", "auto", f"Where to train: {', '.join(STRATEGIES)}.")
    string(
        "precision",
        "float32",
        f"{', '.join(PRECISIONS)}. mixed_float16 scales the loss and leaves out steps whose gradients overflow.",
    )
    switch(
        "xla",
        False,
        "Compile the training's forward and backward pass with XLA. For GPUs; on CPUs it is slower.",
    )
    string("workdir", "runs", "Folder for results; finished stages that are there are used. With --smoke: runs/smoke.")
    string(
        "shard",
        None,
        "Do a part of the seeds and settings only, i/n with i from 0 to n - 1, in a job of an array: "
        "--shard=$SLURM_ARRAY_TASK_ID/8. Jobs may share the workdir; each stage is done once.",
    )
    switch(
        "deterministic",
        False,
        "Use only operations that give the same result every time, on GPUs too, where they are slower.",
    )
    switch("export", True, "Export every regime's network of the first seed as .keras and SavedModel.")
    switch("smoke", False, "Shrink to synthetic data, one epoch and a narrow network: a check in seconds.")
    switch("dry_run", False, "Print what would be done, and stop.")
