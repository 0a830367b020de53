import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import plain_cnn
from tfprune.training.optimizer import CoupledSGD

RATES = (0.1, 0.1, 0.01, 0.01, 0.001)  # two drops within five steps


def textbook(weights, gradients, rates, momentum, decay, nesterov):
    """SGD as torch.optim.SGD documents it, in float64; `gradients` is one list a step."""
    weights = [np.asarray(weight, np.float64) for weight in weights]
    velocities = [np.zeros_like(weight) for weight in weights]
    for rate, step in zip(rates, gradients, strict=True):
        for index, gradient in enumerate(step):
            g = np.asarray(gradient, np.float64) + decay * weights[index]
            velocities[index] = momentum * velocities[index] + g
            direction = g + momentum * velocities[index] if nesterov else velocities[index]
            weights[index] = weights[index] - rate * direction
    return weights


def take_steps(optimizer, variables, gradients, rates):
    optimizer.build(variables)
    for rate, step in zip(rates, gradients, strict=True):
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant(gradient) for gradient in step], variables)
    return [variable.numpy() for variable in variables]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 5e-2), (0.9, 0.0), (0.0, 5e-2)])
def test_five_steps_equal_the_textbook_on_every_trainable_variable(momentum, decay, nesterov):
    variables = plain_cnn().trainable_variables
    assert {"kernel", "bias", "gamma", "beta"} == {variable.name for variable in variables}
    generator = np.random.default_rng(3)
    gradients = [[generator.normal(size=v.shape).astype(np.float32) for v in variables] for _ in RATES]
    expected = textbook([v.numpy() for v in variables], gradients, RATES, momentum, decay, nesterov)
    optimizer = CoupledSGD(momentum=momentum, coupled_weight_decay=decay, nesterov=nesterov)
    received = take_steps(optimizer, variables, gradients, RATES)
    for one, other in zip(expected, received, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_decay_goes_through_the_momentum_also_without_a_gradient(nesterov):
    variables = [keras.Variable(np.float32([2.0, -3.0]), name=name) for name in ("gamma", "beta", "bias")]
    gradients = [[np.zeros(2, np.float32)] * 3] * len(RATES)
    received = take_steps(
        CoupledSGD(momentum=0.9, coupled_weight_decay=0.1, nesterov=nesterov), variables, gradients, RATES
    )
    (expected,) = textbook([[2.0, -3.0]], [[np.zeros(2)]] * len(RATES), RATES, 0.9, 0.1, nesterov)
    assert np.abs(expected - [2.0, -3.0]).min() > 0.05
    for weights in received:
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-6)


def test_a_drop_of_the_rate_takes_hold_at_once():
    # With buffers that hold steps instead of gradients (Keras' SGD), the step after the drop would be -0.091.
    variable = keras.Variable(np.float32([0.0]))
    (received,) = take_steps(CoupledSGD(), [variable], [[np.float32([1.0])]] * 2, (0.1, 0.001))
    np.testing.assert_allclose(received, [-0.1 - 0.001 * 1.9], atol=1e-7)


def test_the_gradient_of_an_embedding_is_decayed_densely():
    variable = keras.Variable(np.arange(6, dtype=np.float32).reshape(3, 2))
    optimizer = CoupledSGD(coupled_weight_decay=0.1)
    optimizer.build([variable])
    optimizer.learning_rate = 0.5
    optimizer.apply([tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), tf.constant([3, 2]))], [variable])
    gradient = np.float64([[0, 0], [1, 1], [0, 0]])
    (expected,) = textbook([np.arange(6).reshape(3, 2)], [[gradient]], (0.5,), 0.9, 0.1, False)
    np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)


def test_constraints_of_variables_hold_after_a_step():
    variable = keras.Variable(np.float32([0.1, 5.0]))
    variable.constraint = keras.constraints.NonNeg()
    (received,) = take_steps(CoupledSGD(), [variable], [[np.float32([10.0, 1.0])]], (0.1,))
    np.testing.assert_allclose(received, [0.0, 4.9], atol=1e-6)


def test_it_can_be_rebuilt_from_its_config():
    optimizer = CoupledSGD(0.25, momentum=0.8, coupled_weight_decay=0.3, nesterov=True)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, CoupledSGD)
    assert again.get_config() == optimizer.get_config()
    assert again.get_config()["coupled_weight_decay"] == 0.3
    assert (again.momentum, again.nesterov, float(again.learning_rate)) == (0.8, True, 0.25)


