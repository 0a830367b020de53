import pytest
from absl import flags
from keras import layers

from tests.helpers import network
from tfprune.errors import UsageError
from tfprune.experiments import coverage, export_coverage

MADE = []


@pytest.fixture
def two_networks(monkeypatch):
    MADE.clear()

    def make(name, layer, shape):
        MADE.append(name)
        return network(layer, shape)

    networks = {
        "plain": lambda: make("plain", lambda x: layers.Dense(3)(x), (5,)),
        "loops": lambda: make("loops", lambda x: layers.LSTM(3, name="over_time")(x), (4, 5)),
    }
    monkeypatch.setitem(export_coverage.LIBRARIES, "two", networks.items)


def run(*argv):
    values = flags.FlagValues()
    coverage.define_flags(values)
    values(["coverage", "--library=two", *argv])
    coverage.run(values, [])


def test_the_table_tells_what_every_format_gave_or_which_layers_refuse_it(two_networks, tmp_path):
    output = tmp_path / "exports.md"
    run("--formats=keras,litert", f"--output={output}", "--only=loops")
    run("--formats=keras,litert", f"--output={output}")
    assert MADE == ["loops", "plain"]  # what is there is not done again
    lines = [line for line in output.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    assert cells["network"] == ["params", "keras", "litert"]
    assert cells["plain"][1].startswith("1 MiB, 0e+00, ")
    assert cells["plain"][2].startswith("1 MiB, ")
    assert cells["loops"][1].startswith("1 MiB, 0e+00, ")
    assert cells["loops"][2].startswith("over_time (LSTM) would run a loop")


def test_a_format_or_library_that_is_none_and_another_table_are_told(two_networks, tmp_path):
    with pytest.raises(UsageError, match="onyx"):
        run("--formats=onyx")
    with pytest.raises(UsageError, match="--formats= is for networks of one size"):
        run("--formats=keras", "--library=keras_applications")
    output = tmp_path / "other.md"
    output.write_text("| network | params | onnx |\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"other\.md is no table of the formats keras"):
        run("--formats=keras", f"--output={output}")
