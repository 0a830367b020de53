"""Export: a network as others can load it, read back before it counts."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfprune.engines.base import Engine
from tfprune.engines.int8 import LiteRTInt8Engine, representative
from tfprune.engines.judging import Check, Judge, judge_int8
from tfprune.engines.keras_file import KerasEngine, own_parts
from tfprune.engines.litert import LiteRTEngine, sparsest
from tfprune.engines.names import DEFAULT_FORMATS, FORMATS, INT8
from tfprune.engines.onnx import OnnxRuntimeEngine
from tfprune.engines.openvino import OpenVinoEngine
from tfprune.engines.saved_models.saved_model import SavedModelEngine
from tfprune.engines.serving import layers_told_in
from tfprune.errors import ExportError, PlanError, TfpruneError, UsageError
from tfprune.graph.inputs import inputs_that_tell, inputs_that_work
from tfprune.graph.stand_ins import left_as_it_is
from tfprune.graph.walk import functional
from tfprune.support.checks import error_line, number_in, one_of, path_of, several
from tfprune.surgery.masked import fresh_states

_PARTS = ("model.keras", "saved_model", "model.tflite", "model_int8.tflite", "model.onnx", "openvino")
_EXAMPLES = 2


class Exported(type(Path())):  # type: ignore[misc]
    """The folder of an export, which is a path.

    Attributes:
        checks: Format -> what its file gave beside the network.
    """

    checks: Mapping[str, Check] = {}


def export(
    model: keras.Model,
    folder: str | os.PathLike,
    litert: bool = False,
    *,
    formats: Sequence[str] = DEFAULT_FORMATS,
    inputs: Any = None,
    tolerance: float | None = None,
    data: Any = None,
    sparse: bool = False,
    fold: bool = True,
) -> Exported:
    """Writes a network as files for one or more engines; each is loaded again in its engine and compared.

    `keras`: `model.keras`. `saved_model`: `saved_model/`, with every weight once and one signature, `serving_default`,
    with the names of the model's inputs and, where they are a dictionary, of its outputs (`output_0` and so on where
    they are none, as `Model.export` has it); in Python, `tf.saved_model.load(path).serve(inputs)`. `litert`:
    `model.tflite`, of LiteRT's own operations. `litert_int8`: `model_int8.tflite`, in 8 bits all through, float32 at
    both ends. `onnx`: `model.onnx`, for ONNX Runtime. `openvino`: `openvino/model.xml` and `.bin`, float32. They need
    nothing of tfprune, sizes that are open stay open, and the last four know inputs and outputs by the names of their
    layers (outputs by the keys of a dictionary, if they are one; what is no letter, digit or "_" becomes "_").

    `model.keras` keeps losses, metrics and the optimizer if Keras can load them without a user's code; else it has none
    of them, and a warning says so. Layers that hold a state from call to call begin anew in the files.

    Args:
        model: A functional or Sequential model of Keras' own layers, with one or more inputs.
        folder: Where to write. Of the above, what is there is replaced or, as it is of another network, removed, once
            the new files were compared; other files are left alone.
        litert: Also write a LiteRT model, as `formats=` with `"litert"` does.
        formats: What to write.
        inputs: What to compare on, as the model takes it; None: two random examples, without signs where the model
            gives no finite numbers otherwise.
        tolerance: The largest difference, relative to the largest output, that is rounding; not for `litert_int8`.
            None: 1e-5, or where the model's own rounding is more (16 bits, or very many layers), four times its
            distance from itself in float64, and at most 0.05.
        data: Representative data for `litert_int8`: arrays, `(inputs, targets)`, or batches, of which the first 512
            examples are used. The file may be off by a tenth of the largest output (root mean square).
        sparse: Store weights of `litert` that are mostly zero without their zeros: a smaller file. LiteRT on x86 is no
            faster for it.
        fold: Fold batch normalizations of the SavedModel into the layers beside them; only rounding changes.

    Returns:
        The folder, a path, with `checks`: format -> what its file gave beside the model.

    Raises:
        ExportError: If a file, read back, gives other outputs than the model. If it is `model.keras` or the SavedModel,
            nothing is written.
        UsageError: If a format cannot be written: which layers, and what helps. All others are there. Before anything
            is written: if the model has layers or functions that cannot be loaded without their Python code, or is no
            model, an engine is not installed, or an argument is none of the above.
    """
    functional(model)
    folder = path_of("folder", folder)
    engines, classes = _engines(model, formats, litert, data, sparse, fold)
    if tolerance is not None:
        number_in("tolerance", tolerance, 0, 1)
    if custom := own_parts(model):
        raise UsageError(f"{model.name} has parts that only their Python code can load: {', '.join(custom)}.")
    return _export(model, folder, engines, inputs, tolerance, classes)


def _export(
    model: keras.Model,
    folder: Path,
    engines: Sequence[Engine],
    inputs: Any,
    tolerance: float | None,
    classes: np.ndarray | None,
) -> Exported:
    checks: dict[str, Check] = {}
    failed: dict[str, TfpruneError] = {}
    with _scratch_in(folder) as scratch, left_as_it_is(model):
        judge = _judge(model, inputs, tolerance)
        for engine in engines:
            try:
                checks[engine.format] = _written(model, engine, scratch, judge, classes)
            except TfpruneError as error:
                if engine.format in DEFAULT_FORMATS:
                    raise
                failed[engine.format] = error
        if checks:
            _move(scratch, folder, [engine.part.partition("/")[0] for engine in engines if engine.format in checks])
    if failed:
        raise _failure(failed, checks, folder)
    exported = Exported(folder)
    exported.checks = checks
    return exported


def _engines(
    model: keras.Model, formats: Any, litert: bool, data: Any, sparse: bool, fold: bool
) -> tuple[list[Engine], np.ndarray | None]:
    """The engines of what is asked for, in the order of FORMATS; and the classes that representative data have."""
    wanted = [formats] if isinstance(formats, str) else several("formats", formats, f"some of {', '.join(FORMATS)}")
    for name in wanted:
        one_of("format", name, FORMATS)
    if not wanted:
        raise UsageError(f"formats= is empty; give one or more of {', '.join(map(repr, FORMATS))}.")
    if litert:
        wanted.append("litert")
    for name, value, format in (("sparse", sparse, "litert"), ("data", data is not None, "litert_int8")):
        if value and format not in wanted:
            raise UsageError(f"{name}= is for {format!r}, which is not among the formats ({', '.join(wanted)}).")
    plain = (KerasEngine(), SavedModelEngine(fold), LiteRTEngine(sparse), OnnxRuntimeEngine(), OpenVinoEngine())
    engines = {engine.format: engine for engine in plain}
    for name in wanted:
        if name in engines:
            engines[name].check_installed()
    if sparse and (most := sparsest(model)) < 0.5:
        raise UsageError(
            f"sparse=True: no kernel of {model.name!r} is half of zeros (the most is {most:.0%}), so it would save "
            "nothing. Prune weights first (plan_weights)."
        )
    classes = None
    if INT8 in wanted:
        batches, classes = representative(model, data)
        engines[INT8] = LiteRTInt8Engine(batches)
    return [engines[name] for name in FORMATS if name in wanted], classes


def _judge(model: keras.Model, inputs: Any, tolerance: float | None) -> Judge:
    if inputs is not None:
        return Judge(model, inputs_that_tell(model, inputs), tolerance)
    try:
        drawn = inputs_that_work(model, _EXAMPLES)
    except PlanError as error:
        raise PlanError(f"{model.name!r} cannot be run on a random batch of {_EXAMPLES} ({error})") from error
    try:
        return Judge(model, drawn, tolerance)
    except PlanError:
        without_signs = [np.abs(value) if value.dtype.kind == "f" else value for value in drawn]
        return Judge(model, without_signs, tolerance)  # a logarithm, a root


def _written(model: keras.Model, engine: Engine, folder: Path, judge: Judge, classes: np.ndarray | None) -> Check:
    """Writes a file, loads it and compares; a PlanError if the format cannot be."""
    what = engine.part.partition("/")[0]
    if reason := engine.cannot_take(model):
        raise PlanError(reason)
    path = folder / engine.part
    try:
        with fresh_states(model):
            engine.write(model, path)
        run = engine.load(path, model)
        if isinstance(engine, LiteRTInt8Engine):
            return judge_int8(model, run, engine.batches, classes, what)
        return judge.compare(run, what)
    except TfpruneError:
        raise
    except Exception as error:  # whatever a converter or an engine raises
        layers = layers_told_in(str(error), model)
        where = f"of {', '.join(layers[:4])}" if layers else "of this network"
        reason = error_line(error).replace(f"{folder}{os.sep}", "")[:200]  # where it was written is gone by now
        raise PlanError(
            f"{engine.name} cannot take some operation {where} ({reason}). Leave it out of the "
            "network, or this format out of formats=."
        ) from error


def _failure(failed: Mapping[str, TfpruneError], checks: Mapping[str, Check], folder: Path) -> TfpruneError:
    """One error for all formats that failed: what was not written and why, and what was."""
    reasons = " ".join(f"{name!r} was not written: {error}" for name, error in failed.items())
    written = f"Written to {str(folder)!r}: {', '.join(checks)}." if checks else "Nothing was written."
    kind = ExportError if any(isinstance(error, ExportError) for error in failed.values()) else PlanError
    return kind(f"{reasons} {written}")


@contextlib.contextmanager
def _scratch_in(folder: Path) -> Iterator[Path]:
    """A folder for what is not compared yet; takes away all that was made if nothing is written in the end."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder, prefix=".export-")
    except OSError as error:
        raise UsageError(
            f"Cannot export to {str(folder)!r} ({error.strerror}). Name a folder that can be made."
        ) from error
    try:
        with scratch as name:
            yield Path(name)
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for path in new:
                path.rmdir()


def _move(scratch: Path, folder: Path, parts: Sequence[str]) -> None:
    """Puts what was compared in the places of what was there."""
    with _alone_in(folder):
        for part in _PARTS:
            if (folder / part).exists():  # also one that was written before and is not now
                (folder / part).rename(scratch / f"replaced-{part}")
            if part in parts:
                (scratch / part).rename(folder / part)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Waits for another process that puts its files here, so that all files are of one network."""
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
