"""The report on the networks of a library, on a library of our own."""

import functools

import keras
import pytest
from keras import layers

from tfprune.experiments import coverage, libraries


def encoder(vocabulary_size, hidden_dim, intermediate_dim, dropout=0.1):
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(vocabulary_size, hidden_dim, name="words")(tokens)
    y = layers.Dense(intermediate_dim, activation="gelu", name="wide")(layers.LayerNormalization(name="norm")(x))
    return keras.Model(tokens, layers.Add()([x, layers.Dense(hidden_dim, name="narrow")(y)]))


def frozen(image_shape=(9, 9, 3)):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, layers.Softmax()(inputs))


def failing(unheard_of):
    return None


@pytest.fixture
def mine(monkeypatch):
    own = {name.__name__.title(): functools.partial(libraries._small, "", name) for name in (encoder, failing, frozen)}
    monkeypatch.setitem(libraries.LIBRARIES, "mine", lambda: iter(own.items()))


def test_every_network_is_planned_proved_and_rebuilt_or_told(mine, tmp_path, capsys):
    output = tmp_path / "results" / "mine.md"
    assert coverage.main(["--library=mine", f"--output={output}"]) == 0
    text = output.read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| Enc")]
    frozen_row, narrowed = ([cell.strip() for cell in row] for row in rows)
    assert (frozen_row[3], narrowed[3]) == ("frozen", "narrowed")
    assert float(narrowed[4]) > float(frozen_row[4]) > 0.2
    assert narrowed[7:9] == ["4 of 4", "yes"]
    assert "not built: TypeError: failing() missing" in text
    assert text.count("refused: Nothing in") == 1  # with both meanings, which are the same for it
    assert "frozen or narrowed" in text
    shown = capsys.readouterr().out
    assert "2 networks were built." in shown
    assert "Normalizations narrowed: 1 planned, proved, rebuilt and saved" in shown


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--library=minne"], "Unknown library 'minne'. Did you mean 'mine'?"),
        (["--library=mine", "--only=Encode"], "Unknown network 'Encode'. Did you mean 'Encoder'?"),
        (["Encoder"], "Unexpected argument 'Encoder'"),
        (["--library=gone"], "--library=gone is not installed: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_a_mistake_is_told_in_one_line(argv, told, mine, monkeypatch, capsys):
    monkeypatch.setitem(libraries.LIBRARIES, "gone", lambda: iter([__import__("not_there")]))
    assert coverage.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
