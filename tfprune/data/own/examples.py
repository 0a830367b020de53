"""Examples as arrays: what a user's own data become, whatever form they came in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy as np

from tfprune.data.image_data import check_train_examples, stratified_indices
from tfprune.errors import DataError

_SEED = 20190506


def leaves(structure: Any) -> list[np.ndarray]:
    """The arrays of a structure of dictionaries, lists and tuples, in their order; of None none."""
    return [array for _, array in named_leaves(structure, "")]


def named_leaves(structure: Any, name: str) -> list[tuple[str, np.ndarray]]:
    """As `leaves`, each with the name by which a message calls it: "x", "y['mask']", "x[1]"."""
    if structure is None:
        return []
    if isinstance(structure, dict):
        return [leaf for key, part in structure.items() for leaf in named_leaves(part, f"{name}[{key!r}]")]
    if isinstance(structure, (list, tuple)):
        return [leaf for place, part in enumerate(structure) for leaf in named_leaves(part, f"{name}[{place}]")]
    return [(name, structure)]


def mapped(structure: Any, function: Any) -> Any:
    """A structure with every array replaced by what a function makes of it; None stays."""
    if structure is None:
        return None
    if isinstance(structure, dict):
        return {key: mapped(part, function) for key, part in structure.items()}
    if isinstance(structure, (list, tuple)):
        parts = [mapped(part, function) for part in structure]
        return parts if isinstance(structure, list) else tuple(parts)
    return function(structure)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Examples of one split; structures are arrays, or dictionaries, lists and tuples of them.

    Attributes:
        inputs: Structure of arrays (n, ...).
        targets: Structure of arrays (n, ...).
        weights: Structure of arrays (n, ...), by which the losses of examples are multiplied; None for none.
    """

    inputs: Any
    targets: Any
    weights: Any = None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(leaves(self.inputs)[0])

    def named(self) -> list[tuple[str, np.ndarray]]:
        """All arrays, with the names by which messages call them."""
        parts = (("x", self.inputs), ("y", self.targets), ("sample_weight", self.weights))
        return [leaf for name, part in parts for leaf in named_leaves(part, name)]

    def take(self, rows: np.ndarray) -> Examples:
        """Some of the examples."""
        parts = (self.inputs, self.targets, self.weights)
        return Examples(*(mapped(part, lambda array: array[rows]) for part in parts))

    def classes(self) -> np.ndarray | None:
        """Int (n,): the class of every example, where there is one whole number from 0 for each; else None."""
        arrays = leaves(self.targets)
        if len(arrays) != 1 or arrays[0].dtype.kind not in "iub" or arrays[0].size != len(arrays[0]):
            return None
        labels = arrays[0].reshape(-1).astype(np.int64)
        return labels if labels.min() >= 0 and labels.max() < 2**31 else None

    def digest(self, into: hashlib._Hash) -> None:
        """Adds names, shapes, dtypes and values to a digest."""
        for name, array in self.named():
            into.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            into.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnData:
    """A user's own training and test examples.

    Attributes:
        name: As results call the data.
        train: Training examples.
        test: Test examples.
        content: Digest of all of it; results of other content are not reused.
        note: What a user should know about them.
        validation: Training examples that are held out; None without such.
    """

    name: str
    train: Examples
    test: Examples
    content: str = ""
    note: str = ""
    validation: Examples | None = None

    @classmethod
    def of(cls, name: str, train: Examples, test: Examples) -> OwnData:
        """The data of two splits, with their digest."""
        digest = hashlib.sha256()
        for split in (train, test):
            digest.update(b"\0split\0")
            split.digest(digest)
        return cls(name, train, test, digest.hexdigest()[:16])

    @property
    def train_count(self) -> int:
        """Number of training examples."""
        return self.train.count

    @property
    def test_count(self) -> int:
        """Number of test examples."""
        return self.test.count

    @property
    def num_classes(self) -> int | None:
        """Number of classes, where every example has one; else None."""
        labels = self.train.classes()
        return None if labels is None else int(labels.max()) + 1

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one example, where its input is a single array; else None."""
        arrays = leaves(self.train.inputs)
        return tuple(arrays[0].shape[1:]) if len(arrays) == 1 else None

    def described(self) -> str:
        """In words: "900 training and 100 test examples of x (8,) and y ()"."""
        shapes = " and ".join(f"{name} {array.shape[1:]}" for name, array in self.train.named())
        return f"{self.train_count:,} training and {self.test_count:,} test examples of {shapes}"

    def subset(self, train_examples: int) -> OwnData:
        """The same data with fewer training examples: equally many of each class, where there are classes.

        Raises:
            DataError: If there are not so many, or fewer than classes.
        """
        labels = self.train.classes()
        classes = 1 if labels is None else len(np.unique(labels))
        check_train_examples(self.name, train_examples, classes, self.train_count)
        return dataclasses.replace(self, train=self.train.take(self._chosen(train_examples)))

    def holding_out(self, fraction: float) -> OwnData:
        """The same data with a part of the training examples, drawn once and for all, held out for validation.

        Args:
            fraction: Of the training examples, in (0, 1); rounded down.

        Raises:
            DataError: If none would be held out, or none left.
        """
        count = int(self.train_count * fraction + 1e-9)
        if not 0 < count < self.train_count:
            raise DataError(
                f"validation_fraction={fraction:g} of the {self.train_count} training examples of {self.name} is "
                f"{count}: give a fraction that leaves one to hold out and one to train on."
            )
        held = np.zeros(self.train_count, bool)
        held[self._chosen(count)] = True
        note = "; ".join(filter(None, (self.note, f"{count:,} training examples are held out")))
        train, validation = self.train.take(~held), self.train.take(held)
        return dataclasses.replace(self, train=train, validation=validation, note=note)

    def normalized_sample(self, count: int) -> tuple[Any, Any]:
        """Training examples as the network sees them, always the same, equally many of each class if there are any.

        Args:
            count: How many; all if there are fewer.

        Returns:
            Inputs and targets, as they were given.
        """
        sample = self.train.take(self._chosen(min(count, self.train_count)))
        return sample.inputs, sample.targets

    def _chosen(self, count: int) -> np.ndarray:
        """The places of so many training examples, in ascending order."""
        labels = self.train.classes()
        if labels is not None:
            return stratified_indices(np.unique(labels, return_inverse=True)[1], count)
        return np.sort(np.random.RandomState(_SEED).permutation(self.train_count)[:count])
