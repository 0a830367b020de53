"""Accuracy right after the cut: as it is, with recalibrate, with compensate, with both.

A small network of five convolutions with batch normalizations (and, without them, its twin), trained on fashion_mini;
"slimming" is trained with an L1 penalty on gamma and pruned by gamma. `python experiments/after_the_cut/measure.py`.
"""

import sys

import keras
from keras import layers

import tfprune
from tfprune.data import load

data = load("fashion_mini")
train, test = (
    (images / 255.0, labels)
    for images, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
)
few = train[0][:1000]
EPOCHS, SEEDS = 8, int(sys.argv[1]) if len(sys.argv) > 1 else 3


def network(normalized, penalty):
    """Five convolutions, with batch normalizations or biases; `penalty`: L1, on gamma."""
    x = inputs = keras.Input((32, 32, 1))
    for filters, strides in ((16, 1), (16, 2), (32, 1), (32, 2), (64, 1)):
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=not normalized)(x)
        if normalized:
            regularizer = keras.regularizers.L1(penalty) if penalty else None
            x = layers.BatchNormalization(momentum=0.9, gamma_regularizer=regularizer)(x)
        x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def accuracy(model):
    """On the 2,000 test images."""
    return model.evaluate(*test, verbose=0, return_dict=True)["accuracy"]


print("network   criterion ratio seed   large    cut  recalibrate  constants  means  means+recalibrate")
for kind, penalty in (("plain", 0.0), ("slimming", 3e-3), ("no BN", 0.0)):
    for seed in range(SEEDS):
        keras.utils.set_random_seed(seed)
        model = network(kind != "no BN", penalty)
        model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(*train, epochs=EPOCHS, batch_size=64, verbose=0)
        for criterion in ("gamma",) if kind == "slimming" else ("l1", "random"):
            for ratio in (0.125, 0.5):
                options = {"seed": seed} if criterion == "random" else {}
                scope = "global" if kind == "slimming" else "layer"
                plan = tfprune.plan_channels(model, ratio=ratio, criterion=criterion, scope=scope, **options)
                cut, constants, means = (plan.apply(model, compensate=one) for one in (None, True, few))
                row = [accuracy(one) for one in (model, cut, constants, means)]
                both = [float("nan")] * 2  # without batch normalizations
                if kind != "no BN":
                    both = [accuracy(tfprune.recalibrate(one, few)) for one in (cut, means)]
                shown = [*row[:2], both[0], *row[2:], both[1]]
                print(f"{kind:10}{criterion:10}{ratio:<6}{seed}", *(f"{one:.4f}" for one in shown), flush=True)
