"""Tangents that decay, and hyperparameters that move along them; in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.differentiation.online import Online, OnlineSource

pytestmark = pytest.mark.usefixtures("float64")
STEPS = 7
RNG = np.random.default_rng(0)


def batches(data, size):
    return ArrayBatches(as_arrays(*data, None), size)


def run(mode, train, held_out, steps=STEPS, count=None):
    """Runs a bound mode from a fresh start; returns the values and slopes of all steps."""
    source = OnlineSource.of(train.start())
    if held_out is not None:
        source = OnlineSource.of(train.start(), held_out.start(), held_out.num_batches)
    mode.reset(steps)
    for done in range(0, steps, count or steps):
        assert mode.run(source, done, done, min(count or steps, steps - done))[1]
    return mode.values.numpy(), mode.slopes.numpy()


# ------------------------------------------------------------------------------- a quadratic
N, ROWS = 4, 6
TRAIN = RNG.normal(size=(STEPS * ROWS, N)), RNG.normal(size=(STEPS * ROWS, 1))
HELD_OUT = RNG.normal(size=(3 * 5, N)), RNG.normal(size=(3 * 5, 1))
START = {"learning_rate": 0.05, "momentum": 0.6, "weight_decay": 0.02}
RANGES = {"learning_rate": 0.055}  # It is reached.
UNITS = np.array([0.3, 0.2, 0.1])


def part(data, size, i):
    i %= len(data[0]) // size
    return tuple(each[i * size : (i + 1) * size] for each in data)


def slope_of(batch, w):
    """The gradient of mean((xw − y)²)."""
    x, y = batch
    return 2 * x.T @ (x @ w - y[:, 0]) / len(x)


def by_hand(w, decay, rate, on_training_loss):
    """The recursion in NumPy: values and slopes of all steps."""
    value = np.array(list(START.values()))
    v, of_w, of_v = np.zeros(N), np.zeros([3, N]), np.zeros([3, N])
    values, slopes = [], []
    for t in range(STEPS):
        batch = part(TRAIN, ROWS, t)
        slope = of_w @ slope_of(batch if on_training_loss else part(HELD_OUT, 5, t), w)
        value = np.clip(value - rate * UNITS**2 * slope, 0, [RANGES["learning_rate"], 0.999, 9])
        a, b, x = value
        hessian = 2 * batch[0].T @ batch[0] / ROWS
        old_v, old_w = v, w
        v = b * v + slope_of(batch, w) + x * w
        w = w - a * v
        of_v = decay * (b * of_v + of_w @ hessian + x * of_w)
        of_v[1] += old_v
        of_v[2] += old_w
        # The decay of Z is that of the whole step: w' = w − a v'.
        of_w = decay * of_w - a * of_v
        of_w[0] -= v
        values.append(value)
        slopes.append(slope)
    return np.array(values), np.array(slopes)


@pytest.mark.sweep("0.7-False", "0.0-True")
@pytest.mark.parametrize("on_training_loss", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
def test_is_the_recursion_by_hand_on_a_quadratic(decay, on_training_loss):
    model = keras.Sequential([keras.Input((N,)), keras.layers.Dense(1, use_bias=False)])
    hyperparameters = [
        keras_fds.Hyperparameter(name, 1, start, unit, max_value=RANGES.get(name))
        for (name, start), unit in zip(START.items(), UNITS)
    ]
    model.compile(keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), hyperparameters), "mse")
    w = model.get_weights()[0][:, 0]
    train, held_out = batches(TRAIN, ROWS), batches(HELD_OUT, 5)
    mode = Online(decay, keras.optimizers.SGD(0.1)).bind(model, train.spec)
    values, slopes = run(mode, train, None if on_training_loss else held_out)
    expected_values, expected_slopes = by_hand(w, decay, 0.1, on_training_loss)
    np.testing.assert_allclose(slopes, expected_slopes, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(values, expected_values, rtol=1e-10)
    assert np.ptp(values, axis=0).min() > 1e-4
    if not on_training_loss:  # The first slope of HD, in closed form.
        _, first, *_ = slopes
        gradient = slope_of(part(TRAIN, ROWS, 0), w) + START["weight_decay"] * w
        after = w - START["learning_rate"] * gradient
        closed = -slope_of(part(HELD_OUT, 5, 1), after) @ gradient
        np.testing.assert_allclose(first[0], closed, rtol=1e-12)


# --------------------------------------------------------------------------------- a network
def network(optimizer, *hyperparameters):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(6, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3, activation="softmax"),
        ],
    )
    model.layers[0].name = "first"
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(keras_fds.HyperOptimizer(optimizer, list(hyperparameters)), loss)
    return model


def network_data():
    x, labels = RNG.normal(size=(STEPS * 6 + 8, 5)), np.eye(3)[RNG.integers(0, 3, STEPS * 6 + 8)]
    return (x[:-8], labels[:-8]), (x[-8:], labels[-8:])


CASES = {
    "SGD": lambda: (keras_fds.optimizers.SGD(), ("learning_rate", 0.2), ("momentum", 0.6)),
    "Adam": lambda: (
        keras.optimizers.Adam(0.05, epsilon=1e-3),
        ("learning_rate", 0.05),
        ("beta_1", 0.8),
        ("weight_decay", 0.02),
    ),
    "learned numbers": lambda: (
        keras_fds.optimizers.SGD(0.2, momentum=0.5),
        ("first.kernel_regularizer.l2", 0.03),
        ("loss.label_smoothing", 0.1),
        ("first.learning_rate_multiplier", 1.2),
    ),
}


@pytest.mark.sweep("Adam", "learned numbers")
@pytest.mark.parametrize("case", CASES)
def test_tangents_weigh_the_hypergradients_of_single_steps_by_the_decay(case):
    """h = Σ_t μ^(T−1−t) dL/dλ_t, and reverse mode has dL/dλ_t: HD the last one, RTHO all."""
    optimizer, *named = CASES[case]()
    model = network(optimizer, *(keras_fds.Hyperparameter(n, 1, start) for n, start in named))
    train_data, held_out_data = network_data()
    train, held_out = batches(train_data, 6), batches(held_out_data, 8)
    datasets = [
        tf.data.Dataset.from_tensor_slices(data).batch(size)
        for data, size in ((train_data, 6), (held_out_data, 8))
    ]
    by_step = keras_fds.hypergradients(model, *datasets, per_step=True)
    start = [variable.numpy() for variable in model.variables]
    for decay in (0.0, 0.6, 1.0):
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        mode = Online(decay, keras.optimizers.SGD(0.0)).bind(model, train.spec)
        run(mode, train, held_out, count=3)
        mode.validate(held_out.start(), 1)
        weights = decay ** np.arange(STEPS)[::-1]
        expected = [weights @ by_step[name] for name, _ in named]
        np.testing.assert_allclose(mode.hypergradients(), expected, rtol=1e-8)
        assert (mode.values.numpy() == [start for _, start in named]).all()
        mode.release()


def test_coordinates_move_on_their_scale_and_stay_in_range():
    model = network(
        keras.optimizers.Adam(),
        keras_fds.Hyperparameter("learning_rate", 1, 0.01, scale="log", max_value=0.02),
        keras_fds.Hyperparameter("beta_1", 1, 0.5, scale="complement", step_size=1.0),
        keras_fds.Hyperparameter("weight_decay", 1, 0.0, step_size=0.01),
    )
    train, held_out = (batches(*each) for each in zip(network_data(), (6, 8)))
    mode = Online(1.0, keras.optimizers.Adam(0.2)).bind(model, train.spec)
    values, slopes = run(mode, train, held_out)
    logs = np.diff(np.log(values[:, 0]))
    assert np.abs(logs).max() <= 0.2 * 0.1 * 1.1  # Adam's step, in units of `step_size`.
    assert np.abs(np.diff(values[:, 2])).max() <= 0.2 * 0.01 * 1.1
    assert values.min() >= 0 and values[:, 0].max() <= 0.02
    assert (slopes[0] == 0).all() and (slopes[1:] != 0).any(axis=0).all()
