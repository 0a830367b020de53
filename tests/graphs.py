"""Random functional graphs: a recipe as plain data, which hypothesis can draw, shrink and print, and its builder.

A recipe names the inputs and a list of steps `(block, first, second, width, option)`. A step picks its operands
among the tensors made so far, counted from the latest one, and turns them into the kind that its block needs, so
that every recipe is a valid network. What nobody reads in the end goes to the heads.
"""

from __future__ import annotations

import keras
from hypothesis import strategies as st
from keras import layers, ops

from tests.helpers import randomize

SHAPES = {"image": (6, 7, 3), "sequence": (5, 4), "vector": (6,), "words": (5,)}
RANKS = {"image": 4, "sequence": 3, "vector": 2}
ACTIVATIONS = ("relu", "tanh", "gelu", "linear", "sigmoid", "elu", "silu", "softplus")
MERGES = (layers.Add, layers.Multiply, layers.Maximum, layers.Average, layers.Subtract, layers.Minimum)
BLOCKS = {}


def block(*kinds):
    """Registers a block: a function of operands of these kinds, a width and an option, giving one or more tensors."""

    def register(function):
        BLOCKS[function.__name__] = (kinds, function)
        return function

    return register


def recipes():
    """Strategy of recipes."""
    step = st.tuples(
        st.sampled_from(sorted(BLOCKS)), st.integers(0, 2), st.integers(0, 3), st.integers(2, 12), st.integers(0, 11)
    )
    return st.fixed_dictionaries(
        {
            "inputs": st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=2),
            "steps": st.lists(step, min_size=3, max_size=9),
            "heads": st.integers(1, 2),
            "seed": st.integers(0, 99),
        }
    )


def build(recipe):
    """The model that a recipe describes, with random weights."""
    # The same recipe gives the same names; to collect garbage each time would take four fifths of the time.
    keras.backend.clear_session(free_memory=False)
    inputs = [keras.Input(SHAPES[kind], dtype="int32" if kind == "words" else None) for kind in recipe["inputs"]]
    made = [layers.Embedding(20, 6)(x) if x.dtype == "int32" else x for x in inputs]
    read = set()

    def pick(kind, index):
        found = [x for x in made if len(x.shape) == RANKS[kind]] or [made[-1]]
        chosen = found[-1 - index % len(found)]
        read.add(id(chosen))
        return as_kind(chosen, kind)

    for name, first, second, width, option in recipe["steps"]:
        kinds, function = BLOCKS[name]
        operands = [pick(kind, index) for kind, index in zip(kinds, (first, second), strict=False)]
        outputs = function(*operands, width, option)
        made.extend(outputs if isinstance(outputs, list) else [outputs])
    loose = [x for x in made if id(x) not in read]
    outputs = heads(loose, recipe["heads"], recipe["seed"])
    return randomize(keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs), recipe["seed"])


def heads(tensors, count, option):
    """Dense outputs of all tensors, dealt out to `count` heads; a map may be flattened or pooled."""
    vectors = []
    for index, x in enumerate(tensors):
        flat = (option + index) % 3 == 0
        vectors.append(x if len(x.shape) == 2 else layers.Flatten()(x) if flat else as_kind(x, "vector"))
    dealt = [vectors[start::count] for start in range(min(count, len(vectors)))]
    return [layers.Dense(3)(layers.Concatenate()(part) if len(part) > 1 else part[0]) for part in dealt]


def as_kind(x, kind):
    """A tensor as another kind: an image as the sequence of its pixels, a vector as a small image."""
    if len(x.shape) == RANKS[kind]:
        return x
    if kind == "vector":
        return layers.GlobalAveragePooling1D()(x) if len(x.shape) == 3 else layers.GlobalMaxPooling2D()(x)
    if kind == "sequence":
        if len(x.shape) == 2:
            return layers.RepeatVector(3)(x)
        return layers.Reshape((x.shape[1] * x.shape[2], x.shape[3]))(x)
    if len(x.shape) == 3:
        return layers.Reshape((x.shape[1], 1, x.shape[2]))(x)
    return layers.Reshape((4, 4, 3))(layers.Dense(48)(x))


