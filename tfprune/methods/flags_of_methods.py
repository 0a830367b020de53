"""The catalogue of pruning methods: an entry for each, with the flags that are its own.

What can be said in an entry is in `tfprune.methods.catalog`. Nothing here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfprune.engines.names import ENGINE_NAMES
from tfprune.errors import UsageError
from tfprune.methods.catalog import GUIDED, WEIGHTS, Case, Catalog, Option

ROUNDINGS = ("1", "2", "4", "8", "16", "32", "64")
GATES = ("blocks", "neurons", "groups")  # what sparse_structure_selection gates

METHODS = Catalog()

# Of networks other than VGG on CIFAR the paper takes a tenth of the penalty.
_A_TENTH_OF_GAMMA_L1 = (
    *("preresnet56", "preresnet110", "preresnet164", "densenet40", "densenet_bc100", "imagenet_vgg11_bn"),
)
# By what the penalty is divided for gates on neurons or groups, which get less gradient than those on blocks.
_FINE_GATES = 20


def _usual_gamma_l1(case: Case) -> float:
    # In a study of minutes 560 steps are too few for the paper's penalty to move any gamma (the paper trains for
    # 125,000), so the penalty is ten times as strong; so is that on gates, which closes some of them.
    strength = 1e-3 if case.recipe == "minutes" else 1e-4
    return strength / 10 if case.model in _A_TENTH_OF_GAMMA_L1 else strength


def _usual_gate_l1(case: Case) -> float:
    strength = 1e-1 if case.recipe == "minutes" else 1e-2  # its authors' for ResNet-50
    return strength if case.options["gates"] == "blocks" else strength / _FINE_GATES


def _check_magnitude(options: Mapping[str, Any], ratio: float | None) -> None:
    if options["pattern"] != "2:4":
        return
    if ratio != 0.5:
        raise UsageError(f"--pattern=2:4 removes half of the weights; received --ratio={ratio:g}. Leave it out.")
    if options["schedule"]:
        raise UsageError(f"--pattern=2:4 is made at once; it does not go with --schedule={options['schedule']}.")


def _add(name: str, options: Sequence[Option] = (), **traits: Any) -> None:
    METHODS.add(name, f"tfprune.methods.{name}:METHOD", options, **traits)


_add("l1_norm", in_rounds=True, skips=True)
_add("thinet")
_add("regression")
_add(
    "network_slimming",
    [
        Option(
            "gamma_l1",
            "L1 penalty on gamma in network_slimming. Default: 1e-4, or 1e-3 on fashion_mini; a tenth of it for "
            f"{', '.join(_A_TENTH_OF_GAMMA_L1)}.",
            default=1e-4,
            usual=_usual_gamma_l1,
            least=0.0,
            shown="training",
        )
    ],
    takes_macs=True,
    skips=True,
    searched=True,
)
_add(
    "sparse_structure_selection",
    [
        Option(
            "gates",
            "What sparse_structure_selection gates and removes: residual blocks, neurons (channels that no other layer "
            "makes), or groups of grouped convolutions, as in imagenet_resnext50. One of "
            f"{', '.join(GATES)}. Default: {GATES[0]}.",
            kind=str,
            default=GATES[0],
            valid=GATES,
            excludes=("variant",),
        ),
        Option(
            "gate_l1",
            "L1 on the gates in sparse_structure_selection. Default: 0.01; 0.1 on fashion_mini; a twentieth of it for "
            "neurons and groups.",
            default=1e-2,
            usual=_usual_gate_l1,
            least=0.0,
            shown="training",
            decides="of what is gated that whose gates are zero",
            smoke_least=2.0,
        ),
    ],
    counts="what --gates names",
    proximal=True,
    # On ImageNet as its authors' code has it.
    recipes={"imagenet": {"epochs": 100, "batch_size": 128, "drops": "sss", "nesterov": True}},
)
_add(
    "soft_filter",
    [
        Option(
            "pretrained",
            "Start soft_filter from the trained network, at a tenth of the learning rate.",
            kind=bool,
            default=False,
        )
    ],
    recipes={
        "cifar": {"epochs": 200, "batch_size": 128, "drops": "soft_filter", "weight_decay": 5e-4, "nesterov": True}
    },
)
_add(
    "magnitude",
    [
        Option(
            "schedule",
            "How magnitude prunes while the network trains: polynomial. Default: at once, after the training.",
            kind=str,
            valid=("polynomial",),
            shown="value",
            excludes=("rounds", "skip"),
        ),
        Option(
            "pattern",
            "Weights that magnitude removes together: 2:4, block. Default: single ones.",
            kind=str,
            valid=("2:4", "block"),
            shown="value",
            excludes=("rounds",),
            fixed={"2:4": 0.5},
        ),
        Option(
            "scratch_rescale",
            "Draw the new weights of scratch_e and scratch_b from N(0, sqrt(2 / n)), n the weights that magnitude "
            "leaves.",
            kind=bool,
            default=False,
            shown="fresh",
            words="rescaled initial weights",
        ),
    ],
    counts=WEIGHTS,
    in_rounds=True,
    skips=True,
    rescales=True,
    searched=True,
    check=_check_magnitude,
)
_add(
    "uniform",
    [
        Option(
            "round_to",
            "The channels that a layer keeps in uniform are rounded to multiples of this number, or of what an engine "
            f"likes: {', '.join(ENGINE_NAMES)}. Default: 1.",
            kind=str,
            default="1",
            valid=(*ROUNDINGS, *ENGINE_NAMES),
            excludes=("variant",),
        )
    ],
    in_rounds=True,
    takes_macs=True,
    skips=True,
    control=True,
)
_add("random", in_rounds=True, takes_macs=True, skips=True)
_add("uniform_sparsification", counts=WEIGHTS, skips=True, control=True)
_add(GUIDED, guided=True)
