"""The command of a study, run in this process, and what it leaves."""

import csv

import tensorflow as tf
from absl import flags

from tfprune.experiments.run import main
from tfprune.experiments.setup.flags import define_flags
from tfprune.experiments.setup.resolving import settings_from_flags
from tfprune.experiments.studies.resources import Shared
from tfprune.experiments.studies.study import Study
from tfprune.training.loop import Trainer

REGIMES = ["unpruned", "pruned", "finetune", "scratch_e", "scratch_b"]


def smoke(workdir, *argv):
    """A run with --smoke that has to end well."""
    assert main(["--smoke", f"--workdir={workdir}", *argv]) == 0


def studies(workdir, *argv):
    """The studies that a command with --smoke describes, with what they share."""
    values, shared = flags.FlagValues(), Shared()
    define_flags(values)
    values(["run", "--smoke", f"--workdir={workdir}", *argv])
    return [Study(settings, tf.distribute.get_strategy(), shared) for settings in settings_from_flags(values)]


def refused(capsys, *argv):
    """The one line that tells what is wrong with flags."""
    assert main(list(argv)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def read(workdir, name="results.csv"):
    """The lines of a file that a report wrote: column -> text."""
    with (workdir / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def forbid_training(monkeypatch):
    """Any training from now on is an error."""

    def fail(*args, **kwargs):
        raise AssertionError("trained what was trained")

    monkeypatch.setattr(Trainer, "run", fail)