# The scale of a loss in float16.


def scaled_steps(gradients, scales_loss=True, **options):
    """Weights, and the scale, after each step; the gates are those of the last variable."""
    variables = [keras.Variable(np.float32([2.0, -3.0, 1e-3])), keras.Variable(np.float32([1.0, 0.5]))]
    variables[1].proximal_l1 = 0.2
    optimizer = CoupledSGD(momentum=0.9, coupled_weight_decay=0.1, scales_loss=scales_loss, **options)
    optimizer.build(variables)
    optimizer.reset()
    optimizer.learning_rate, seen = 0.1, []
    for step in gradients:
        scale = float(optimizer.scaled(tf.constant(1.0)))
        optimizer.apply([tf.constant(np.float32(gradient) * np.float32(scale)) for gradient in step], variables)
        seen.append(
            ([v.numpy() for v in (*variables, *optimizer.momentums)], float(optimizer.scaled(tf.constant(1.0))))
        )
    return seen


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_scaled_loss_takes_the_same_steps(nesterov):
    generator = np.random.default_rng(5)
    gradients = [[generator.normal(size=3), generator.normal(size=2)] for _ in range(5)]
    plain = scaled_steps(gradients, scales_loss=False, nesterov=nesterov)
    for (one, unit), (other, scale) in zip(plain, scaled_steps(gradients, nesterov=nesterov), strict=True):
        assert all(map(np.array_equal, one, other))  # a power of two changes no digit
        assert (unit, scale) == (1.0, 2.0**15)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("where", [0, 1])
def test_a_step_whose_gradients_are_no_numbers_moves_nothing_and_halves_the_scale(nesterov, bad, where):
    good = [[np.ones(3), np.ones(2)], [np.full(3, 0.5), np.full(2, -1.0)]]
    broken = [np.ones(3), np.ones(2)]
    broken[where] = broken[where] * [bad, *[1.0] * (len(broken[where]) - 1)]
    seen = scaled_steps([good[0], broken, good[1]], nesterov=nesterov)
    assert all(map(np.array_equal, seen[0][0], seen[1][0]))
    assert [scale for _, scale in seen] == [2.0**15, 2.0**14, 2.0**14]
    without = scaled_steps(good, nesterov=nesterov)
    assert all(map(np.array_equal, seen[2][0], without[1][0]))
    assert not np.array_equal(seen[2][0][0], seen[1][0][0])


def test_the_scale_doubles_after_so_many_good_steps_in_a_row(monkeypatch):
    monkeypatch.setattr("tfprune.training.optimizer._STEPS_TO_GROW", 3)
    good, broken = [np.ones(3), np.ones(2)], [np.full(3, np.inf), np.ones(2)]
    scales = [scale for _, scale in scaled_steps([good, good, broken, good, good, good, good])]
    assert [scale / 2**15 for scale in scales] == [1, 1, 0.5, 0.5, 0.5, 1, 1]


@pytest.mark.parametrize("nesterov", [False, True])
def test_on_one_device_steps_and_scales_are_those_of_keras_own_wrapper(nesterov, monkeypatch):
    monkeypatch.setattr("tfprune.training.optimizer._STEPS_TO_GROW", 3)
    generator = np.random.default_rng(7)
    gradients = [[generator.normal(size=3), generator.normal(size=2)] for _ in range(14)]
    for step, place, bad in ((1, 0, np.nan), (6, 1, np.inf), (7, 0, -np.inf)):
        gradients[step][place][-1] = bad
    variables = [keras.Variable(np.float32([2.0, -3.0, 1e-3])), keras.Variable(np.float32([1.0, 0.5]))]
    variables[1].proximal_l1 = 0.2
    inner = CoupledSGD(0.1, momentum=0.9, coupled_weight_decay=0.1, nesterov=nesterov)
    theirs = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**15, dynamic_growth_steps=3)
    theirs.build(variables)
    scales = set()
    for step, (received, scale) in zip(gradients, scaled_steps(gradients, nesterov=nesterov), strict=True):
        before = float(theirs.scale_loss(np.float32(1.0)))
        theirs.apply([tf.constant(np.float32(g) * np.float32(before)) for g in step], variables)
        expected = [v.numpy() for v in (*variables, *inner.momentums)]
        assert all(map(np.array_equal, received, expected))
        assert scale == float(theirs.scale_loss(np.float32(1.0)))
        scales.add(scale / 2**15)
    assert scales == {0.25, 0.5, 1.0}
