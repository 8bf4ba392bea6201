"""Exactness of the hypergradients, in float64."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.data.sources import get_batch
from keras_fds.differentiation.forward import Forward
from tests.differentiation import reference

pytestmark = pytest.mark.usefixtures("float64")
HORIZON = 5
NUM_CLASSES = 3


def relative_error(value, reference_value):
    return np.max(np.abs(value - reference_value)) / np.max(np.abs(reference_value))


@pytest.mark.parametrize("horizon", [50, 53])
def test_equals_the_closed_form_on_a_quadratic(horizon):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=(20, 1))
    x_validation, y_validation = rng.normal(size=(10, 6)), rng.normal(size=(10, 1))
    schedules = {
        "learning_rate": [0.05, 0.11, 0.08, 0.02],
        "momentum": [0.5, 0.8, 0.7],
        "weight_decay": [0.01, 0.002],
    }
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1, use_bias=False)])
    hyperparameters = [
        keras_fds.Hyperparameter(name, num_buckets=len(values), initial=values)
        for name, values in schedules.items()
    ]
    model.compile(keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), hyperparameters), loss="mse")
    # Loss mean((xw − y)²) = (w−c)ᵀH(w−c)/2 + constant.
    hessian = 2 * x.T @ x / len(x)
    expected = reference.quadratic_hypergradients(
        hessian,
        np.linalg.solve(hessian, 2 * x.T @ y / len(x))[:, 0],
        model.get_weights()[0][:, 0],
        lambda w: 2 * x_validation.T @ (x_validation @ w - y_validation[:, 0]) / 10,
        schedules,
        horizon,
    )
    dataset = tf.data.Dataset.from_tensors((x, y)).repeat(horizon)
    validation = tf.data.Dataset.from_tensors((x_validation, y_validation))
    actual = keras_fds.hypergradients(model, dataset, validation)
    for name in schedules:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-10)


def small_network(**conv_arguments):
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3, **conv_arguments),
            keras.layers.BatchNormalization(momentum=0.7),
            keras.layers.Activation("tanh"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(NUM_CLASSES),
        ]
    )


def data():
    rng = np.random.default_rng(1)
    arrays = as_arrays(rng.normal(size=(50, 6, 6, 1)), rng.integers(0, 3, 50), None)
    train = ArrayBatches(arrays, 5, np.arange(5 * HORIZON))
    return train, train.subset(np.arange(5 * HORIZON, 50), 8)


OPTIMIZERS = {
    "paper_sgd": (keras_fds.optimizers.SGD, ("momentum", 0.6), {}),
    "keras_sgd": (keras.optimizers.SGD, ("momentum", 0.6), {}),
    "keras_nesterov": (keras.optimizers.SGD, ("momentum", 0.6), {"nesterov": True}),
    "adam": (keras.optimizers.Adam, ("beta_1", 0.8), {"epsilon": 1e-3}),
    "adamw": (keras.optimizers.AdamW, ("beta_1", 0.8), {"epsilon": 1e-3}),
}


@functools.cache
def compiled_unroll(kind, clipvalue=None, tangent_clipvalue=None):
    """An unroll, made once, and functions that restart it and run it from its first weights."""
    optimizer_class, (decay_name, decay), arguments = OPTIMIZERS[kind]
    rate = 0.05 if "adam" in kind else 0.2
    keras.utils.set_random_seed(2)
    model = small_network(kernel_regularizer=keras.regularizers.L2(0.01))
    model.compile(
        keras_fds.HyperOptimizer(
            optimizer_class(clipvalue=clipvalue, **arguments),
            [
                keras_fds.Hyperparameter("learning_rate", 3, [rate, 1.3 * rate, 0.6 * rate]),
                keras_fds.Hyperparameter(decay_name, 2, [decay, 0.9 * decay]),
                keras_fds.Hyperparameter("weight_decay", 1, 0.03),
            ],
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    train, validation = data()
    unroll = Forward(tangent_clipvalue=tangent_clipvalue).bind(model, train.spec)
    start = [variable.numpy() for variable in model.variables]
    initial = model.optimizer.coordinates

    def restart(values=initial):
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        model.optimizer.coordinates = values
        unroll.reset(HORIZON)

    def run(values=initial, training=False):
        restart(values)
        steps, finite = unroll.run(train.start(), 0, 0, HORIZON)
        assert (steps, finite) == (HORIZON, True)
        return reference.measured(unroll, validation.start(), validation.num_batches, training)

    return unroll, restart, run


def batches_of(batches):
    source = batches.start()
    return [get_batch(source, np.int64(i)) for i in range(batches.num_batches)]


@pytest.mark.sweep("paper_sgd-0.02")
@pytest.mark.parametrize(
    ("kind", "clipvalue"),
    [*((kind, None) for kind in OPTIMIZERS), ("paper_sgd", 0.02), ("adam", 0.02)],
)
def test_equals_reverse_mode_and_finite_differences(kind, clipvalue):
    unroll, restart, run = compiled_unroll(kind, clipvalue)
    train, validation = map(batches_of, data())
    optimizer = unroll.hyper_optimizer
    values = optimizer.coordinates
    lengths = np.concatenate([h.bucket_lengths(HORIZON) for h in optimizer.hyperparameters])
    restart()
    both = reference.reverse_mode_hypergradients(unroll, train, validation)
    for training, reverse in zip((False, True), both):
        _, forward = run(training=training)
        assert relative_error(forward, reverse) <= 1e-8
        differences = reference.finite_difference_hypergradients(
            lambda moved, mode=training: run(moved, mode)[0], values, lengths, step=1e-6
        )
        assert relative_error(forward, differences) <= 1e-5


@pytest.mark.sweep()
def test_clipping_is_active_where_the_test_above_clips():
    _, _, run = compiled_unroll("paper_sgd")
    _, _, clipped_run = compiled_unroll("paper_sgd", clipvalue=0.02)
    assert relative_error(run()[1], clipped_run()[1]) > 0.1


def test_tangent_clipvalue_bounds_the_tangents():
    exact = compiled_unroll("paper_sgd")[2]()[1]
    np.testing.assert_array_equal(compiled_unroll("paper_sgd", None, 1e6)[2]()[1], exact)
    assert relative_error(compiled_unroll("paper_sgd", None, 1e-3)[2]()[1], exact) > 1e-3


def test_number_of_steps_a_call_changes_nothing():
    unroll, restart, run = compiled_unroll("paper_sgd")
    _, at_once = run()
    train, validation = data()
    restart()
    source, done = train.start(), 0
    for count in (1, 3, 1):
        done += unroll.run(source, done, done, count)[0]
    _, in_pieces = reference.measured(unroll, validation.start(), validation.num_batches)
    np.testing.assert_array_equal(in_pieces, at_once)


@pytest.mark.sweep()
def test_one_bucket_a_step_averages_to_the_shared_bucket():
    def hypergradient(num_buckets):
        keras.utils.set_random_seed(3)
        model = small_network()
        model.compile(
            keras_fds.HyperOptimizer(
                keras_fds.optimizers.SGD(momentum=0.5),
                [keras_fds.Hyperparameter("learning_rate", num_buckets, 0.1)],
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        train, validation = (
            tf.data.Dataset.from_tensor_slices(batches.data[:2]).batch(5) for batches in data()
        )
        return keras_fds.hypergradients(model, train, validation)["learning_rate"]

    shared, unshared = hypergradient(1), hypergradient(10)
    assert unshared.shape == (10,)
    np.testing.assert_allclose(unshared.mean(), shared[0], rtol=1e-10)
    assert np.ptp(unshared) > 0


def test_buckets_that_have_not_opened_are_zero():
    unroll, restart, _ = compiled_unroll("paper_sgd")
    restart()
    unroll.run(data()[0].start(), 0, 0, 2)
    opening = unroll.parts[0].opening.numpy()
    for tangent in tf.nest.flatten(unroll.tangents):
        assert not tangent.numpy()[opening >= 2].any()
    assert all(unroll.tangents[0][0].numpy()[k].any() for k in np.flatnonzero(opening < 2))


def test_run_stops_at_the_first_loss_that_is_not_finite():
    unroll, restart, _ = compiled_unroll("paper_sgd")
    train, _ = data()
    values = unroll.hyper_optimizer.coordinates
    restart(np.full_like(values, 1e150))
    steps, finite = unroll.run(train.start(), 0, 0, HORIZON)
    assert not finite
    assert steps < HORIZON