def alike(x, y):
    """`y` in the shape of `x`."""
    if len(x.shape) == 4 and x.shape[1:3] != y.shape[1:3]:
        y = layers.Resizing(*x.shape[1:3])(y)
    if len(x.shape) == 3 and x.shape[1] != y.shape[1]:
        y = layers.RepeatVector(x.shape[1])(layers.GlobalMaxPooling1D()(y))
    return y if x.shape[-1] == y.shape[-1] else layers.Dense(x.shape[-1])(y)


def divisor(number, option):
    """A divisor of a number above one, or the number itself if it is prime."""
    found = [d for d in range(2, number + 1) if number % d == 0] or [1]
    return found[option % len(found)]


# Images.


@block("image")
def conv(x, width, option):
    settings = ({"strides": 2}, {"dilation_rate": 2}, {"use_bias": False}, {})[option % 4]
    activation = ACTIVATIONS[width % len(ACTIVATIONS)] if option > 5 else None
    return layers.Conv2D(width, 3, padding="same", activation=activation, **settings)(x)


@block("image")
def conv_norm_relu(x, width, option):
    x = layers.Conv2D(width, 1 + option % 3, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(scale=option != 5, center=option != 7)(x))


@block("image")
def grouped(x, width, option):
    groups = divisor(x.shape[-1], option)
    return layers.Conv2D(groups * max(1, width // groups), 3, padding="same", groups=groups)(x)


@block("image")
def depthwise(x, width, option):
    return layers.DepthwiseConv2D(
        3, padding="same", depth_multiplier=1 + width % 2, activation=ACTIVATIONS[option % 8]
    )(x)


@block("image")
def depthwise_as_grouped(x, width, option):
    channels = x.shape[-1]
    return layers.Conv2D(channels * (1 + option % 2), 3, padding="same", groups=channels, use_bias=width % 2 == 0)(x)


@block("image")
def separable(x, width, option):
    return layers.SeparableConv2D(width, 3, padding="same", depth_multiplier=1 + option % 2, use_bias=option > 3)(x)


@block("image")
def transposed_conv(x, width, option):
    x = layers.Conv2DTranspose(width, 3, strides=2, padding="same", use_bias=option % 2 == 0)(x)
    return layers.AveragePooling2D(2, padding="same")(x)


@block("image")
def positions(x, width, option):
    """Layers that move or reduce positions."""
    layer = (
        layers.MaxPooling2D(2, strides=1 + width % 2, padding="same"),
        layers.AveragePooling2D(2, strides=1, padding="same"),
        layers.ZeroPadding2D(((1, 0), (0, 2))),
        layers.Cropping2D(((1, 0), (0, 1))) if min(x.shape[1:3]) > 2 else layers.ZeroPadding2D(1),
        layers.UpSampling2D(2) if x.shape[1] < 6 else layers.MaxPooling2D(2),
        layers.Resizing(5, 4),
    )[option % 6]
    return layer(x)


@block("image")
def normalization(x, width, option):
    groups = (-1, 1, divisor(x.shape[-1], width))[option % 3]
    layer = (
        layers.BatchNormalization(),
        layers.LayerNormalization(axis=-1 if width < 4 else [1, 2]),
        layers.GroupNormalization(groups),
        layers.BatchNormalization(scale=False),
    )[option % 4]
    return layer(x)


@block("image")
def pointwise(x, width, option):
    layer = (
        layers.PReLU(shared_axes=[1, 2]),
        layers.PReLU(),
        layers.LeakyReLU(),
        layers.Activation(ACTIVATIONS[width % len(ACTIVATIONS)]),
        layers.SpatialDropout2D(0.3),
        layers.Dropout(0.2),
        ops.abs,
        lambda x: 2.0 * x - 0.5,
        layers.ELU(),
        layers.Softmax(axis=(1, 2)),
        lambda x: ops.softmax(x, axis=-1),
        layers.Rescaling(0.5, 0.1),
    )[option % 12]
    return layer(x)


@block("image")
def squeeze_and_excite(x, width, option):
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x) if option % 2 else ops.mean(x, axis=(1, 2), keepdims=True)
    gate = layers.Conv2D(width, 1, activation="relu")(gate) if option % 3 else layers.Dense(width)(gate)
    gate = layers.Dense(x.shape[-1], activation="sigmoid")(gate)
    return layers.Multiply()([x, gate]) if option < 6 else x * gate


@block("image", "image")
def merge(x, y, width, option):
    return MERGES[option % len(MERGES)]()([x, alike(x, y)])


@block("image", "vector")
def merge_with_a_vector(x, y, width, option):
    return MERGES[option % len(MERGES)]()([x, alike(layers.GlobalMaxPooling2D()(x), y)])


@block("image")
def residual(x, width, option):
    y = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    y = layers.Conv2D(x.shape[-1], 1)(layers.DepthwiseConv2D(3, padding="same")(y) if option % 2 else y)
    return layers.ReLU()(x + y) if option % 3 else layers.Add()([y, x])


@block("image", "image")
def concatenation(x, y, width, option):
    if option % 3:
        y = layers.Resizing(*x.shape[1:3])(y) if x.shape[1:3] != y.shape[1:3] else y
        return layers.Concatenate()([x, y, x] if option == 5 else [x, y])
    return layers.Concatenate(axis=1 + width % 2)([x, alike(x, layers.Conv2D(width, 1)(y))])


@block("image")
def halves(x, width, option):
    """Channels split in two; one part goes through a layer, and both are joined or go on alone."""
    cut = max(1, min(x.shape[-1] - 1, width // 2))
    if x.shape[-1] == 1:
        return x
    one, two = (x[..., :cut], x[..., cut:]) if option % 2 else ops.split(x, [cut], axis=-1)
    one = layers.Conv2D(width, 3, padding="same")(one) if option % 3 == 0 else layers.ReLU()(one)
    return [one, two] if option > 7 else ops.concatenate([two, one], axis=-1)


@block("image")
def sections(x, width, option):
    """Channels split in equal parts that are added up."""
    return layers.Add()(ops.split(x, divisor(x.shape[-1], option), axis=-1)) if x.shape[-1] > 1 else x


@block("image")
def shuffle(x, width, option):
    rows, columns, channels = x.shape[1:]
    groups = divisor(channels, option)
    x = layers.Reshape(
        (rows, columns, groups, channels // groups) if width % 2 else (rows, -1, groups, channels // groups)
    )(x)
    return layers.Reshape((rows, columns, channels))(layers.Permute((1, 2, 4, 3))(x))


@block("image")
def groups_summed(x, width, option):
    """Maxout and its kin: channels in groups, and a reduction over one of the two axes."""
    groups = divisor(x.shape[-1], option)
    x = ops.reshape(x, (-1, *x.shape[1:3], groups, x.shape[-1] // groups))
    return (ops.max if option > 9 else ops.sum)(x, axis=3 + width % 2)


@block("image")
def axes_moved(x, width, option):
    if option % 3 == 0:
        return layers.Permute((2, 1, 3))(x)
    x = layers.Permute((3, 1, 2))(x) if option % 2 else ops.transpose(x, (0, 3, 1, 2))
    x = layers.BatchNormalization(axis=1)(x) if width % 2 else ops.expand_dims(ops.flip(x, axis=2), 1)[:, 0]
    return ops.transpose(x, (0, 2, 3, 1)) if option < 9 else x


@block("image")
def padded_channels(x, width, option):
    return ops.pad(x, ((0, 0), (0, width % 2), (0, 0), (option % 3, 1 + option % 2)))


@block("image", "image")
def zero_padded_shortcut(x, y, width, option):
    wide = layers.Conv2D(x.shape[-1] + 3, 3, padding="same")(x)
    return layers.Add()([ops.pad(x, ((0, 0), (0, 0), (0, 0), (option % 4, 3 - option % 4))), wide])


@block("image", "image")
def shared_conv(x, y, width, option):
    y = alike(x, y)
    shared = layers.Conv2D(x.shape[-1], 3, padding="same", activation="relu")
    return shared(shared(x)) if option % 3 == 0 else [shared(x), shared(y)]


@block("image", "image")
def nested(x, y, width, option):
    """A functional model, called twice, with slices, padding and a shuffle inside."""
    inner_input = keras.Input(x.shape[1:])
    inner = layers.Conv2D(width, 1)(inner_input)
    inner = (pointwise, halves, padded_channels, shuffle, normalization, grouped)[option % 6](inner, width, option // 2)
    joined = ops.concatenate(inner, axis=-1) if isinstance(inner, list) else inner
    model = keras.Model(inner_input, joined)
    return [model(x), model(alike(x, y))]


@block("image", "image")
def nested_without_a_producer(x, y, width, option):
    """The operations that hold sizes in their configs, shared by two streams."""
    inner_input = keras.Input(x.shape[1:])
    inner = (padded_channels, shuffle, halves, axes_moved, positions, pointwise)[option % 6](inner_input, width, 1)
    model = keras.Model(inner_input, inner)
    return layers.Concatenate()([model(x), model(layers.Conv2D(x.shape[-1], 1)(alike(x, y)))])


@block("image")
def sequential(x, width, option):
    stack = [layers.Conv2D(width, 1), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(width + 1, 2)]
    return keras.Sequential(stack[: 1 + option % 3] if min(x.shape[1:3]) < 2 else stack)(x)


@block("image", "image")
def stacked(x, y, width, option):
    """Two maps on a new axis, which is reduced or merged with the channels."""
    x = ops.stack([x, alike(x, layers.Conv2D(width, 1)(y))], axis=3 + option % 2)
    if option % 3 == 0:
        return layers.Reshape((*x.shape[1:3], x.shape[3] * x.shape[4]))(x)
    return (ops.sum, ops.mean, ops.max)[option // 4](x, axis=3 + option % 2)


@block("image")
def reduced(x, width, option):
    """Something of all channels gates each of them."""
    whole = (ops.mean, ops.sum, ops.max)[option % 3](x, axis=-1, keepdims=True)
    return x * ops.sigmoid(layers.Conv2D(1, 3, padding="same")(whole) if width % 2 else whole)


@block("image", "image")
def over_time(x, y, width, option):
    """Frames: a layer applied to each, and twice if the option says so."""
    x = ops.stack([x, alike(x, y)], axis=1)
    convolve = layers.TimeDistributed(layers.Conv2D(x.shape[-1], 3, padding="same"))
    x = convolve(convolve(x)) if option % 3 == 0 else convolve(x)
    layer = (
        layers.BatchNormalization(),
        layers.MaxPooling2D(1),
        layers.DepthwiseConv2D(3, padding="same"),
        layers.ReLU(),
    )
    x = layers.TimeDistributed(layer[option % 4])(x)
    if width % 3 == 0:
        return layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    if width % 3 == 1:
        return layers.TimeDistributed(layers.Flatten())(x)
    return ops.squeeze(x[:, :1], axis=1)


@block("image")
def rows(x, width, option):
    """An image as a sequence of its rows, or of pieces of pixels."""
    if option % 2:
        return layers.Reshape((x.shape[1], x.shape[2] * x.shape[3]))(x)
    return layers.Reshape((-1, divisor(x.shape[-1], width)))(x)


# Sequences.


@block("sequence")
def conv1d(x, width, option):
    if option % 4 == 3:
        return layers.SeparableConv1D(width, 2, padding="same", activation="relu")(x)
    if option % 4 == 2:
        return layers.DepthwiseConv1D(2, padding="same", depth_multiplier=1 + width % 2)(x)
    return layers.Conv1D(width, 2, padding="causal" if option % 2 else "same")(x)


@block("sequence")
def recurrent(x, width, option):
    kind = (layers.LSTM, layers.GRU, layers.SimpleRNN)[option % 3]
    extra = {"reset_after": width % 2 == 0} if kind is layers.GRU else {"use_bias": width % 3 != 0}
    return kind(min(width, 6), return_sequences=option % 4 > 0, **extra)(x)


@block("sequence")
def bidirectional(x, width, option):
    kind = (layers.LSTM, layers.GRU, layers.SimpleRNN)[width % 3]
    merge_mode = ("concat", "sum", "mul", "ave")[option % 4]
    return layers.Bidirectional(kind(min(width, 5), return_sequences=option % 3 > 0), merge_mode=merge_mode)(x)


@block("sequence", "sequence")
def encoder_decoder(x, y, width, option):
    kind = layers.LSTM if option % 2 else layers.GRU
    encoded, *states = kind(min(width, 5), return_sequences=True, return_state=True)(x)
    decoded = kind(min(width, 5), return_sequences=option % 3 > 0)(y, initial_state=states)
    return [encoded, decoded] if option > 5 else decoded


@block("sequence", "sequence")
def attention(x, y, width, option):
    layer = layers.MultiHeadAttention(1 + width % 4, 3, value_dim=2 if option % 2 else None, use_bias=option % 5 > 0)
    if option % 4 == 0:
        return layer(x, x)
    if option % 4 == 1:
        return layer(x, y)
    key = layers.Conv1D(width, 1)(y)
    return layer(x, value=y, key=key) if option % 4 == 2 else layer(x, y, key, use_causal_mask=option > 5)


@block("sequence", "sequence")
def attention_by_hand(x, y, width, option):
    query, key, value = layers.Dense(width)(x), layers.Dense(width)(y), layers.Dense(1 + width // 2)(y)
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    return ops.matmul(ops.softmax(scores * 0.5, axis=-1) if option % 2 else scores, value)


@block("sequence")
def dense_over_a_sequence(x, width, option):
    return layers.Dense(width, activation=ACTIVATIONS[option % len(ACTIVATIONS)])(x)


@block("sequence")
def time_distributed(x, width, option):
    inner = (layers.Dense(x.shape[-1]), layers.BatchNormalization(), layers.ReLU(), layers.Dense(width))[option % 4]
    layer = layers.TimeDistributed(inner)
    return layer(layers.Dense(x.shape[-1])(layer(x))) if option > 7 and option % 4 < 3 else layer(x)


@block("sequence")
def along_a_sequence(x, width, option):
    layer = (
        layers.MaxPooling1D(2, padding="same"),
        layers.AveragePooling1D(2, strides=1, padding="same"),
        layers.ZeroPadding1D(1),
        layers.UpSampling1D(2) if x.shape[1] < 8 else layers.MaxPooling1D(3),
        layers.LayerNormalization(),
        layers.BatchNormalization(),
        layers.SpatialDropout1D(0.2),
        layers.PReLU(shared_axes=[1] if width % 2 else None),
        lambda x: layers.Conv1D(width, 1)(layers.Permute((2, 1))(x)),
        lambda x: ops.flip(x, axis=1)[:, : max(1, x.shape[1] // 2)],
    )[option % 10]
    return layer(x)


@block("sequence", "sequence")
def merge_of_sequences(x, y, width, option):
    if option % 4 == 0:
        return layers.Concatenate(axis=1)([x, y if x.shape[-1] == y.shape[-1] else layers.Dense(x.shape[-1])(y)])
    return MERGES[width % len(MERGES)]()([x, alike(x, y)])


@block("sequence")
def pooled(x, width, option):
    if option % 3 == 0:
        return ops.mean(x, axis=1) if width % 2 else ops.sum(x, axis=1)
    return layers.GlobalMaxPooling1D()(x) if option % 3 == 1 else layers.Flatten()(x)


# Vectors.


@block("vector")
def dense(x, width, option):
    x = layers.Dense(width, activation=ACTIVATIONS[option % len(ACTIVATIONS)], use_bias=option != 9)(x)
    return layers.Dropout(0.2)(layers.BatchNormalization()(x)) if option % 3 else x


@block("vector", "vector")
def merge_of_vectors(x, y, width, option):
    return layers.Concatenate()([x, y]) if option % 3 == 0 else MERGES[width % len(MERGES)]()([x, alike(x, y)])


@block("vector")
def repeated(x, width, option):
    return layers.RepeatVector(1 + width % 4)(x)


@block("vector")
def image_of_a_vector(x, width, option):
    x = layers.Dense(9 * min(width, 6))(x)
    return layers.Reshape((3, 3, min(width, 6)) if option % 2 else (min(width, 6), 3, 3))(x)


@block("vector", "vector")
def siamese(x, y, width, option):
    encoder = keras.Sequential([layers.Dense(width), layers.BatchNormalization(), layers.ReLU()])
    y = alike(x, y)
    return ops.abs(encoder(x) - encoder(y)) if option % 2 else [encoder(x), encoder(y)]


@block("vector")
def cuts_of_a_vector(x, width, option):
    cut = max(1, x.shape[-1] // 2)
    if option % 3 == 0:
        return x[:, :cut]
    if option % 3 == 1:
        return ops.concatenate([x[:, cut:], layers.ReLU()(x[:, :cut])], axis=-1) if x.shape[-1] > 1 else x
    return ops.squeeze(ops.expand_dims(x, 1), axis=1)
