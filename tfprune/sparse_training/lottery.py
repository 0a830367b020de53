"""Lottery tickets by one's own `fit`: `tfprune.Lottery`.

Source: Frankle & Carbin, "The Lottery Ticket Hypothesis" (ICLR 2019); rewinding to a step after the first: Frankle et
al., "Stabilizing the Lottery Ticket Hypothesis" (2019).
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.errors import UsageError
from tfprune.planning.ranking import find_masks
from tfprune.sparse_training.base import SparseMethod, kernels_to_prune, names_to_skip
from tfprune.sparse_training.held import HeldKernels
from tfprune.sparse_training.magnitude import AttachedMasks, Holding
from tfprune.support.checks import error_line, number_in, one_of, whole_number


class Lottery(SparseMethod):
    """Trains, cuts, and goes back to early weights, round by round; every `fit` is a round.

    The first `fit` trains the whole network. Each one after it begins with a cut by magnitude, and with the weights and
    the state of the optimizer of the step to go back to, its learning rate among it; the last cut is that of round
    `rounds`. A `fit` more goes on with what is there, and so does one after a `fit` that was interrupted. An optimizer
    that was compiled anew stays as it is. After k rounds 1 - (1 - sparsity) ** (k / rounds) of the weights are off.

    Args:
        sparsity: The fraction of the weights that are off after the last cut, in (0, 1).
        rounds: Number of cuts.
        rewind_to: The step of the first `fit` to go back to, counted in batches; its weights are kept in memory. Or the
            path of a file of weights (`model.save_weights`) of this network; the optimizer goes back to its first step.
        scope: `"global"` ranks the weights of all kernels together, `"layer"` those of each.
        skip: As of `Magnitude`.

    Raises:
        PlanError: For an argument out of range.
        UsageError: If there is no such file.
    """

    def __init__(
        self,
        sparsity: float,
        rounds: int = 1,
        *,
        rewind_to: int | str | Path = 0,
        scope: str = "global",
        skip: Sequence[str] = (),
    ):
        number_in("sparsity", sparsity, 0.0, 1.0)
        whole_number("rounds", rounds, 1)
        one_of("scope", scope, ("global", "layer"))
        if isinstance(rewind_to, str | Path):
            if not Path(rewind_to).is_file():
                raise UsageError(f"rewind_to={str(rewind_to)!r} is no file. Give one of model.save_weights, or a step.")
        else:
            whole_number("rewind_to", rewind_to, 0)
        self.sparsity, self.rounds, self.rewind_to = sparsity, rounds, rewind_to
        self.scope = scope
        self._skip = names_to_skip(skip)

    def attach(self, model: keras.Model, initial_step: int | None) -> Tickets:
        """Gives every kernel a mask."""
        if initial_step is not None:
            raise UsageError("Lottery counts rounds, not steps: leave initial_step out.")
        kernels = kernels_to_prune(model, self._skip)
        if not isinstance(self.rewind_to, int):
            _check_early(model, self.rewind_to)
        return Tickets(HeldKernels(model, {name: kernel.variable for name, kernel in kernels.items()}), self)

    def sparsity_after(self, cuts: int) -> float:
        """The fraction of weights that are off after so many cuts."""
        return 1.0 - (1.0 - self.sparsity) ** (cuts / self.rounds)


class Tickets(AttachedMasks):
    """The masks of rounds.

    Args:
        held: The masks.
        lottery: What is asked for.
    """

    def __init__(self, held: HeldKernels, lottery: Lottery):
        origin = {"method": "lottery", "sparsity": lottery.sparsity, "rounds": lottery.rounds, "scope": lottery.scope}
        super().__init__(held, {**origin, "rewind_to": str(lottery.rewind_to)})
        self._lottery = lottery
        self._early: list[np.ndarray] | None = None
        self._optimizer: tuple[Any, list[np.ndarray]] = None, []
        self._cuts, self._ended = 0, False
        self._go_on()

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The one that cuts and goes back."""
        return [Rewinding(self)]

    def notes(self) -> list[str]:
        """That rounds are missing, if so."""
        if self._cuts == self._lottery.rounds:
            return []
        note = f"{self._cuts} of {self._lottery.rounds} rounds were trained"
        warnings.warn(f"Only {note}: call fit once more for each.", stacklevel=4)
        return [note]

    def begin(self) -> None:
        """Begins a `fit`: with a cut, unless it is the first one, all are made, or the one before was interrupted."""
        ended, self._ended = self._ended, False
        if not ended or self._cuts == self._lottery.rounds:
            return
        if isinstance(self._lottery.rewind_to, int) and self._early is None:
            self._ended = True
            raise UsageError(
                f"The weights of step {self._lottery.rewind_to} are not known: the training before had fewer steps, "
                "was another process, or ran several steps at once (steps_per_execution). Give rewind_to a file of "
                "model.save_weights."
            )
        masks = self._masks_after(self._cuts + 1)
        self._go_back()
        self.held.set(masks)
        self._cuts += 1

    def at_step(self, step: int) -> None:
        """Keeps the weights of the step to go back to, and the optimizer with its state."""
        if self._early is not None or self._cuts or step != self._step_of_optimizer():
            return
        optimizer = self._built_optimizer()
        state = [] if optimizer is None else optimizer.variables
        self._optimizer = optimizer, [keras.ops.convert_to_numpy(variable) for variable in state]
        self._early = [keras.ops.convert_to_numpy(variable) for variable in self.model.variables]

    def end(self) -> None:
        """Ends a `fit`."""
        self._ended = True
        self.held.hold()

    def _step_of_optimizer(self) -> int:
        """The step whose state the optimizer goes back to: with weights of a file, that of a training's beginning."""
        return self._lottery.rewind_to if isinstance(self._lottery.rewind_to, int) else 0

    def _built_optimizer(self) -> keras.optimizers.Optimizer | None:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and not optimizer.built:  # Keras does that with the first update
            with self.model.distribute_strategy.scope():
                optimizer.build(self.model.trainable_variables)
        return optimizer

    def _go_back(self) -> None:
        if isinstance(self._lottery.rewind_to, int):
            for variable, value in zip(self.model.variables, self._early or [], strict=True):
                variable.assign(value)
        else:
            load_early(self.model, self._lottery.rewind_to)
        known, state = self._optimizer
        if known is not None and known is self.model.optimizer:
            for variable, value in zip(known.variables, state, strict=True):
                variable.assign(value)

    def _masks_after(self, cuts: int) -> dict[str, np.ndarray]:
        find = functools.partial(find_masks, scope=self._lottery.scope)
        return self.masks_of(lambda kernels, s: find(kernels, s)[0], self._lottery.sparsity_after(cuts))

    def _go_on(self) -> None:
        """Takes up the masks of a network whose zeros are those of a round; the next `fit` goes on with that round."""
        for cuts in range(self._lottery.rounds, 0, -1):
            masks = self._masks_after(cuts)
            if _are_zero(masks, self.held.values()):
                self._cuts = cuts
                self.held.set(masks)
                return


