import csv
import dataclasses

import pytest

import tfprune
from tests.helpers import plain_cnn
from tests.stages import CONTRACT, ROW, write_stage
from tfprune.experiments.store.rows import REGIME_ORDER, Row, collect, failed_runs, replace_csv, write_csv
from tfprune.experiments.store.stage import Store, write_json


@pytest.fixture(scope="module")
def plan():
    return tfprune.plan_channels(plain_cnn(), ratio=0.5)


def test_the_csv_has_the_columns_of_the_contract_and_one_line_a_row(tmp_path):
    rows = [ROW, dataclasses.replace(ROW, model='a,b"c', regime="pruned")]
    write_csv(tmp_path / "results.csv", rows)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert set(CONTRACT) <= set(read[0])
    assert len(read) == 2
    for row, line in zip(rows, read, strict=True):
        for field in dataclasses.fields(Row):
            value = getattr(row, field.name)
            assert type(value)(line[field.name]) == value  # floats to the last digit
    assert "\r" not in (tmp_path / "results.csv").read_bytes().decode()


def test_rows_and_plans_of_finished_stages_are_collected_in_order(tmp_path, plan):
    store = Store(tmp_path)

    def row(regime, seed, **changes):
        return dataclasses.replace(ROW, regime=regime, seed=seed, **changes)

    for seed in (1, 0):
        write_stage(store, "scratch_b", [row("scratch_b", seed, epochs=12)])
        write_stage(store, "scratch_e", [row("scratch_e", seed)])
        for ticket in ("random_ticket", "winning_ticket"):
            write_stage(store, ticket, [row(ticket, seed)])
        write_stage(store, "finetune", [row("finetune", seed)])
        write_stage(store, "plan", [row("pruned", seed), row("unpruned", seed)], plan)
    other = {"method": "l1_norm", "study": "bbbbbbbb"}
    write_stage(store, "finetune", [row("finetune", 0, **other)])
    write_stage(store, "plan", [row("unpruned", 0, **other)], plan)
    write_stage(store, "finetune", [row("finetune", 3, study="cccccccc")])  # whose plan is gone
    with pytest.warns(UserWarning, match="seed 3 of .* is left out: its plan is not in"):
        results = collect(tmp_path)
    expected = [("l1_norm", "unpruned", 0), ("l1_norm", "finetune", 0)]
    expected += [("uniform", regime, seed) for regime in REGIME_ORDER for seed in (0, 1)]
    assert [(r.method, r.regime, r.seed) for r in results.rows] == expected
    assert sorted(results.plans) == [("aaaaaaaa", 0), ("aaaaaaaa", 1), ("bbbbbbbb", 0)]
    assert results.plans["aaaaaaaa", 0].keep == plan.keep
    stages = results.stages["aaaaaaaa", 1]
    kinds = {regime: stage.folder.name.partition("-")[0] for regime, stage in stages.items()}
    assert kinds == {"unpruned": "train", "pruned": "plan", **{regime: regime for regime in REGIME_ORDER[2:]}}
    assert all(len(stage.weights()) == 2 for stage in stages.values())


def test_regimes_are_in_the_order_of_the_contract():
    assert REGIME_ORDER[:5] == ("unpruned", "pruned", "finetune", "scratch_e", "scratch_b")
    assert REGIME_ORDER[5:] == ("winning_ticket", "random_ticket")


def test_what_is_not_finished_is_not_collected(tmp_path):
    store = Store(tmp_path)
    write_stage(store, "finetune", [ROW])
    (stage,) = store.finished("finetune")
    (stage.folder / "DONE").unlink()
    assert collect(tmp_path).rows == []
    assert collect(tmp_path / "nowhere").rows == []


def edited(path, *lines):
    """Writes lines of texts, as a spreadsheet program does."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\r\n").writerows(lines)


def lines_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_a_csv_that_only_lacks_lines_is_replaced(tmp_path):
    path, more = tmp_path / "results.csv", dataclasses.replace(ROW, seed=1)
    assert replace_csv(path, [ROW]) is None
    header, line = lines_of(path)
    edited(path, header, line)  # other line ends, the same values
    assert replace_csv(path, [more, ROW]) is None
    assert lines_of(path) == [header, [*line[:6], "1", *line[7:]], line]
    assert [file.name for file in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    "change",
    [
        lambda header, line: [header, [*line[:7], "0.99", *line[8:]]],  # an accuracy
        lambda header, line: [header, line, [*line[:6], "7", *line[7:]]],  # a line that no stage has
        lambda header, line: [header[:-1], line[:-1]],  # of a version with fewer columns
        lambda header, line: [[*header, "note"], [*line, "mine"]],
    ],
)
def test_a_csv_with_anything_that_is_not_in_the_stages_is_kept(change, tmp_path):
    path = tmp_path / "results.csv"
    write_csv(path, [ROW])
    header, line = lines_of(path)
    edited(path, *change(header, line))
    before = path.read_bytes()
    assert replace_csv(path, [ROW]) == tmp_path / "results.edited.csv"
    assert (tmp_path / "results.edited.csv").read_bytes() == before
    assert lines_of(path) == [header, line]
    path.write_bytes(before + b"\xff")  # edited again, and no text
    assert replace_csv(path, [ROW]) == tmp_path / "results.edited-2.csv"
    assert (tmp_path / "results.edited.csv").read_bytes() == before
    assert replace_csv(path, [ROW]) is None


def test_failed_runs_are_read_and_a_damaged_record_is_named(tmp_path):
    folder = tmp_path / "failed"
    assert failed_runs(tmp_path) == []
    folder.mkdir()
    record = {"stage": "a", "seed": 3, "what": "train", "setting": "vgg16, uniform", "message": "diverged", "more": [1]}
    write_json(folder / "train-a.json", record)
    write_json(folder / "train-b.json", {"message": "no more is known"})
    (folder / "train-c.json").write_text('{"sta', encoding="utf-8")
    write_json(folder / "train-d.json", ["not", "an", "object"])
    found = {failure.stage: failure for failure in failed_runs(tmp_path)}
    assert list(found) == ["train-a", "train-b", "train-c", "train-d"]
    first = found["train-a"]
    assert (first.what, first.setting, first.seed, first.message) == ("train", "vgg16, uniform", "3", "diverged")
    assert found["train-b"].message == "no more is known"
    assert all("cannot be read" in found[name].message for name in ("train-c", "train-d"))


def test_what_failed_once_and_was_done_since_has_not_failed(tmp_path):
    name = write_stage(Store(tmp_path), "finetune", [ROW])
    (tmp_path / "failed").mkdir()
    write_json(tmp_path / "failed" / f"{name}.json", {"message": "diverged"})
    assert failed_runs(tmp_path) == []
    (tmp_path / "stages" / name / "DONE").unlink()
    assert [failure.stage for failure in failed_runs(tmp_path)] == [name]
