import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from tfprune.experiments.reporting.figures import CostPoint, accuracy_against_flops, learning_curves


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved."""
    figures, save = [], Figure.savefig

    def saving(self, *args, **kwargs):
        figures.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", saving)
    return figures


def test_accuracy_against_flops_has_means_deviations_and_lines_over_ratios(tmp_path, drawn):
    values = {30e6: [0.9, 0.92, 0.97], 10e6: [0.8, 0.81, 0.85]}
    points = [CostPoint("", "unpruned", 60e6, [0.95])]
    points += [CostPoint("l1_norm", "finetune", flops, own) for flops, own in values.items()]
    points += [CostPoint("l1_norm", "scratch_b", flops, own) for flops, own in values.items()]
    points += [CostPoint("uniform", "finetune", 20e6, [0.7, 0.72])]
    accuracy_against_flops(tmp_path / "a.png", "a network", points)
    (axes,) = drawn[0].axes
    lines = [container.lines for container in axes.containers]
    received = [(line.get_xdata(), line.get_ydata(), bars[0].get_segments()) for line, _, bars in lines]
    assert [len(x) for x, _, _ in received] == [1, 2, 2, 1]
    for x, y, bars in received[1:3]:  # both regimes, the cheaper setting first
        np.testing.assert_allclose(np.asarray(x, float), [10, 30], atol=0.02 * 50)
        for middle, bar, own in zip(y, bars, (values[10e6], values[30e6]), strict=True):
            mean, deviation = 100 * np.mean(own), 100 * np.std(own, ddof=1)
            assert middle == pytest.approx(mean)
            np.testing.assert_allclose(bar[:, 1], [mean - deviation, mean + deviation])
    assert received[1][0][0] != received[2][0][0]  # beside each other
    (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
    assert low < 70 < 97 < high  # all of it is seen
    assert left < 10 < 60 < right
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert names == ["unpruned", "finetune", "scratch_b", "l1_norm", "uniform"]


def test_learning_curves_average_over_the_seeds_that_have_the_epoch(tmp_path, drawn):
    def run(*accuracies):
        return [{"epoch": n, "loss": 2.0 / n, "val_accuracy": own} for n, own in enumerate(accuracies, 1)]

    histories = {"finetune": [run(0.5, 0.6)], "scratch_b": [run(0.1, 0.3, 0.8), run(0.2, 0.5)]}
    learning_curves(tmp_path / "c.png", "a title", histories)
    loss, accuracy = drawn[0].axes
    assert [line.get_label() for line in accuracy.lines] == ["finetune", "scratch_b"]
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [2, 1])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 60])
    np.testing.assert_allclose(accuracy.lines[1].get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [15, 40, 80])
    corners = accuracy.collections[1].get_paths()[0].vertices
    for epoch, own in ((1, (10, 20)), (2, (30, 50))):
        shaded = corners[corners[:, 0] == epoch, 1]
        mean, deviation = np.mean(own), np.std(own, ddof=1)
        np.testing.assert_allclose([shaded.min(), shaded.max()], [mean - deviation, mean + deviation])
    assert matplotlib.image.imread(tmp_path / "c.png")[..., :3].std() > 0.01
