"""What sparse training adds to a user's own `fit`, beside what TFMOT's wrapper adds to that of tf_keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import keras

from tfprune.experiments.bench.peers import Peer
from tfprune.experiments.bench.rows import COST, Row
from tfprune.experiments.bench.tfmot_fits import CLASSES, compiled, dense, fit
from tfprune.experiments.bench.timing import in_turns
from tfprune.models import build_model
from tfprune.sparse_training.around import callbacks, sparse
from tfprune.sparse_training.base import SparseMethod
from tfprune.sparse_training.channels import NetworkSlimming
from tfprune.sparse_training.magnitude import Magnitude
from tfprune.sparse_training.schedules import PolynomialDecay

GROUP = "fit"
_OURS, _THEIRS = "Keras fit", "tf_keras fit"
_SPARSITY, _FREQUENCY = 0.8, 100
_ATTEMPTS = 3
_MOST = {"fixed masks": 1.05, "gradual": 1.08, "slimming": 1.03}
_RUNS_OF_TFMOT = {"fixed masks": "masks", "gradual": "gradual"}


@dataclasses.dataclass(frozen=True)
class _Network:
    """A network, and the steps of an epoch: as many as there are from one cut to the next, or a multiple."""

    name: str
    build: Callable[[], keras.Model]
    steps: int
    batch_size: int


_NETWORKS = (
    _Network("resnet20", lambda: build_model("resnet20", (32, 32, 3), CLASSES), 100, 32),
    _Network("dense", lambda: dense(keras), 300, 128),
)


def measure(quick: bool, workdir: Path) -> Iterator[Row]:
    """Yields the rows of every network."""
    for network in _NETWORKS:
        keras.backend.clear_session()
        yield from _rows(network, rounds=2 if quick else 9)


def _rows(network: _Network, rounds: int) -> Iterator[Row]:
    steps, size = network.steps, network.batch_size
    end = steps * (1 + _ATTEMPTS * rounds)  # so that every round has its cuts
    methods: Mapping[str, SparseMethod | None] = {
        _OURS: None,
        "fixed masks": Magnitude(_SPARSITY),
        "gradual": Magnitude(_SPARSITY, PolynomialDecay(end, frequency=_FREQUENCY)),
        "slimming": NetworkSlimming(),
    }
    runs = {name: _run(network, method) for name, method in methods.items()}
    options = (network.name, steps, size, _SPARSITY, end, _FREQUENCY)
    with Peer("TFMOT", "tfmot_fits", *options, environment={"TF_USE_LEGACY_KERAS": "1"}) as peer:
        runs[_THEIRS] = lambda: peer.ask("plain")
        for name, run in _RUNS_OF_TFMOT.items():
            runs[f"TFMOT's {name}"] = lambda run=run: peer.ask(run)
        times = in_turns(runs, [_OURS, _THEIRS], rounds, attempts=_ATTEMPTS)
    for own, baseline, most in (
        *((name, _OURS, most) for name, most in _MOST.items()),
        *((f"TFMOT's {name}", _THEIRS, None) for name in _RUNS_OF_TFMOT),
    ):
        each = [f"{1e3 * times.median(name) / steps:.2f}" for name in (own, baseline)]
        value = f"{each[0]} and {each[1]} ms a step"
        yield Row.of(GROUP, times, own, baseline, COST, name=f"{network.name}, {own}", target=most, value=value)


def _run(network: _Network, method: SparseMethod | None) -> Callable[[], object]:
    model = compiled(keras, network.build())
    if method is None:
        return fit(model, network.steps, network.batch_size)
    model = sparse(model, method)
    return fit(model, network.steps, network.batch_size, callbacks(model))
