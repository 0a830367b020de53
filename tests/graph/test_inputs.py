"""Random inputs, of whole numbers that a model can take."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfprune.errors import PlanError
from tfprune.graph.inputs import inputs_that_work


class Table(layers.Layer):
    """A table of words that is no embedding of Keras, so that nobody knows how many words there are."""

    def __init__(self, words, **options):
        super().__init__(**options)
        self.words = words

    def build(self, shape):
        self.table = self.add_weight(shape=(self.words, 4), name="table")

    def call(self, tokens):
        return ops.take(self.table, tokens, axis=0)


def reading(words, length=5):
    tokens = keras.Input((length,), dtype="int32", name="tokens")
    return keras.Model(tokens, layers.Dense(2)(Table(words)(tokens)), name="reading")


@pytest.mark.parametrize(("words", "below"), [(300, 256), (256, 256), (100, 64), (64, 64), (20, 16), (3, 2)])
@pytest.mark.parametrize("length", [5, None])
def test_whole_numbers_are_as_large_as_a_table_of_ones_own_allows(words, below, length):
    (tokens,) = inputs_that_work(reading(words, length), 64)
    assert tokens.shape == (64, length or 32)
    assert below // 2 - 1 <= tokens.max() < below
    assert len(np.unique(tokens)) > below // 2


def test_a_model_that_takes_no_whole_numbers_is_told_with_the_reason():
    told = r"'reading' takes no random whole numbers, not those below 256, 64, 16, 4, 2 either .*Give inputs="
    with pytest.raises(PlanError, match=told):
        inputs_that_work(reading(1), 3)
