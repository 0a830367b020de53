"""Which stages a study consists of, and what each depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tfprune.experiments.setup.settings import Settings
from tfprune.experiments.store.stage import Stage, Store
from tfprune.models import is_file
from tfprune.support.files import file_name
from tfprune.training.regimes import Regime

# Networks that compute something else than they once did under the same name: weights that an older version trained are
# of the same shapes, and would be taken for theirs without an error.
_CHANGED = dict.fromkeys(("resnet20", "resnet32", "resnet56", "resnet110"), "zero channels last")
_OF_SGD = ("learning_rate", "drops", "weight_decay", "nesterov")  # fields of a key


@dataclasses.dataclass(frozen=True)
class TrainingKey:
    """What a trained large network depends on; only what differs from these defaults is hashed."""

    dataset: str
    model: str
    seed: int
    width: float = 1.0
    train_examples: int | None = None
    epochs: int = 160
    batch_size: int = 64
    learning_rate: float = 0.1
    drops: str = "cifar"
    weight_decay: float = 1e-4
    nesterov: bool = False
    gamma_l1: float = 0.0
    sparse: str = ""
    precision: str = "float32"
    xla: bool = False
    replicas: int = 1
    image_size: int | None = None
    rewind_epoch: int = 0
    validation_fraction: float = 0.0
    content: str = ""
    weights: str = "fresh"
    loss: str = ""
    metric: str = ""
    optimizer: str = ""

    def config(self) -> dict[str, Any]:
        """The fields that differ from their defaults."""
        fields = dataclasses.fields(self)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}


class StudyStages:
    """The stages of one setting, by seed.

    Args:
        settings: The setting.
        workdir: Where the stages are; a worker's own folder under a multi-worker strategy.
        replicas: Number of replicas that share a batch; each normalizes its own part.
        trains_sparse: Whether the method trains the network that it prunes in a way of its own.
        sparse_key: What tells this way from others', beside the L1 penalty on gamma.
        content: What tells the data from other data of the same name.
        identity: Of the large network; None for what the settings name.
        words: What tells the task from that of the paper: fields of `TrainingKey`.
    """

    def __init__(
        self,
        settings: Settings,
        workdir: Path,
        replicas: int,
        trains_sparse: bool,
        sparse_key: str = "",
        content: str = "",
        identity: str | None = None,
        words: Mapping[str, str] | None = None,
    ):
        self._settings, self._replicas, self._content = settings, replicas, content
        penalty = settings.options.get("gamma_l1", 0.0)
        self._own_training = {"gamma_l1": penalty, "sparse": sparse_key} if trains_sparse else {}
        self._store = Store(workdir)
        self._is_file = settings.in_memory or is_file(settings.model)
        self._model = identity or _model_identity(settings.model)
        self._words = dict.fromkeys(("loss", "metric", "optimizer"), "") | dict(words or {})

    def large(self, seed: int, sparse: bool) -> Stage:
        """Training the large network; `sparse`: in the method's own way."""
        key = self._key(seed, self._own_training if sparse else {})
        return self._store.stage(
            "given" if self._settings.is_given else "train", self._slug("sparse" if sparse else "", seed), key.config()
        )

    def plan(self, seed: int) -> Stage:
        """Making the plan, with the rows of the unpruned and, unless it is a design, the pruned network."""
        return self._store.stage("plan", self._slug(self._settings.method, seed), self._plan_config(seed))

    def after_cut(self, seed: int) -> Stage:
        """Evaluating the pruned network after what costs no training."""
        return self._store.stage("after_cut", self._slug(self._settings.method, seed), self._plan_config(seed))

    def regime(self, seed: int, regime: Regime, epochs: int) -> Stage:
        """Training the pruned architecture in a regime for so many epochs."""
        config = {**self._plan_config(seed), "regime_epochs": epochs}
        if regime.weights == "fresh":
            config |= self._settings.fresh_options
        if regime.budget == "flops" and self._settings.budget != "flops":
            config["budget"] = self._settings.budget
        return self._store.stage(regime.name, self._slug(self._settings.method, seed), config)

    def unlike(self, seed: int) -> Iterator[str]:
        """Why finished trainings of the same network, data and seed are not taken: what differs in them."""
        wanted = self.large(seed, sparse=False)
        if wanted.done:
            return
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingKey)}
        for stage in self._store.similar(wanted):
            there, here = stage.stored_config(), {**wanted.config, **self._store.stamp(wanted.kind)}
            names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
            pairs = [(name, *(side.get(name, defaults.get(name)) for side in (there, here))) for name in names]
            yield f"{stage.name}: " + ", ".join(f"{name}={theirs} there, {ours} here" for name, theirs, ours in pairs)

    def study(self) -> str:
        """Eight hex digits that all seeds of this setting share."""
        config = {**self._plan_config(0), "seed": None}
        return hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()[:8]

    def training(self) -> str:
        """The settings of the training that are not the defaults, for people."""
        named = {"dataset", "width", "seed"} | (set() if self._is_file else {"model"})
        config = self._key(0, self._own_training).config()
        return ", ".join(f"{name}={value}" for name, value in config.items() if name not in named)

    def _plan_config(self, seed: int) -> dict[str, Any]:
        key = self._key(seed, self._own_training)
        return {**key.config(), "method": self._settings.method, "setting": self._settings.name}

    def _key(self, seed: int, own: dict[str, Any]) -> TrainingKey:
        """The key of a training; `own` is what the method has of its own."""
        shared = {field.name for field in dataclasses.fields(TrainingKey)} & set(vars(self._settings))
        same = {name: getattr(self._settings, name) for name in shared}
        given = {"model": self._model, "seed": seed, "replicas": self._replicas, "content": self._content}
        if self._words["optimizer"]:  # the paper's SGD plays no part
            same = {name: value for name, value in same.items() if name not in _OF_SGD}
        return TrainingKey(**{**same, **given, **self._words, **own})

    def _slug(self, part: str, seed: int) -> str:
        stem = Path(self._settings.model).stem
        return "-".join(filter(None, (file_name(self._settings.dataset), stem, part, f"seed{seed}")))


def _model_identity(name: str) -> str:
    """A model's name, with what has changed in it; a file is known by its content, wherever it lies."""
    if not is_file(name):
        return f"{name}:{_CHANGED[name]}" if name in _CHANGED else name
    return f"{os.path.basename(name)}:{hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16]}"
