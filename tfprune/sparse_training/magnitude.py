"""Pruning by magnitude while a network trains: `tfprune.Magnitude`.

Sources: Han et al., "Learning both Weights and Connections" (NIPS 2015); Zhu & Gupta, "To prune, or not to prune"
(2017). Schedules, counts and patterns are those of TensorFlow Model Optimization. What is done otherwise on purpose:

- weights that are off are exactly zero after every batch, not only after the next forward pass, and stay off;
- step 0 counts, and the step of the final sparsity always does;
- of weights of equal magnitude as many go as shall, by position.

A count: of n weights, n - max(1, round(n * (1 - sparsity))) go, halves rounded to even, in float32.
"""

from __future__ import annotations

import bisect
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfprune.errors import PlanError, UsageError
from tfprune.planning.ranking import check_finite, off_of, patterned, rank
from tfprune.planning.weights import check_sparsity
from tfprune.plans.kernels import Kernel
from tfprune.plans.weights import WeightPlan
from tfprune.sparse_training.base import Attached, SparseMethod, kernels_to_prune, names_to_skip
from tfprune.sparse_training.held import HeldKernels
from tfprune.sparse_training.schedules import ConstantSparsity, Timetable
from tfprune.support.checks import number_in, shown, whole_number
from tfprune.surgery.masks import OTHER_CONVOLUTIONS, check_training

Ranking = Callable[[Mapping[str, np.ndarray], float], dict[str, np.ndarray]]


class Magnitude(SparseMethod):
    """Turns off the weights of least magnitude while a network trains.

    Args:
        sparsity: The final fraction of the weights that are off, in (0, 1). May be left out where the schedule tells
            it, or with `pattern="2:4"`, which turns off half.
        schedule: `PolynomialDecay`, `ConstantSparsity`, or a schedule of TFMOT's. By default all go at step 0.
        scope: `"layer"`, as in TFMOT: each kernel gets this sparsity. `"global"`: all are ranked together.
        pattern: As of `tfprune.plan_weights`: None, `"2:4"` or `"block"`.
        block_size: (rows, columns) of the blocks of `"block"`.
        skip: Names or wildcards of kernels that keep all weights, as a plan calls them, or of layers.

    Raises:
        PlanError: For an argument out of range.
        UsageError: For a schedule that is none, or that tells another sparsity.
    """

    def __init__(
        self,
        sparsity: float | None = None,
        schedule: Any = None,
        *,
        scope: str = "layer",
        pattern: str | None = None,
        block_size: tuple[int, int] = (1, 4),
        skip: Sequence[str] = (),
    ):
        if pattern == "2:4" and sparsity is None:
            sparsity = 0.5
        if sparsity is None and schedule is None:
            raise UsageError("Magnitude needs a sparsity, as Magnitude(0.8), or a schedule of TFMOT's that tells it.")
        if sparsity is not None:
            number_in("sparsity", sparsity, 0.0, 1.0)
        self.timetable = Timetable(ConstantSparsity() if schedule is None else schedule, sparsity)
        check_sparsity(self.timetable.sparsity or 0.5, scope if pattern is None else None, pattern, block_size)
        self._scope, self._pattern, self._block_size = scope, pattern, block_size
        self._skip = names_to_skip(skip)

    def attach(self, model: keras.Model, initial_step: int | None) -> AttachedMasks:
        """Gives every kernel a mask."""
        kernels = kernels_to_prune(model, self._skip)
        if self._pattern is not None:
            kernels = {name: one for name, one in kernels.items() if _has_matrix(one)}
            if not kernels:
                raise PlanError(
                    f"Nothing in {model.name!r} can have pattern={self._pattern!r}: transposed and depthwise kernels "
                    "have no matrix for it. Leave pattern out."
                )
        held = HeldKernels(model, {name: kernel.variable for name, kernel in kernels.items()})
        origin = {
            "method": "magnitude", "sparsity": self.timetable.sparsity, "scope": self._scope, "pattern": self._pattern,
            "schedule": type(self.timetable.schedule).__name__, "skip": self._skip,
        }  # fmt: skip
        return GrowingMasks(held, origin, self.timetable, self._masks_at, initial_step)

    def _masks_at(self, kernels: Mapping[str, np.ndarray], sparsity: float) -> dict[str, np.ndarray]:
        if self._pattern is not None:
            find = functools.partial(
                patterned, sparsity=sparsity, mask_pattern=self._pattern, block_size=self._block_size
            )
            return {name: find(kernel) for name, kernel in kernels.items()}
        if self._scope == "layer":
            return {name: rank([kernel], off_of(kernel.size, sparsity))[0][0] for name, kernel in kernels.items()}
        count = sum(off_of(kernel.size, sparsity) for kernel in kernels.values())
        return dict(zip(kernels, rank(list(kernels.values()), count)[0], strict=True))


