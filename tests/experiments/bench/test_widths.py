import json
import types

import pytest

from tests.width_tables import blocks_of, leaves_the_fast_way
from tfprune.engines.names import ENGINE_NAMES
from tfprune.engines.width_tables.widths import KINDS, read_tables
from tfprune.errors import TfpruneError, UsageError
from tfprune.experiments.bench import outputs, widths
from tfprune.experiments.bench.rows import COST
from tfprune.support.machine import processor


@pytest.fixture
def timed(monkeypatch):
    """Times in the place of those of every engine but OpenVINO, which is not installed; what was asked for."""
    asked = []

    def run(command, **_):
        *_, engine, rounds, blocks = command
        asked.append((engine, int(rounds), int(blocks)))
        assert command[1:3] == ["-m", "tfprune.experiments.width_times"]
        kinds = {"conv3x3": blocks_of(32), "conv1x1": blocks_of(16), "inputs": blocks_of(1)}
        kinds["depthwise"] = leaves_the_fast_way(4, 4.0)
        own = {kind: {"seconds": times, "noise": 0.004} for kind, times in kinds.items()}
        return types.SimpleNamespace(returncode=0, stdout=f"noise\n{json.dumps(own)}\n")

    def engine_named(engine):
        if engine == "openvino":
            raise UsageError("openvino needs openvino: pip install 'tfprune[openvino]'.")

    monkeypatch.setattr(widths, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr(widths, "engine_named", engine_named)
    return asked


def test_every_engine_is_timed_and_the_table_is_what_plans_read(timed, tmp_path):
    rows = list(widths.measure(False, tmp_path))
    assert timed == [(engine, 60, 2) for engine in ENGINE_NAMES if engine != "openvino"]
    tables = read_tables(tmp_path / "widths.json")
    assert list(tables) == [engine for engine, *_ in timed]
    for table in tables.values():
        assert table.processor == processor()
        assert {kind: table.kinds[kind].multiple for kind in KINDS} == {
            "conv3x3": 32, "conv1x1": 16, "inputs": 1, "depthwise": 4,
        }  # fmt: skip
        assert table.kinds["conv3x3"].seconds == blocks_of(32)
        assert table.packages["keras"]
    assert (tmp_path / "figures" / "widths.png").stat().st_size > 10_000
    missing = rows.pop()
    assert (missing.name, missing.ratio) == ("openvino", None)
    assert "pip install 'tfprune[openvino]'" in missing.note
    assert len(rows) == 4 * len(KINDS)
    (row,) = (row for row in rows if row.name.startswith("litert, outputs of 3x3 convolutions"))
    assert row.name.endswith("a channel in multiples of 32")
    assert (row.measure, row.value) == (COST, "uncertain by 0.4%")
    assert 0.7 < row.ratio < 0.9
    outputs.store(tmp_path, "widths", rows)
    assert "figures/widths.png" in (tmp_path / "bench.md").read_text()


def test_quick_takes_fewer_rounds_and_widths(timed, tmp_path):
    list(widths.measure(True, tmp_path))
    assert timed[0] == ("keras", 10, 1)


def test_an_engine_that_fails_is_told_in_one_line(monkeypatch, tmp_path):
    failed = types.SimpleNamespace(returncode=3, stdout="", stderr="Traceback\n  more\nValueError: what it was\n")
    monkeypatch.setattr(widths, "subprocess", types.SimpleNamespace(run=lambda *_, **__: failed))
    with pytest.raises(TfpruneError, match="widths in keras failed with exit status 3: ValueError: what it was"):
        list(widths.measure(True, tmp_path))
