import pytest


@pytest.fixture
def trained(monkeypatch):
    """The number of epochs of every training that happens."""
    from tfprune.training.loop import Trainer  # here: the process that only hands out the tests reads this file too

    lengths, run = [], Trainer.run

    def counting(self, weights, epochs, *args, **kwargs):
        lengths.append(epochs)
        return run(self, weights, epochs, *args, **kwargs)

    monkeypatch.setattr(Trainer, "run", counting)
    return lengths
