"""Networks in files: what Keras 2 and 3 write, read without running code of the file's."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tfprune.errors import UsageError
from tfprune.models.keras2_files import (
    entries_in,
    in_several_networks,
    masks_differ,
    modernized,
    plain_names,
    renamed,
    stay_frozen,
)
from tfprune.support.checks import error_line, first_line, path_of, shown, without_colours

if TYPE_CHECKING:
    import keras

SUFFIXES = (".keras", ".h5", ".hdf5")
_POINTER = b"version https://git-lfs.github.com"
_MISSING = re.compile(r"(?:Could not locate (?:class|function)|Unknown [a-z ]+:) '([^']+)'")
_FILES_CODE = ("TFSMLayer", "TorchModuleWrapper")  # layers that run what another file, or a pickle, holds


@dataclass(frozen=True)
class _Content:
    """What a file holds beside weights: the config of its network, and the version of Keras that wrote it."""

    hdf5: bool
    config: dict[str, Any]
    version: str

    @property
    def of_keras_2(self) -> bool:
        return self.version.partition(".")[0] in ("1", "2")


def load(
    path: str | os.PathLike,
    custom_objects: Mapping[str, Any] | None = None,
    unsafe: bool = False,
    compiled: bool = True,
) -> keras.Model:
    """Loads the network in a file: `.keras`, or HDF5 (`.h5`, `.hdf5`, or named `.keras`), of Keras 2 or 3.

    No code of the file's is run. The config of Keras 2 is put into the words of Keras 3 first, where only words differ;
    what the network computes is the same. A warning names layers for which that is not known.

    Args:
        path: The file.
        custom_objects: Name -> class or function, for those that the network needs beside Keras' own. What was
            decorated with `keras.saving.register_keras_serializable` has only to be imported.
        unsafe: Also load layers whose Python code is in the file (`Lambda` and its kind), which runs this code.
        compiled: Compile the network as it was, if Keras can; a warning tells if not.

    Raises:
        UsageError: If there is no such file, it holds no network, or Keras cannot load it; the reason is told.
    """
    import keras

    file = path_of("path", path)
    content = _read(file)
    settings = content.config.get("compile_config")
    network = {key: value for key, value in content.config.items() if key != "compile_config"}
    if compiled and not unsafe and any(_code_in(settings, "?")):
        compiled = False
        warnings.warn(f"{file} has compile settings with Python code in them; go on without them.", stacklevel=2)
    if not unsafe and (layers := sorted(set(_code_in(network, "?")))):
        raise UsageError(
            f"{str(file)!r} holds Python code, in {', '.join(map(repr, layers))}; loading it would run it. If you "
            "trust the file: --unsafe, or unsafe=True."
        )
    _warn_of_masks(file, content)
    with _readable(file, content) as name:

        def loaded(compile_it: bool) -> keras.Model:
            objects = dict(custom_objects or {})
            model = keras.saving.load_model(name, custom_objects=objects, compile=compile_it, safe_mode=not unsafe)
            if content.of_keras_2:
                _as_in_keras_2(model, file, content)
            return model

        if compiled:
            try:
                return loaded(True)
            except Exception as error:  # its compile settings may be what Keras cannot load
                first = error
        try:
            model = loaded(False)
        except Exception as error:  # whatever a damaged or foreign file makes Keras raise
            raise UsageError(f"Keras cannot load {str(file)!r}: {_told(error, content)}") from error
    if compiled:
        warnings.warn(
            f"{file} has compile settings that Keras cannot load ({_reason(first)}); go on without them.", stacklevel=2
        )
    return model


def _warn_of_masks(file: Path, content: _Content) -> None:
    if content.of_keras_2 and (layers := masks_differ(content.config)):
        warnings.warn(
            f"{file} is of Keras 2 and has masks of padded steps, which {', '.join(layers)} may pass on otherwise in "
            "Keras 3. Compare outputs before you rely on it.",
            stacklevel=3,
        )


def _as_in_keras_2(model: keras.Model, file: Path, content: _Content) -> None:
    """Keeps frozen what Keras 2 had frozen; tells of layers that networks shared, and that each has by itself now."""
    config = renamed(content.config, plain_names(content.config))
    stay_frozen(model, modernized(config))
    copies: dict[str, list[Any]] = {name: [] for name in in_several_networks(config)}
    for layer in _layers(model):
        if layer.name in copies and layer.weights:
            copies[layer.name].append(layer.get_weights())
    if shared := [name for name, values in copies.items() if len(values) > 1 and _all_equal(values)]:
        warnings.warn(
            f"{file} is of Keras 2, and networks in it seem to share {', '.join(shared)}: the weights are the same. "
            "Each network has a layer of its own now, and a training tells them apart. Build the network in Python to "
            "keep them one.",
            stacklevel=4,
        )


def _layers(network: Any) -> Iterator[Any]:
    """The layers of a network and of those inside of it."""
    for layer in network.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from _layers(layer)


def _all_equal(values: Sequence[Sequence[Any]]) -> bool:
    first, *others = values
    return all(
        one.shape == own.shape and bool((one == own).all())
        for other in others
        for one, own in zip(first, other, strict=True)
    )


def objects_of(modules: Sequence[str]) -> dict[str, Any]:
    """Imports modules, and returns the classes and functions that they define by their names, for `load`.

    Raises:
        UsageError: If a module cannot be imported.
    """
    objects: dict[str, Any] = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:  # whatever the code of the module raises
            raise UsageError(
                f"The module {name!r} cannot be imported: {error_line(error)}. Name it as `import` in Python does; the "
                "current folder and PYTHONPATH are searched."
            ) from error
        for key, value in vars(module).items():
            if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module.__name__:
                objects[key] = value
    return objects


def _read(path: Path) -> _Content:
    """Reads what a file is from its content, whatever its name says."""
    import h5py

    if path.is_dir():
        kind = "a SavedModel" if (path / "saved_model.pb").is_file() else "a folder"
        raise UsageError(f"{str(path)!r} is {kind}; a file is needed ({', '.join(SUFFIXES)}). Save it with Keras.")
    if not path.is_file():
        raise UsageError(f"There is no model file {str(path)!r}.")
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise UsageError(f"{str(path)!r} is a pointer of Git LFS, not the file. Fetch the file: `git lfs pull`.")
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        if h5py.is_hdf5(path):
            return _read_hdf5(path)
    except UsageError:  # which is a ValueError
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{str(path)!r} is damaged, or no network of Keras: {error_line(error)}.") from error
    raise UsageError(
        f"{str(path)!r} is no .keras file (an archive) and no HDF5 file, or it was cut. Save the network with Keras."
    )


def _read_archive(path: Path) -> _Content:
    with zipfile.ZipFile(path) as archive:
        members = [PurePosixPath(name.replace("\\", "/")) for name in archive.namelist()]
        if outside := [str(name) for name in members if ".." in name.parts or name.is_absolute()]:
            raise UsageError(f"{str(path)!r} is no model: its member {outside[0]!r} would be written outside of it.")
        if "config.json" not in archive.namelist():
            raise UsageError(f"{str(path)!r} is an archive without config.json: it holds no network of Keras.")
        config = json.loads(archive.read("config.json"))
        told = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
    return _Content(False, _a_network(config), str(told.get("keras_version", "")))


def _read_hdf5(path: Path) -> _Content:
    import h5py

    with h5py.File(path, "r") as file:
        config = file.attrs.get("model_config")
        version = file.attrs.get("keras_version", b"1" if config is not None else b"")
    if config is None:
        raise UsageError(
            f"{str(path)!r} holds weights and no network. Build the network in Python, `load_weights` this file, "
            "and save it with model.save('model.keras')."
        )
    return _Content(True, _a_network(json.loads(_text(config))), _text(version))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _a_network(config: Any) -> dict:
    if not isinstance(config, dict) or not {"class_name", "config"} <= set(config):
        raise ValueError(f"its config is {shown(config)}")
    return config


def _code_in(config: Any, owner: str) -> Iterator[str]:
    """The names of the layers in a config that hold Python code or run what is not in the config."""
    if isinstance(config, dict):
        kind, inner = config.get("class_name"), config.get("config")
        if isinstance(inner, dict):
            owner = str(inner.get("name", owner))
            # Keras 2, and HDF5 files of Keras 3, wrote a Lambda's code as a list.
            if kind in _FILES_CODE or (kind == "Lambda" and isinstance(inner.get("function"), list)):
                yield owner
            if kind == "Lambda" and inner.get("function_type") == "lambda":
                yield owner
        if kind == "__lambda__":
            yield owner
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _code_in(part, owner)


@contextlib.contextmanager
def _readable(path: Path, content: _Content) -> Iterator[str]:
    """The name of a file that Keras 3 reads: the file itself, or one that lives as long as this context."""
    suffix = ".h5" if content.hdf5 else ".keras"
    if not content.of_keras_2 and path.suffix in ((".h5", ".hdf5") if content.hdf5 else (".keras",)):
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="tfprune-") as folder:
        copy = Path(folder) / f"{path.stem}{suffix}"  # Keras goes by the end of the name
        if not content.of_keras_2:
            shutil.copyfile(path, copy)
        else:
            try:
                names = plain_names(content.config)
                config = json.dumps(modernized(renamed(content.config, names)))
            except (KeyError, TypeError, IndexError, AttributeError) as error:
                raise UsageError(
                    f"{str(path)!r} is damaged: its config cannot be read ({error_line(error)})."
                ) from error
            if content.hdf5:
                _copy_of_hdf5(path, copy, config, names)
            else:
                _copy_of_archive(path, copy, config)
        yield str(copy)


def _copy_of_hdf5(path: Path, copy: Path, config: str, names: dict[str, str]) -> None:
    import h5py

    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = config.encode()
        if names and "training_config" in file.attrs:
            settings = renamed(json.loads(_text(file.attrs["training_config"])), names)
            file.attrs["training_config"] = json.dumps(settings).encode()


def _copy_of_archive(path: Path, copy: Path, config: str) -> None:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as written:
        for member in archive.infolist():
            written.writestr(member, config if member.filename == "config.json" else archive.read(member))


def _reason(error: Exception) -> str:
    """Why Keras cannot load something: its own words behind the configs around it, without the configs."""
    told = [part.partition("Full object config:")[0] for part in str(error).split("Exception encountered:")[1:]]
    lines = [line for part in told for line in part.splitlines() if line.strip() and not line.startswith("config=")]
    return " ".join(without_colours(lines[-1]).split()) if lines else first_line(error)


def _operations() -> set[str]:
    """The names of Keras' operations that are no layers."""
    import keras

    waiting, found = [keras.Operation], set()
    while waiting:
        kind = waiting.pop()
        if kind.__module__.startswith("keras.") and not issubclass(kind, keras.Layer):
            found.add(kind.__name__)
            waiting += kind.__subclasses__()
    return found


