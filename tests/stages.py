"""Rows of results, and finished stages of a workdir as a study leaves them, without any training."""

import dataclasses

import numpy as np

from tfprune.experiments.store.rows import Row
from tfprune.experiments.store.stage import Store, save_weights, write_json

CONTRACT = [
    "dataset", "model", "method", "setting", "regime", "seed", "test_accuracy", "best_accuracy",
    "params", "nonzero_params", "macs", "flops", "epochs", "train_seconds",
]  # fmt: skip
ROW = Row(
    dataset="synthetic", model="vgg16", width=0.25, method="uniform", setting="ratio=0.5", regime="finetune",
    seed=0, test_accuracy=0.1 + 0.2, best_accuracy=0.5, params=10, nonzero_params=9, macs=100, flops=200,
    epochs=6, train_seconds=1.5, train_examples=256, test_examples=128, budget="", training="", study="aaaaaaaa",
)  # fmt: skip
ACCURACY = {"unpruned": 0.93, "pruned": 0.31, "finetune": 0.90, "scratch_e": 0.905, "scratch_b": 0.92}


def history(row):
    """Epochs of a training that ends with the accuracy of the row."""
    fields = {"loss": 1.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": row.test_accuracy, "learning_rate": 0.1}
    return [{"epoch": epoch, **fields} for epoch in range(1, row.epochs + 1)]


def write_stage(store, kind, rows, plan=None):
    with store.stage(kind, f"seed{rows[0].seed}", {"rows": [dataclasses.asdict(row) for row in rows]}).writing() as f:
        write_json(f / "rows.json", [dataclasses.asdict(row) for row in rows])
        write_json(f / "history.json", {"epochs": history(rows[0]), "seconds": 1.5})
        save_weights(f, [np.random.default_rng(len(kind)).normal(0.0, 0.1, (3, 3, 4, 8)), np.ones(8)])
        if plan is not None:
            plan.save(f / "plan.json")
            write_json(f / "origin.json", {"large": write_stage(store, "train", rows)})
    return store.finished(kind)[-1].name


def fill(workdir, plan, seeds=(0,), scratch_b_epochs=(12,), **changes):
    """Stages as a study leaves them; Scratch-B's length differs by seed where the plans do."""
    store = Store(workdir)
    for number, seed in enumerate(seeds):
        rows = {}
        for regime, accuracy in ACCURACY.items():
            epochs = scratch_b_epochs[number % len(scratch_b_epochs)] if regime == "scratch_b" else 6
            accuracy += 0.001 * (number + (number % 2) * (regime == "scratch_b"))
            rows[regime] = dataclasses.replace(
                ROW, regime=regime, seed=seed, test_accuracy=accuracy, epochs=epochs, **changes
            )
        write_stage(store, "plan", [rows["unpruned"], rows["pruned"]], plan)
        for regime in ("finetune", "scratch_e", "scratch_b"):
            write_stage(store, regime, [rows[regime]])
