import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.width_tables import WIDTHS, blocks_of, leaves_the_fast_way
from tfprune.engines.names import ENGINE_NAMES
from tfprune.engines.width_tables import widths
from tfprune.engines.width_tables.widths import (
    KINDS,
    MULTIPLES,
    SHIPPED,
    Measured,
    best_multiple,
    measured_path,
    read_tables,
    widths_for,
)  # fmt: skip
from tfprune.errors import UsageError


@pytest.mark.parametrize("size", [1, 16, 32])
@pytest.mark.parametrize("call", [0.0, 5.0])
def test_the_best_multiple_is_the_block_that_an_engine_computes(size, call):
    assert best_multiple(blocks_of(size, call), noise=0.0) == size


@pytest.mark.parametrize("multiple", MULTIPLES)
def test_the_best_multiple_keeps_an_engine_on_its_fast_way(multiple):
    assert best_multiple(leaves_the_fast_way(multiple, 1.3), noise=0.0) == multiple


def test_a_coarser_multiple_has_to_bring_more_than_the_noise():
    seconds = leaves_the_fast_way(16, 1.08)
    assert best_multiple(seconds, noise=0.01) == 16
    assert best_multiple(seconds, noise=0.1) == 1
    assert best_multiple(leaves_the_fast_way(16, 1.01), noise=0.0) == 1


@pytest.mark.parametrize("size", [16, 32])
def test_the_best_multiple_is_that_of_rounding_all_widths_up(size):
    # By brute force over every width there is, beside the few that are measured.
    every = [*range(33, 65), *range(97, 129)]
    rounded = {m: [math.ceil(width / m) * m for width in every] for m in MULTIPLES}
    costs = {m: np.mean([math.ceil(width / size) * size / width for width in own]) for m, own in rounded.items()}
    assert best_multiple(blocks_of(size), 0.0) == next(m for m in MULTIPLES if costs[m] <= 1.03 * min(costs.values()))


@pytest.mark.parametrize("size", [16, 32])
def test_times_of_other_widths_are_those_of_their_blocks(size):
    table = Measured(blocks_of(size), 0.0, size)
    for width in (*range(33, 65), 200, 255, 256, 257, 500, 511):
        assert table.relative(width) == pytest.approx(math.ceil(width / size) * size, rel=0.04)


def test_times_off_the_fast_way_are_as_many_times_longer_at_any_width():
    table = Measured(leaves_the_fast_way(4, 3.0), 0.0, 4)
    assert table.relative(1023) == pytest.approx(3 * 1023)
    assert table.relative(1020) == pytest.approx(1020)
    assert table.relative(17) == pytest.approx(3 * 17)


def test_the_shipped_table_is_of_every_engine_and_says_what_follows_from_its_times():
    content, tables = json.loads(SHIPPED.read_text()), read_tables(SHIPPED)
    assert tuple(tables) == ENGINE_NAMES
    assert content["command"] == "python -m tfprune.experiments.bench --only=widths"
    for engine, table in tables.items():
        assert table.processor
        assert {"tensorflow", "keras", "onnxruntime", "openvino"} == set(table.packages)
        for kind in KINDS:
            own = table.kinds[kind]
            assert sorted(own.seconds) == sorted(WIDTHS), (engine, kind)
            assert own.multiple == best_multiple(own.seconds, own.noise), (engine, kind)
            assert 0 <= own.noise < 0.05


def test_the_package_ships_the_table():
    assert "tfprune.engines.width_tables = *.json" in (Path(__file__).parents[2] / "setup.cfg").read_text()


def test_what_the_shipped_table_says_of_the_engines_that_it_was_measured_in():
    # The wide margins only: these are figures of one processor.
    assert widths_for("litert").kinds["conv3x3"].multiple == 32
    depthwise = widths_for("onnxruntime").kinds["depthwise"]
    assert depthwise.multiple >= 4
    assert depthwise.relative(95) > 2 * depthwise.relative(96)


def test_the_table_of_this_machine_is_where_the_variable_says_or_where_the_command_puts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(widths.VARIABLE, raising=False)
    with pytest.raises(
        UsageError, match=r"no width table 'bench/widths.json'; `python -m tfprune.experiments.bench --o"
    ):
        measured_path()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "widths.json").write_text("")
    assert measured_path() == Path("bench/widths.json")
    monkeypatch.setenv(widths.VARIABLE, "mine.json")
    with pytest.raises(UsageError, match=r"'mine.json'.*TFPRUNE_WIDTHS"):
        measured_path()
    (tmp_path / "mine.json").write_text("")
    assert measured_path() == Path("mine.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-9], "is no JSON"),
        (lambda text: "[]", "has the format None"),
        (
            lambda text: text.replace("widths 1", "widths 9"),
            "has the format 'tfprune widths 9', not 'tfprune widths 1'",
        ),
        (lambda text: text.replace('"depthwise"', '"other"'), "is damaged .KeyError: 'depthwise'."),
        (lambda text: text.replace('"multiple": 16', '"multiple": 12'), "is damaged"),
        (lambda text: text.replace('"32": ', '"32": -'), "is damaged"),
        (lambda text: text.replace('"32"', '"x"'), "is damaged"),
        (lambda text: text.replace('"processor"', '"machine"'), "is damaged"),
    ],
)
def test_a_table_that_is_broken_is_told_in_one_line(change, words, tmp_path):
    path = tmp_path / "widths.json"
    path.write_text(change(SHIPPED.read_text()))
    with pytest.raises(UsageError, match=words) as told:
        read_tables(path)
    assert "\n" not in str(told.value)
    assert "bench --only=widths" in str(told.value)


def test_a_table_that_is_not_there_and_an_engine_that_is_not_in_it_are_told(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        read_tables(tmp_path / "none.json")
    with pytest.raises(UsageError, match=r"Unknown engine 'tensorrt'\. Valid: 'keras', 'saved_model'"):
        widths_for("tensorrt")