def _told(error: Exception, content: _Content) -> str:
    """The reason, what the file needs, and which Keras wrote it."""
    reason = _reason(error)
    version = f" Keras {content.version} wrote the file." if content.version else ""
    missing = _MISSING.search(str(error))
    several = in_several_networks(content.config) if content.of_keras_2 and not content.hdf5 else {}
    not_there = re.search(r"could not be loaded\..*? name=([^,>]+)", str(error), re.DOTALL)
    if not_there and not_there.group(1) in several:
        name = not_there.group(1)
        return (
            f"the networks {', '.join(several[name])} in it share the layer {name!r}. Keras 2 wrote its weights once, "
            "and Keras 3 looks for them in each. Save the network as HDF5 (.h5) with Keras 2, or build it in Python "
            f"and load its weights.{version}"
        )
    if missing is None:
        return f"{reason.rstrip('.')}.{version}"
    name = missing.group(1)
    if content.hdf5 and name in _operations():
        return (
            f"it computes with keras.ops between its layers ({name!r}), which Keras does not read from HDF5. Where the "
            f"network is built, save it with model.save('model.keras').{version}"
        )
    modules = [
        entry.get("module")
        for entry in entries_in(content.config)
        if name in (entry["class_name"], entry["config"]) and entry.get("module") not in (None, "builtins")
    ]
    module = modules[0] if modules else "the module that defines it"
    return (
        f"it needs {name!r}{f' of {module}' if modules else ''}, which is not there. Import {module} first: "
        f"--import=MODULE, or in Python an import of yours or custom_objects={{{name!r}: ...}}.{version}"
    )
