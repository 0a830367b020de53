"""A report in TensorBoard: a row of hyperparameters for every run, and the figures as images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import tensorflow as tf
from tensorboard.plugins.hparams import api

from tfprune.experiments.reporting.document import Report
from tfprune.experiments.store.rows import Row
from tfprune.support.files import file_name

# TensorBoard shows the first five by alphabet until others are chosen.
_SETTINGS = ("method", "network", "regime", "seed", "setting", "training")
_METRICS = {f"report/{field}": field for field in ("test_accuracy", "best_accuracy", "params", "flops", "epochs")}


def write_board(workdir: Path, rows: Iterable[Row], report: Report) -> None:
    """Writes tensorboard/report, in the place of what is there."""
    folder = workdir / "tensorboard" / "report"
    old = list(folder.rglob("events.out.*"))
    with tf.summary.create_file_writer(str(folder)).as_default(step=0):
        metrics = [api.Metric(tag, display_name=field) for tag, field in _METRICS.items()]
        api.hparams_config([api.HParam(name) for name in _SETTINGS], metrics)
        for section in report.sections:
            for picture in section.pictures:
                content = tf.io.decode_png((workdir / picture.file).read_bytes(), channels=3)
                tf.summary.image(f"{section.title}/{picture.text}", content[tf.newaxis])
    for row in rows:
        budget = f" ({row.budget})" if row.budget else ""
        values = (row.method, row.network, row.regime + budget, str(row.seed), row.setting, row.training)
        name = f"{row.dataset}-{row.model}-{row.method}-{row.setting}-{row.study}-{row.regime}{budget}-seed{row.seed}"
        run = folder / file_name(name)
        with tf.summary.create_file_writer(str(run)).as_default(step=row.epochs):
            api.hparams(dict(zip(_SETTINGS, values, strict=True)), trial_id=run.name)
            for tag, field in _METRICS.items():
                tf.summary.scalar(tag, getattr(row, field))
    for path in old:  # after the new ones, and only those: another process may be writing the same report
        path.unlink(missing_ok=True)
