"""Which widths an engine likes: times against width of single layers, and the multiples that follow from them.

Engines compute channels in blocks, as wide as the processor's vectors or several of them; what is left over costs as
much as a whole block, or leaves the fast way altogether. How it is on one processor is in `widths.json`, measured by
`python -m tfprune.experiments.bench --only=widths`, which measures it on any other.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfprune.errors import UsageError
from tfprune.support.checks import one_of, path_of, shown

COMMAND = "python -m tfprune.experiments.bench --only=widths"
FILE_FORMAT = "tfprune widths 1"
SHIPPED = Path(__file__).with_name("widths.json")
VARIABLE = "TFPRUNE_WIDTHS"  # names the table of this machine, unless it is where the command has put it
MEASURED = Path("bench") / "widths.json"
# What a channel counts in: outputs of convolutions over a window, outputs of 1x1 convolutions and dense layers,
# inputs of either, channels of depthwise convolutions.
KINDS = ("conv3x3", "conv1x1", "inputs", "depthwise")
MULTIPLES = (1, 2, 4, 8, 16, 32)
# A coarser multiple has to be cheaper by this, and by more than the measurements are uncertain: it leaves less choice.
_WORTH = 0.03
_BLOCK = MULTIPLES[-1]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Times of one kind of layer in one engine.

    Attributes:
        seconds: Width -> time of a pass, without that of calling the engine.
        noise: By how much the times are uncertain, as a fraction.
        multiple: The multiple in which the layers are cheapest for a channel.
    """

    seconds: Mapping[int, float]
    noise: float
    multiple: int

    def relative(self, width: int) -> float:
        """About the time of a layer so wide, in units of a channel at the widths that are multiples of 32.

        What a width costs beside a multiple of 32 is that of the measured widths that stand alike to it; of several of
        them, what is added once (a block that is not full) and what grows with the width (a slower way) are told apart.
        """
        rest, blocks = (width - 1) % _BLOCK + 1, sorted({(known - 1) // _BLOCK for known in self.seconds})
        widths, more = [], []
        for block in blocks:
            beside = beside_blocks(self.seconds)
            alike = [w for w in sorted(beside) if (w - 1) // _BLOCK == block and _powers_of_2(w) == _powers_of_2(width)]
            if alike:
                more.append(float(np.interp(block * _BLOCK + rest, alike, [beside[w] for w in alike])))
                widths.append(block * _BLOCK + rest)
        slope, level = np.polyfit(1.0 / np.asarray(widths), more, 1) if len(widths) > 1 else (0.0, more[0])
        return width * max(1.0, float(level + slope / max(width, widths[0])))


@dataclasses.dataclass(frozen=True)
class WidthTable:
    """The widths of one engine.

    Attributes:
        engine: Its name.
        processor: On which it was measured.
        packages: Package -> version with which it was.
        kinds: Kind of `KINDS` -> what was measured.
    """

    engine: str
    processor: str
    packages: Mapping[str, str]
    kinds: Mapping[str, Measured]


def beside_blocks(seconds: Mapping[int, float]) -> dict[int, float]:
    """Width -> its time, in that of multiples of 32 that would be as wide."""
    steps = sorted(width for width in seconds if width % _BLOCK == 0)
    line = [seconds[width] for width in steps]
    return {width: time / float(np.interp(width, steps, line)) for width, time in seconds.items()}


def cost_by_multiple(seconds: Mapping[int, float]) -> dict[int, float]:
    """Multiple -> what a channel costs on average where widths are rounded up to it, beside multiples of 32.

    Of all widths that are rounded up to multiples of m, half are odd multiples of it, a quarter odd multiples of 2m,
    and so on; that is how the measured ones are weighed.

    Args:
        seconds: Width -> time; of every one of `MULTIPLES` some that are odd multiples of it.
    """
    beside = beside_blocks(seconds)
    of_odd = {m: float(np.mean([more for w, more in beside.items() if _powers_of_2(w) == m])) for m in MULTIPLES}
    average = {_BLOCK: of_odd[_BLOCK]}
    for m in reversed(MULTIPLES[:-1]):
        average[m] = (of_odd[m] + average[2 * m]) / 2
    return average


def best_multiple(seconds: Mapping[int, float], noise: float) -> int:
    """The multiple whose rounded-up widths are on average the cheapest for a channel; of equals the smallest.

    Args:
        seconds: Width -> time, as of `cost_by_multiple`.
        noise: By how much the times are uncertain, as a fraction.
    """
    average = cost_by_multiple(seconds)
    enough = min(average.values()) * (1 + max(noise, _WORTH))
    return next(m for m in MULTIPLES if average[m] <= enough)


def _powers_of_2(width: int) -> int:
    """The largest of `MULTIPLES` that divides a width."""
    return math.gcd(width, _BLOCK)


def widths_for(engine: str, path: str | os.PathLike | None = None) -> WidthTable:
    """The table of an engine.

    Args:
        engine: Its name.
        path: A file that the command has written; else the one that is shipped.

    Raises:
        UsageError: If the file is no such table, or there is none of the engine in it.
    """
    tables = read_tables(SHIPPED if path is None else path)
    one_of("engine", engine, tables)
    return tables[engine]


def measured_path() -> Path:
    """The table that was measured on this machine: what `TFPRUNE_WIDTHS` names, or bench/widths.json.

    Raises:
        UsageError: If there is none.
    """
    named = os.environ.get(VARIABLE)
    path = Path(named) if named else MEASURED
    if not path.is_file():
        raise UsageError(
            f"There is no width table {str(path)!r}; `{COMMAND}` measures one on this machine. Call it in this folder, "
            f"or let {VARIABLE} name the widths.json that it wrote."
        )
    return path


def read_tables(path: str | os.PathLike) -> dict[str, WidthTable]:
    """Engine -> its table, of a file.

    Raises:
        UsageError: If it cannot be read, or is no such file.
    """
    path = path_of("path", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"The width table {str(path)!r} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise _broken(path, f"is no JSON ({error})") from error
    told = content.get("format") if isinstance(content, dict) else None
    if told != FILE_FORMAT:
        raise _broken(path, f"has the format {shown(told)}, not {FILE_FORMAT!r}")
    try:
        return {
            engine: WidthTable(
                engine, str(content["processor"]), dict(content["packages"]), {kind: _kind(own[kind]) for kind in KINDS}
            )
            for engine, own in content["engines"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"is damaged ({type(error).__name__}: {error})") from error


def _kind(content: Mapping[str, Any]) -> Measured:
    seconds = {int(width): float(time) for width, time in content["seconds"].items()}
    multiple, noise = content["multiple"], float(content["noise"])
    rests = {_powers_of_2(width) for width in seconds if width > 0}
    if (
        multiple not in MULTIPLES
        or rests != set(MULTIPLES)
        or not all(0 < time < math.inf for time in seconds.values())
    ):
        raise ValueError("widths, times or multiples that cannot be")
    return Measured(seconds, noise, multiple)


def _broken(path: Path, why: str) -> UsageError:
    return UsageError(f"The width table {str(path)!r} {why}. `{COMMAND}` writes a new one.")


def as_content(
    processor: str,
    packages: Mapping[str, str],
    engines: Mapping[str, Mapping[str, Mapping[int, float]]],
    noise: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """What a file holds, of JSON types.

    Args:
        processor: On which it was measured.
        packages: Package -> version.
        engines: Engine -> kind -> width -> seconds.
        noise: Engine -> kind -> by how much they are uncertain, as a fraction.
    """

    def kind(seconds: Mapping[int, float], uncertain: float) -> dict[str, Any]:
        known = {width: float(f"{time:.4g}") for width, time in sorted(seconds.items())}
        rounded = float(f"{uncertain:.2g}")
        return {"multiple": best_multiple(known, rounded), "noise": rounded, "seconds": known}

    return {
        "format": FILE_FORMAT,
        "command": COMMAND,
        "processor": processor,
        "packages": dict(packages),
        "engines": {
            engine: {name: kind(own[name], noise[engine][name]) for name in KINDS} for engine, own in engines.items()
        },
    }
