"""Plans, proves and rebuilds the networks of other people's libraries, and writes down what came of it.

    python -m tfprune.experiments.library_coverage --library=keras_hub --output=experiments/results/keras_hub.md

The library has to be installed. Its networks are made small, with random weights; nothing is downloaded. Each gets a
head of ten classes on what it gives, because a model's outputs keep all of their channels.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from tabulate import tabulate

from tfprune.errors import TfpruneError, UsageError
from tfprune.support.checks import error_line
from tfprune.support.command import run_command
from tfprune.support.registry import unknown_name

if TYPE_CHECKING:
    import keras

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

# Arguments of constructors, by name, that make networks of a few thousand weights.
_SMALL: dict[str, Any] = {
    "vocabulary_size": 64, "vocab_size": 64, "num_layers": 2, "num_heads": 4, "num_query_heads": 4,
    "num_key_value_heads": 2, "num_attention_heads": 4, "hidden_dim": 32, "hidden_size": 32, "intermediate_dim": 48,
    "mlp_dim": 48, "embedding_dim": 32, "head_dim": 8, "head_size": 8, "max_sequence_length": 32,
    "image_shape": (32, 32, 3), "image_size": 32, "patch_size": 8, "num_experts": 4, "top_k": 2,
    "moe_intermediate_dim": 24, "shared_expert_intermediate_dim": 24, "num_mels": 16,
    "max_encoder_sequence_length": 16, "max_decoder_sequence_length": 16, "num_layers_enc": 1, "num_layers_dec": 1,
    "dropout": 0.0, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
# Of single classes, beside these.
_OWN: dict[str, dict[str, Any]] = {
    "DenseNetBackbone": {"stackwise_num_repeats": [2, 2], "growth_rate": 8},
    "VGGBackbone": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [16, 32]},
    "XceptionBackbone": {"stackwise_conv_filters": [[16, 16], [32, 32]], "stackwise_pooling": [True, False]},
    "DINOV2Backbone": {"position_embedding_shape": (32, 32, 3)},
    "SwinTransformerBackbone": {
        "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "drop_path": 0.0, "patch_size": 2,
    },
    "ViTDetBackbone": {"global_attention_layer_indices": [1], "window_size": 2, "num_output_channels": 16},
    "MiTBackbone": {
        "layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.1, "layerwise_patch_sizes": [7, 3], "layerwise_strides": [4, 2],
        "hidden_dims": [16, 32],
    },
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3, 3], "stackwise_num_repeats": [1, 2], "stackwise_input_filters": [32, 16],
        "stackwise_output_filters": [16, 24], "stackwise_expansion_ratios": [1, 4], "stackwise_strides": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25], "stackwise_block_types": ["v1", "v1"],
        "stackwise_width_coefficients": [1.0, 1.0], "stackwise_depth_coefficients": [1.0, 1.0],
        "input_shape": (32, 32, 3), "num_features": 64,
    },
    "MobileNetBackbone": {
        "stackwise_expansion": [[32, 48], [48, 64]], "stackwise_num_blocks": [2, 2],
        "stackwise_num_filters": [[16, 24], [24, 32]], "stackwise_kernel_size": [[3, 3], [3, 3]],
        "stackwise_num_strides": [[1, 2], [1, 2]], "stackwise_se_ratio": [[None, 0.25], [0.25, 0.25]],
        "stackwise_activation": [["relu", "hard_swish"]] * 2, "stackwise_padding": [[1, 1], [1, 1]],
        "output_num_filters": 64, "depthwise_filters": 8, "depthwise_stride": 2, "depthwise_residual": False,
        "last_layer_filter": 64, "squeeze_and_excite": 0.5, "input_num_filters": 16,
    },
    "HGNetV2Backbone": {
        "depths": [1, 1], "embedding_size": 16, "hidden_sizes": [32, 64], "stem_channels": [3, 8, 16],
        "hidden_act": "relu", "use_learnable_affine_block": False, "apply_downsample": [False, True],
        "stackwise_stage_filters": [(16, 8, 32, 1, 3, 3), (32, 16, 64, 1, 3, 3)],
        "use_lightweight_conv_block": [False, True],
    },
    **{name: {"sliding_window": 8} for name in ("GptOssBackbone", "MistralBackbone", "MixtralBackbone")},
}  # fmt: skip


def _keras_hub() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The backbones of keras-hub, by name."""
    models = importlib.import_module("keras_hub").models
    for name in sorted(dir(models)):
        if name.endswith("Backbone") and name not in ("Backbone", "FeaturePyramidBackbone"):
            yield name, getattr(models, name)


LIBRARIES: dict[str, Callable[[], Iterator[tuple[str, Callable[..., Any]]]]] = {"keras_hub": _keras_hub}