def _has_matrix(kernel: Kernel) -> bool:
    """Whether a kernel has a matrix of inputs and outputs for a pattern; transposed and depthwise ones have none."""
    return not isinstance(kernel.layer, OTHER_CONVOLUTIONS) and kernel.variable.name != "depthwise_kernel"


class AttachedMasks(Attached):
    """Masks on a network.

    Args:
        held: The masks.
        origin: Told in the plan.
    """

    def __init__(self, held: HeldKernels, origin: Mapping[str, Any]):
        self.model, self.held = held.model, held
        self._origin = {key: value for key, value in origin.items() if value}

    def notes(self) -> list[str]:
        """What the plan should tell of the training."""
        return []

    def finish(self) -> tuple[WeightPlan, keras.Model]:
        """Takes the masks off; gives the plan that holds them, and the network, with its zeros."""
        self.held.hold()
        self.held.release()
        plan = WeightPlan.from_masks(self.model, self.held.arrays(), notes=self.notes(), origin=self._origin)
        return plan, self.model

    def masks_of(self, find: Ranking, sparsity: float) -> dict[str, np.ndarray]:
        """Masks for the kernels as they are. What is off ranks lowest of all."""
        arrays, kernels = self.held.arrays(), {}
        for name, value in self.held.values().items():
            kernels[name] = value = value.astype(np.promote_types(value.dtype, "float32"))
            value[arrays[name] & (value == 0)] = np.finfo(value.dtype).tiny
        check_finite(kernels)
        return {name: mask & arrays[name] for name, mask in find(kernels, sparsity).items()}


class GrowingMasks(AttachedMasks):
    """Masks that grow by a schedule.

    Args:
        held: The masks.
        origin: Told in the plan.
        timetable: The schedule.
        find: Finds masks of a sparsity.
        initial_step: Steps that were trained before; None: as the zeros and the optimizer tell.
    """

    def __init__(
        self,
        held: HeldKernels,
        origin: Mapping[str, Any],
        timetable: Timetable,
        find: Ranking,
        initial_step: int | None,
    ):
        super().__init__(held, origin)
        self._timetable, self._find = timetable, find
        self._cut = -1  # the step of the last one
        self.step = 0
        self._optimizer, self._before = getattr(self.model, "optimizer", None), 0
        if initial_step is None:
            self._find_step(batches_seen(self._optimizer))
        else:
            whole_number("initial_step", initial_step, 0)
            self.step = initial_step
            self.cut(initial_step)
        self._before = batches_seen(self._optimizer) - self.step

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """The one that counts steps and cuts."""
        return [Growing(self)]

    def notes(self) -> list[str]:
        """That the schedule has not come to its end, if so."""
        end = self._timetable.end
        if self._cut < 0:
            warnings.warn("No weight was turned off. Was fit given the callbacks of tfprune.callbacks?", stacklevel=4)
        if end is None or self._cut >= end:
            return []
        note = f"the training ended at step {self.step:,}, before the schedule's end at step {end:,}"
        warnings.warn(f"{note[0].upper()}{note[1:]}: the network is less sparse than asked for.", stacklevel=4)
        return [note]

    def cut(self, step: int) -> None:
        """Cuts if that is due at a step, or was due since the last cut."""
        due = self._timetable.latest(step, self._cut)
        if due is None:
            return
        self._cut = due
        sparsity = self._timetable.at(due)
        if sparsity > 0.0:
            self.held.set(self.masks_of(self._find, sparsity))

    def meet(self) -> None:
        """Looks, where a training or an epoch begins, whether other weights were put into the network meanwhile.

        `BackupAndRestore` and `load_weights` do that; with the weights, the optimizer gets its count of batches.
        """
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not self._optimizer:  # compiled anew; a new one begins at 0
            self._optimizer, self._before = optimizer, -self.step
        told, moved = batches_seen(optimizer) - self._before, self.held.moved()
        if moved or told > self.step:
            masks, cut, step = self.held.arrays(), self._cut, self.step
            self.held.set({name: np.ones(mask.shape, bool) for name, mask in masks.items()})
            is_other = self.go_on_from(told)
            # Other weights may know of no masks; and some loops have an optimizer count twice.
            if not is_other or (self._cut == cut and not moved):
                self._cut, self.step = cut, step
                self.held.set(masks)
        self._before = batches_seen(optimizer) - self.step

    def _find_step(self, told: int) -> None:
        """Goes on with an earlier training, if there was one, and tells where its step is known to the last cut only.

        That is so for weights without an optimizer, and for an optimizer that had counted before that training began.
        """
        if self.go_on_from(told) and self.step != told and self.step != self._timetable.end:
            warnings.warn(
                f"The zeros of {self.model.name!r} are those of the cut at step {self.step:,}, but its optimizer has "
                f"counted {told:,} batches. Going on from step {self.step:,}; if the training had come further, give "
                "tfprune.sparse its initial_step.",
                stacklevel=5,
            )

    def go_on_from(self, told: int) -> bool:
        """Finds out from the zeros of the kernels how far an earlier training has come, and takes up its masks.

        Args:
            told: The steps that the optimizer knows of; believed where the zeros agree.

        Returns:
            Whether there was one.
        """
        by_told = self._timetable.latest(told)
        dues = self._timetable.all() or [step for step in (by_told,) if step is not None]
        count = bisect.bisect_left(dues, True, key=lambda due: not self._is_done(due))
        if not count or not self._timetable.at(dues[count - 1]):
            return False
        self.step = self._cut = last = dues[count - 1]
        if by_told is not None and self._timetable.at(by_told) == self._timetable.at(last):
            self.step, self._cut = told, by_told
        self.held.set(self.masks_of(self._find, self._timetable.at(last)))
        return True

    def _is_done(self, due: int) -> bool:
        """Whether the weights are zero that a cut turns off; kernels that are all zero do not count."""
        sparsity = self._timetable.at(due)
        if not sparsity:
            return True
        values = self.held.values()
        check_finite(values)
        masks = self._find(
            {name: value.astype(np.promote_types(value.dtype, "float32")) for name, value in values.items()}, sparsity
        )
        alive = [name for name, value in values.items() if value.any()]
        return any(not masks[name].all() for name in alive) and not any(
            values[name][~masks[name]].any() for name in alive
        )


