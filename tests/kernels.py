"""A network with kernels of every kind, and their names."""

import keras
from keras import layers


class Own(layers.Layer):
    """A dense layer inside, a weight by TFMOT's convention, and one that nobody can know of."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4)

    def build(self, shape):
        self.inner.build(shape)
        self.table = self.add_weight(shape=(4, 4), name="table")
        self.other = self.add_weight(shape=(4, 4), name="other")

    def call(self, x):
        return keras.ops.matmul(self.inner(x), self.table) + keras.ops.matmul(x, self.other)

    def get_prunable_weights(self):
        return [self.table]


def every_kind():
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 4, name="embedding")(tokens)
    x = layers.Bidirectional(layers.LSTM(2, return_sequences=True), name="both")(x)
    x = Own(name="own")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.TimeDistributed(layers.Dense(5), name="timed")(x)
    x = layers.EinsumDense("abc,cd->abd", output_shape=(None, 4), name="einsum")(x)
    x = layers.SeparableConv1D(3, 2, name="separable")(x)
    x = layers.DepthwiseConv1D(2, name="depthwise")(x)
    nested = keras.Sequential([keras.Input((4, 3)), layers.Conv1D(4, 2, name="inside")], name="nested")
    return keras.Model(tokens, layers.Dense(2, name="head")(layers.GRU(3, name="gru")(nested(x))))


EVERY_NAME = [
    "embedding/embeddings",
    *(f"both/{cell}/{kernel}" for cell in ("lstm_cell", "lstm_cell_2") for kernel in ("kernel", "recurrent_kernel")),
    "own/table", "own/dense/kernel",
    *(f"attention/{part}/kernel" for part in ("query", "key", "value", "attention_output")),
    "timed/dense/kernel", "einsum/kernel", "separable/depthwise_kernel", "separable/pointwise_kernel", "depthwise",
    "inside", "gru/gru_cell/kernel", "gru/gru_cell/recurrent_kernel", "head",
]  # fmt: skip
