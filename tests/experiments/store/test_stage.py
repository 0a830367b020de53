import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tfprune.errors import TfpruneError
from tfprune.experiments.store.keys import TrainingKey
from tfprune.experiments.store.stage import BusyError, Store, save_weights, write_json

CONFIG = {"dataset": "synthetic", "model": "vgg16", "seed": 0}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def stage(store):
    return store.stage("train", "synthetic-vgg16", CONFIG)


def everything_in(folder):
    return sorted(path.name for path in folder.rglob("*")) if folder.exists() else []


# What counts.


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_stage_interrupted_in_the_middle_leaves_nothing(store, stage, error):
    def interrupted():
        with stage.writing() as folder:
            write_json(folder / "half.json", {"accuracy": 1})
            raise error

    with pytest.raises(error):
        interrupted()
    assert not stage.done
    assert store.finished("train") == []
    assert everything_in(store.folder) == []


def test_a_stage_whose_process_dies_does_not_count_and_can_be_done_again(tmp_path, store, stage):
    code = (
        "import os, sys; from pathlib import Path; from tfprune.experiments.store.stage import Store\n"
        f"stage = Store(Path(sys.argv[1])).stage('train', 'synthetic-vgg16', {CONFIG!r})\n"
        "with stage.writing() as folder:\n"
        "    (folder / 'weights.npz').write_bytes(b'half')\n"
        "    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 9
    assert not stage.done
    assert store.finished("train") == []
    with stage.writing() as folder:
        write_json(folder / "history.json", [1])
    assert [found.folder for found in store.finished("train")] == [stage.folder]


def test_done_appears_only_at_the_end(stage):
    with stage.writing() as folder:
        write_json(folder / "history.json", {"a": [1, 2]})
        assert not stage.done
        assert not (folder / "DONE").exists()
        assert folder.parent == stage.folder.parent  # one file system, so that a rename is enough
    assert stage.done
    assert everything_in(stage.folder) == ["DONE", "config.json", "history.json"]
    assert everything_in(stage.folder.parent) == sorted([stage.name, *everything_in(stage.folder)])
    assert stage.read("history.json") == {"a": [1, 2]}


def test_a_folder_without_the_marker_is_not_trusted_and_replaced(store, stage):
    stage.folder.mkdir(parents=True)
    (stage.folder / "history.json").write_text("half", encoding="utf-8")
    (stage.folder / "left-over").touch()
    assert not stage.done
    assert store.finished("train") == []
    with stage.writing() as folder:
        write_json(folder / "history.json", [1])
    assert everything_in(stage.folder) == ["DONE", "config.json", "history.json"]
    assert stage.read("history.json") == [1]


def test_two_that_write_the_same_stage_do_not_disturb_each_other(stage):
    with stage.writing() as one:
        write_json(one / "history.json", "one")
        with stage.writing() as other:
            write_json(other / "history.json", "other")
        assert stage.read("history.json") == "other"
    assert stage.read("history.json") in ("one", "other")
    assert [path.name for path in stage.folder.parent.iterdir()] == [stage.name]


def test_others_may_read_a_finished_stage(stage):
    with stage.writing():
        pass
    assert stage.folder.stat().st_mode & 0o055 == 0o055


def test_finished_lists_one_kind_by_name(store):
    for kind, slug in (("train", "b"), ("train", "a"), ("plan", "a")):
        with store.stage(kind, slug, {}).writing():
            pass
    assert [stage.name.rsplit("-", 1)[0] for stage in store.finished("train")] == ["train-a", "train-b"]
    assert len(store.finished("plan")) == 1


# Several processes.


def test_a_stage_is_owned_by_one_at_a_time_and_by_none_that_is_dead(tmp_path, stage):
    with stage.owned():
        assert stage.busy
        with pytest.raises(BusyError) as error, stage.owned():
            pass
        assert error.value.stage is stage
    assert not stage.busy
    code = (
        "import os, sys, time; from pathlib import Path; from tfprune.experiments.store.stage import Store\n"
        f"with Store(Path(sys.argv[1])).stage('train', 'synthetic-vgg16', {CONFIG!r}).owned():\n"
        "    print('owned', flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "owned\n"
    assert stage.busy
    process.kill()
    process.wait()
    assert not stage.busy


def test_who_owns_a_stage_clears_what_killed_processes_were_writing_for_it(store, stage):
    other = store.stage("train", "synthetic-vgg16", {**CONFIG, "seed": 1})
    for one in (stage, other):
        one.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        (one.folder.parent / f".{one.name}.abc").mkdir(parents=True)
        (one.folder.parent / f".{one.name}.abc" / "weights.npz").touch()
        (one.checkpoint.parent / f".{one.name}.77.npz").touch()
        one.checkpoint.touch()
    with stage.owned():
        assert not list(store.folder.parent.rglob(f".{stage.name}*"))
        assert len(list(store.folder.parent.rglob(f".{other.name}*"))) == 2
        assert stage.checkpoint.exists()


def test_a_finished_stage_needs_no_checkpoint_and_a_failed_one_goes_on_from_none(stage):
    stage.checkpoint.parent.mkdir(parents=True)
    stage.checkpoint.touch()
    stage.fail({"message": "no"})
    assert not stage.checkpoint.exists()
    assert json.loads(stage.failure.read_text()) == {"stage": stage.name, "message": "no"}
    stage.checkpoint.touch()
    with stage.writing():
        pass
    assert not stage.checkpoint.exists()


# Damage.


@pytest.mark.parametrize("change", ["byte", "shorter", "gone", "marker", "not stored"])
def test_a_file_that_is_not_as_it_was_stored_is_not_read(stage, change):
    with stage.writing() as folder:
        save_weights(folder, [np.zeros(3)])
        write_json(folder / "history.json", [1])
    path = stage.folder / "history.json"
    if change == "not stored":
        write_json(stage.folder / "more.json", [1])
    elif change == "gone":
        path.unlink()
    elif change == "marker":
        (stage.folder / "DONE").write_text("{}")
    else:
        path.write_text("[2]\n" if change == "byte" else "")
    with pytest.raises(TfpruneError, match=r"damaged: \w+\.json is not as it was stored\. Delete this folder to redo"):
        stage.read("more.json" if change == "not stored" else "history.json")
    if change != "marker":
        assert len(stage.weights()) == 1


def test_stages_of_another_version_are_left_out_with_a_warning(store, stage):
    with stage.writing():
        pass
    config = stage.folder / "config.json"
    config.write_text(config.read_text().replace('"schema": ', '"schema": 9'))
    with pytest.warns(UserWarning, match=r"1 of the stages train-\* .* cannot be used: another version"):
        assert store.finished("train") == []


# Names.


def test_the_name_is_readable_and_ends_in_eight_hex_digits(stage):
    slug, digest = stage.name.rsplit("-", 1)
    assert slug == "train-synthetic-vgg16"
    assert len(digest) == 8
    int(digest, 16)


def test_the_name_does_not_depend_on_the_order_of_fields_or_the_process(store, stage):
    backwards = dict(reversed(CONFIG.items()))
    assert store.stage("train", "synthetic-vgg16", backwards).name == stage.name
    code = (
        "from tfprune.experiments.store.stage import Store\n"
        f"print(Store('.').stage('train', 'synthetic-vgg16', {backwards!r}).name)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == stage.name


def test_the_name_depends_on_kind_and_every_value(store, stage):
    names = {stage.name, store.stage("plan", "synthetic-vgg16", CONFIG).name}
    for key in CONFIG:
        names.add(store.stage("train", "synthetic-vgg16", {**CONFIG, key: "other"}).name)
    names.add(store.stage("train", "synthetic-vgg16", {**CONFIG, "more": 1}).name)
    assert len({name[-8:] for name in names}) == len(CONFIG) + 3


def test_a_field_with_its_default_value_is_not_hashed():
    key = TrainingKey("synthetic", "vgg16", 0)
    assert key.config() == CONFIG
    spelt_out = TrainingKey(**dataclasses.asdict(key))
    assert spelt_out.config() == CONFIG


def test_every_field_with_another_value_is_hashed():
    key = TrainingKey("synthetic", "vgg16", 0)
    for field in dataclasses.fields(TrainingKey):
        value = getattr(key, field.name)
        other = f"{value}x" if isinstance(value, str) else (value or 0) + 1
        assert dataclasses.replace(key, **{field.name: other}).config() == {**key.config(), field.name: other}


# Weights.


def test_weights_come_back_bit_for_bit_in_order(stage):
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal((2, index)).astype(np.float32) for index in range(25)]
    weights += [np.float32([np.nan, -0.0, np.inf, 1e-45]), np.array(7), np.arange(3, dtype=np.uint32)]
    with stage.writing() as folder:
        save_weights(folder, weights)
    read = stage.weights()
    assert len(read) == len(weights)
    for one, other in zip(weights, read, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()


def test_weights_are_never_unpickled(stage):
    class Harmful:
        def __reduce__(self):
            return (pytest.fail, ("code in a weights file was run",))

    with stage.writing() as folder:
        np.savez(folder / "weights.npz", w0=np.array([Harmful()], dtype=object))
    with pytest.raises(TfpruneError, match=r"damaged.*weights\.npz"):
        stage.weights()