@dataclasses.dataclass
class _Found:
    """What came of all networks, for the summary."""

    built: int = 0
    proved: dict[str, int] = dataclasses.field(default_factory=dict)
    gone: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `tfprune.experiments.library_coverage`."""
    flags.DEFINE_string("library", "keras_hub", f"One of {', '.join(LIBRARIES)}.", flag_values=values)
    flags.DEFINE_list("only", "", "Names of its networks; all of them if empty.", flag_values=values)
    flags.DEFINE_string("output", None, "The Markdown file to write; none if not given.", flag_values=values)


def run(values: flags.FlagValues, arguments: list[str]) -> None:
    """Runs the report.

    Raises:
        UsageError: For an unknown library or network, one that is not installed, or a stray argument.
    """
    if arguments:
        raise UsageError(f"Unexpected argument {arguments[0]!r}: networks are named by --only=A,B.")
    if values.library not in LIBRARIES:
        raise unknown_name("library", values.library, tuple(LIBRARIES))
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
    for name, make in networks.items():
        if values.only and name not in values.only:
            continue
        for row in _rows(name, make, found):
            rows.append(row)
            print(*row, sep="  ", flush=True)
        if values.output:
            _write(Path(values.output), values.library, rows, found)
    print(_summary(found))


def _rows(name: str, make: Callable[..., Any], found: _Found) -> Iterator[tuple]:
    """The lines of the table for one network, one for each meaning of normalizations."""
    start = time.perf_counter()
    try:
        model = with_head(make(**arguments_for(name, make)))
    except Exception as error:  # whatever the library raises for a size that it does not take
        yield (name, *[""] * 8, f"not built: {error_line(error)[:90]}")
        return
    seconds = time.perf_counter() - start
    found.built += 1
    for normalization in ("frozen", "narrowed"):
        head = (name, f"{model.count_params():,}", f"{seconds:.2f}", normalization)
        try:
            yield (*head, *_came_of(model, normalization, found))
        except TfpruneError as error:
            found.gone.setdefault(normalization, []).append(0.0)
            yield (*head, *[""] * 5, f"refused: {_short(str(error))}")


def _came_of(model: keras.Model, normalization: str, found: _Found) -> tuple:
    """What came of pruning a model by half, in the columns behind the normalization."""
    import keras

    import tfprune

    start = time.perf_counter()
    plan = tfprune.plan_channels(model, 0.5, normalization=normalization)
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
    found.gone.setdefault(normalization, []).append(gone)
    found.proved[normalization] = found.proved.get(normalization, 0) + 1
    counts = Counter(_short(reason) for reason in plan.frozen.values())
    reasons = "; ".join(f"{reason} ({count})" for reason, count in counts.most_common(3))
    noticed = f"{proof.tried - len(proof.unnoticed)} of {proof.tried}"
    return f"{gone:.2f}", f"{seconds:.2f}", f"{proof:.0e}", noticed, loads, reasons


def _short(reason: str) -> str:
    """A reason without the names of layers, which differ from block to block."""
    words = ["..." if "/" in word or any(sign.isdigit() for sign in word) else word for word in reason.split()]
    return " ".join(words)[:100]


def arguments_for(name: str, make: Callable[..., Any]) -> dict[str, Any]:
    """The arguments that make a small network of a constructor: what it needs, and sizes that it has defaults for."""
    known = {**_SMALL, **_OWN.get(name, {})}
    parameters = inspect.signature(make).parameters.values()
    optional = ("max_sequence_length", "image_shape", "num_mels", *(_OWN.get(name, {})))
    return {
        one.name: known[one.name]
        for one in parameters
        if one.name in known and (one.default is one.empty or one.name in optional or "sequence_length" in one.name)
    }


def with_head(network: keras.Model) -> keras.Model:
    """A network with ten classes on what it gives first, averaged over its positions."""
    import keras

    (given, *_) = keras.tree.flatten(network.output)
    while len(given.shape) > 2:
        given = keras.ops.mean(given, axis=1)
    return keras.Model(network.inputs, keras.layers.Dense(10, name="classes")(given), name=network.name)


def _summary(found: _Found) -> str:
    lines = [f"{found.built} networks were built."]
    for normalization, gone in found.gone.items():
        proved = found.proved.get(normalization, 0)
        lines.append(
            f"Normalizations {normalization}: {proved} planned, proved, rebuilt and saved; of all that were built the "
            f"median share of the params that is gone is {statistics.median(gone):.2f}."
        )
    return "\n".join(lines)


def _write(path: Path, library: str, rows: list[tuple], found: _Found) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"# Channel surgery on the networks of {library}\n\n"
        "Small, with random weights and a head of ten classes; half of the channels of every layer removed.\n\n"
        f"{_summary(found)}\n\n"
        f"{tabulate(rows, _HEADER, 'github', disable_numparse=True)}\n\n"
        f"Made by `python -m tfprune.experiments.library_coverage --library={library} --output={path}`.\n",
        encoding="utf-8",
    )


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit status."""
    return run_command("python -m tfprune.experiments.library_coverage", __doc__, define_flags, run, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