class Holding(keras.callbacks.Callback):
    """What callbacks have in common that train a network under masks.

    Args:
        attached: The masks.
    """

    def __init__(self, attached: AttachedMasks):
        super().__init__()
        self._attached = attached

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Refuses what Keras cannot train, masks or not, and a network that is another one.

        Raises:
            UsageError: If so.
        """
        check_trains(self.model, self._attached)
        check_training(self.model)
        self._looked, self._by_hand = False, False

    def look(self) -> None:
        """Looks, after the first batch of a training under masks, whether its step applies them; holds them if not.

        A step that was compiled before the masks came does not know of them, nor does one that assigns weights itself.
        """
        held = self._attached.held
        if not self._looked and held.is_on():
            self._looked, self._by_hand = True, held.moved()
            if self._by_hand:
                warnings.warn(
                    f"The training step of {held.model.name!r} does not apply the constraints of its weights: was it "
                    "compiled by tf.function before tfprune.sparse, or does it assign weights itself? Masks are held "
                    "by the callback after every batch instead, which takes longer.",
                    stacklevel=2,
                )
        if self._by_hand:
            held.hold()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Makes weights zero that another callback has given back, such as the best ones before masks grew."""
        self._attached.held.hold()


class Growing(Holding):
    """Counts the steps and cuts where that is due."""

    _attached: GrowingMasks
    _first: int | None = None  # the step with which the epoch began

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Takes up the count, after other callbacks have put weights into the network."""
        self._attached.meet()
        self._first = self._attached.step
        self._attached.cut(self._first)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Cuts before the batch.

        Raises:
            UsageError: If a loop of one's own does not tell of epochs, or of the number of the batch.
        """
        if self._first is None or batch < 0:
            raise UsageError(
                f"The callback is told of batch {batch}, without the beginning of an epoch or a number from 0 on. Call "
                "on_train_begin, on_epoch_begin(epoch), then on_train_batch_begin(batch) and on_train_batch_end(batch) "
                "for every batch, on_epoch_end(epoch), and on_train_end; keras.callbacks.CallbackList does."
            )
        self._attached.cut(self._first + batch + 1)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts. Keras calls this once for several batches, if it is compiled so; they may have gone past a cut."""
        self.look()
        self._attached.step = (self._first or 0) + batch + 1
        self._attached.cut(self._attached.step)


def check_trains(model: keras.Model, attached: Attached) -> None:
    """Raises a UsageError if callbacks are given to the training of another network."""
    if model is not attached.model:
        raise UsageError(
            f"These callbacks are of {attached.model.name!r}, and {shown(model.name)} is trained. "
            "Train what tfprune.sparse returned, with its own callbacks."
        )


def batches_seen(optimizer: Any) -> int:
    """How many batches an optimizer has seen; 0 if there is none that counts."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    # `iterations` counts updates, of which several batches may make one; this variable counts batches.
    counts = [variable for variable in getattr(inner, "variables", ()) if variable.name == "iteration"]
    return int(keras.ops.convert_to_numpy(counts[0])) if counts else 0
