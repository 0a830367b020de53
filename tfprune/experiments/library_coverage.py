"""The networks of other people's libraries in `tfprune.experiments.coverage`."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from tabulate import tabulate

from tfprune.errors import TfpruneError, UsageError
from tfprune.experiments.libraries import LIBRARIES, Maker
from tfprune.support.checks import error_line
from tfprune.support.registry import unknown_name

if TYPE_CHECKING:
    import keras

KERAS_APPLICATIONS = "keras_applications"
_HEADER = (
    "network",
    "params",
    "build s",
    "normalization",
    "gone",
    "plan s",
    "difference",
    "kernels noticed",
    "loads",
    "frozen",
)


@dataclasses.dataclass
class _Found:
    """What came of all networks, for the summary."""

    built: int = 0
    proved: dict[str, int] = dataclasses.field(default_factory=dict)
    gone: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, meanings: Sequence[str], gone: float, proved: bool) -> None:
        """Counts what came of one network."""
        for meaning in meanings:
            self.gone.setdefault(meaning, []).append(gone)
            self.proved[meaning] = self.proved.get(meaning, 0) + proved


def run_on_library(values: flags.FlagValues) -> None:
    """Plans, proves and rebuilds the networks of a library, prints what came of it, and writes it down.

    Args:
        values: The flags of `tfprune.experiments.coverage`.

    Raises:
        UsageError: For an unknown library or network, or a library that is not installed.
    """
    if values.library not in LIBRARIES:
        raise unknown_name("library", values.library, (KERAS_APPLICATIONS, *LIBRARIES))
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    try:
        networks = dict(LIBRARIES[values.library]())
    except ImportError as error:
        raise UsageError(f"--library={values.library} is not installed: {error_line(error)}.") from error
    for name in values.only:
        if name not in networks:
            raise unknown_name("network", name, tuple(networks))
    rows: list[tuple] = []
    found = _Found()
    for name in values.only or networks:
        for row in _rows(name, networks[name], values.ratio, found):
            rows.append(row)
            print(*row, sep="  ", flush=True)
        if values.output:
            _write(Path(values.output), values.library, values.only, values.ratio, rows, found)
    print(_summary(found))


def _rows(name: str, make: Maker, ratio: float, found: _Found) -> Iterator[tuple]:
    """The lines of the table for one network, one for each meaning of normalizations."""
    start = time.perf_counter()
    try:
        model = make()
    except Exception as error:  # whatever the library raises for a size that it does not take
        yield (name, *[""] * 8, f"not built: {error_line(error)[:90]}")
        return
    seconds = time.perf_counter() - start
    found.built += 1
    for meanings in _meanings(model):
        head = (name, f"{model.count_params():,}", f"{seconds:.2f}", " or ".join(meanings))
        try:
            gone, row = _came_of(model, ratio, meanings[0])
            found.add(meanings, gone, proved=True)
            yield (*head, *row)
        except TfpruneError as error:
            found.add(meanings, 0.0, proved=False)
            yield (*head, *[""] * 5, f"refused: {_short(str(error))}")
        except Exception as error:  # a fault of ours, which should not hide what came of the others
            found.add(meanings, 0.0, proved=False)
            yield (*head, *[""] * 5, f"RAW ERROR: {error_line(error)[:200]}")


def _meanings(model: keras.Model) -> tuple[tuple[str, ...], ...]:
    """The meanings of normalizations that are to be tried; both at once where they are the same."""
    from tfprune.graph.channel_graph import NORMALIZATIONS, ChannelGraph

    try:
        narrowed = ChannelGraph(model, normalization="narrowed").narrowed()
    except Exception:  # it is told where the network is planned
        return (NORMALIZATIONS,)
    return tuple((one,) for one in NORMALIZATIONS) if narrowed else (NORMALIZATIONS,)


def _came_of(model: keras.Model, ratio: float, normalization: str) -> tuple[float, tuple]:
    """The share of the params that is gone, and what came of pruning, in the columns behind the normalization."""
    import keras

    import tfprune

    start = time.perf_counter()
    plan = tfprune.plan_channels(model, ratio, normalization=normalization)
    seconds = time.perf_counter() - start
    proof = tfprune.verify(model, plan, power=True)
    with tempfile.TemporaryDirectory() as folder:
        plan.apply(model).save(Path(folder) / "small.keras")
        try:
            keras.saving.load_model(Path(folder) / "small.keras")
            loads = "yes"
        except Exception:  # the plan's notes tell why
            loads = "no"
    gone = 1 - plan.params[1] / plan.params[0]
    counts = Counter(_short(reason) for reason in plan.frozen.values())
    reasons = "; ".join(f"{reason} ({count})" for reason, count in counts.most_common(3))
    noticed = f"{proof.tried - len(proof.unnoticed)} of {proof.tried}"
    return gone, (f"{gone:.2f}", f"{seconds:.2f}", f"{proof:.0e}", noticed, loads, reasons)


def _short(reason: str) -> str:
    """A reason without the names of layers, which differ from block to block."""
    words = ["..." if "/" in word or any(sign.isdigit() for sign in word) else word for word in reason.split()]
    return " ".join(words)[:100]


def _summary(found: _Found) -> str:
    lines = [f"{found.built} networks were built."]
    for normalization, gone in found.gone.items():
        proved = found.proved.get(normalization, 0)
        lines.append(
            f"Normalizations {normalization}: {proved} planned, proved, rebuilt and saved; of all that were built the "
            f"median share of the params that is gone is {statistics.median(gone):.2f}."
        )
    return "\n".join(lines)


def _write(path: Path, library: str, only: list[str], ratio: float, rows: list[tuple], found: _Found) -> None:
    asked = f"--library={library} --only={','.join(only)}" if only else f"--library={library}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"# Channel surgery on the networks of {library}\n\n"
        f"With random weights and a head of a few classes. {ratio:.0%} of every layer's channels go.\n\n"
        f"{_summary(found)}\n\n"
        f"{tabulate(rows, _HEADER, 'github', disable_numparse=True)}\n\n"
        f"Made by `python -m tfprune.experiments.coverage {asked} --output={path}`.\n",
        encoding="utf-8",
    )