def _are_zero(masks: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> bool:
    alive = [name for name, value in values.items() if value.any()]
    return any(not masks[name].all() for name in alive) and not any(values[name][~masks[name]].any() for name in alive)


def load_early(model: keras.Model, path: str | Path) -> None:
    """Loads weights into a network; raises a UsageError if they do not fit it."""
    try:
        model.load_weights(path)
    except Exception as error:  # whatever Keras and h5py raise
        raise UsageError(
            f"rewind_to={str(path)!r} holds no weights of {model.name!r} ({error_line(error)[:200]}). Give a file of "
            "model.save_weights of this network."
        ) from error


def _check_early(model: keras.Model, path: str | Path) -> None:
    """Raises a UsageError if a file holds no weights of a network, which stays as it is."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *(optimizer.variables if optimizer is not None else [])]
    values = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        load_early(model, path)
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


class Rewinding(Holding):
    """Cuts and goes back where a `fit` begins."""

    _attached: Tickets

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Begins a round; raises as `Holding`, and a UsageError if the weights to go back to are not known."""
        super().on_train_begin(logs)
        self._attached.begin()
        self._before, self._step = 0, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Counts the steps."""
        self._before = self._step

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Keeps the weights of the step to go back to."""
        self._attached.at_step(self._before + batch)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts the steps."""
        self.look()
        self._step = self._before + batch + 1

    def on_train_end(self, logs: dict | None = None) -> None:
        """Ends a round."""
        self._attached.end()
