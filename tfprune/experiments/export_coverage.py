"""Exports of a library's networks to every engine, in `tfprune.experiments.coverage`."""

from __future__ import annotations

import gc
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from tabulate import tabulate

from tfprune.engines.names import FORMATS
from tfprune.errors import TfpruneError, UsageError
from tfprune.experiments.libraries import LIBRARIES, randomize_statistics
from tfprune.support.checks import error_line
from tfprune.support.registry import unknown_name

if TYPE_CHECKING:
    import keras

_EXAMPLES = 32  # for the ranges of whole numbers


def export_library(values: flags.FlagValues) -> None:
    """Exports the networks of a library, one format after the other, and writes down what came of it.

    What stands in the output already is not done again.

    Args:
        values: The flags of `tfprune.experiments.coverage`.

    Raises:
        UsageError: For an unknown library, network or format.
    """
    from tfprune.support.startup import import_tensorflow

    import_tensorflow()
    import keras

    if values.library not in LIBRARIES:
        raise UsageError(f"--formats= is for networks of one size: --library= one of {', '.join(LIBRARIES)}.")
    for name in values.formats:
        if name not in FORMATS:
            raise unknown_name("format", name, FORMATS)
    networks = dict(LIBRARIES[values.library]())
    for name in values.only:
        if name not in networks:
            raise unknown_name("network", name, tuple(networks))
    rows = _read(values.output, values.formats)
    for name in values.only or networks:
        if name in rows:
            continue
        keras.backend.clear_session()
        model = networks[name]()
        randomize_statistics(model)
        rows[name] = (name, f"{model.count_params():,}", *(_came_of(model, format) for format in values.formats))
        print(*rows[name], sep="  ", flush=True)
        if values.output:
            _write(Path(values.output), values.library, values.formats, rows)
        del model
        gc.collect()


def _came_of(model: keras.Model, format: str) -> str:
    """The difference and what is allowed, or why the format cannot be written."""
    import numpy as np

    from tfprune.engines.exporting import export
    from tfprune.graph.inputs import random_inputs

    more: dict[str, Any] = {}
    if format == "litert_int8":
        inputs = random_inputs(model, _EXAMPLES)
        more["data"] = inputs[0] if len(inputs) == 1 else inputs
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            folder = export(model, folder, formats=format, **more)
        except TfpruneError as error:
            return str(error).partition(" was not written: ")[2].removesuffix(" Nothing was written.") or str(error)
        except Exception as error:  # a fault of ours, which should not hide what came of the others
            return f"RAW ERROR: {error_line(error)[:200]}"
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        check = folder.checks[format]
    agreed = "" if check.agreement is None else f", agrees {check.agreement:.0%}"
    allowed = "" if check.tolerance == 1e-5 or agreed else f" of {check.tolerance:.0e}"
    return (
        f"{np.ceil(size / 2**20):.0f} MiB, {check.difference:.0e}{allowed}{agreed}, {time.perf_counter() - start:.0f} s"
    )


def _read(output: str | None, formats: list[str]) -> dict[str, tuple]:
    """The lines that a file has, if it is of these formats."""
    if not output or not Path(output).exists():
        return {}
    lines = Path(output).read_text(encoding="utf-8").splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    if not table or table[0][2:] != list(formats):
        raise UsageError(f"{output} is no table of the formats {', '.join(formats)}. Name another file.")
    return {row[0]: tuple(row) for row in table[2:]}


def _write(path: Path, library: str, formats: list[str], rows: Mapping[str, tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [[cell.replace("|", "/") for cell in row] for row in rows.values()]
    whole = path.with_name(f".{path.name}")  # moved when it is whole: lines that are half there would be read again
    whole.write_text(
        f"# Exports of the networks of {library}\n\n"
        "With random weights and statistics, not pruned. Every file was loaded by its engine and run on the same two "
        "random examples\nas the network. A cell has the size of the file; the largest difference, relative to the "
        "largest output (of `litert_int8`\nthe root mean square, and on how many of "
        f"{_EXAMPLES} examples the largest output is the same one); what is allowed, where that\nis not 1e-5, because "
        "the network's own rounding is more; and the seconds that it took, beside other work. Or it says why\nthere is "
        "no file.\n\n"
        f"{tabulate(cells, ('network', 'params', *formats), 'github', disable_numparse=True)}\n\n"
        f"Made by `python -m tfprune.experiments.coverage --library={library} --formats={','.join(formats)} "
        f"--output={path}`.\n",
        encoding="utf-8",
    )
    whole.replace(path)
