"""Which steps pruning skips, and what it does to hypergradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import keras_fds
from keras_fds._pruning import Pruning

ratios = st.integers(1, 19).map(lambda n: n / 20)


def kept_steps(mode, ratio, num_buckets, horizon):
    """`[(first, end, kept steps)]` of every bucket."""
    hyperparameter = keras_fds.Hyperparameter("learning_rate", num_buckets)
    pruning, steps = Pruning(mode, ratio), np.arange(horizon)
    kept = steps[pruning.keeps(hyperparameter, steps, horizon)]
    numbers = pruning.kept_steps(hyperparameter, horizon)
    firsts = hyperparameter.opening_steps(horizon)
    ends = np.append(firsts[1:], horizon)
    buckets = [kept[(kept >= first) & (kept < end)] for first, end in zip(firsts, ends)]
    assert [len(each) for each in buckets] == numbers.tolist()
    return list(zip(firsts, ends, buckets))


@given(ratios, st.integers(1, 5), st.integers(5, 60))
def test_truncation_keeps_the_last_steps_of_every_bucket(ratio, num_buckets, horizon):
    for first, end, kept in kept_steps("truncate", ratio, num_buckets, horizon):
        number = end - first - int(np.floor(round(ratio * (end - first), 9)))
        assert kept.tolist() == list(range(end - number, end))
        assert number >= 1


@given(ratios, st.integers(1, 5), st.integers(5, 60))
def test_alternation_keeps_steps_spread_evenly(ratio, num_buckets, horizon):
    for first, end, kept in kept_steps("alternate", ratio, num_buckets, horizon):
        assert len(kept) == np.ceil(round((1 - ratio) * (end - first), 9))
        assert kept[0] == first
        gaps = np.diff(kept)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def quadratic(num_buckets, horizon, kept):
    """Hypergradients by hand of w ← w − α w, whose tangents move at the kept steps only."""
    rates = np.linspace(0.1, 0.3, num_buckets)
    w, z, steps = 1.0, np.zeros(num_buckets), np.zeros(num_buckets)
    for t in range(horizon):
        bucket = num_buckets * t // horizon
        if kept(t):
            z = z - rates[bucket] * z
            z[bucket] -= w
            steps[bucket] += 1
        w -= rates[bucket] * w
    return rates, w * z / steps


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("mode", "kept"),
    [("alternate", lambda t: t % 5 in (0, 1, 3)), ("truncate", lambda t: t % 5 > 1)],
)
def test_tangents_stay_as_they_are_at_skipped_steps(mode, kept):
    """Loss w²/2 on one example; two buckets of five steps."""
    rates, expected = quadratic(2, 10, kept)
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")]
    )
    optimizer = keras_fds.HyperOptimizer(
        keras_fds.optimizers.SGD(),
        [
            keras_fds.Hyperparameter("learning_rate", 2, rates),
        ],
        pruning=mode,
        pruning_ratio=0.4,
    )
    model.compile(optimizer, loss=lambda y, prediction: prediction**2 / 2)
    data = tf.data.Dataset.from_tensors(([[1.0]], [[0.0]]))
    actual = keras_fds.hypergradients(model, data.repeat(10), data)["learning_rate"]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    again = keras_fds.HyperOptimizer.from_config(optimizer.get_config())
    assert (again.pruning.mode, again.pruning_ratio) == (mode, 0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pruning": "half"}, "'alternate' or 'truncate'"),
        ({"pruning": "truncate", "pruning_ratio": 1.0}, r"lie in \(0, 1\)"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), [], **arguments)


def test_with_nothing_to_learn_there_is_nothing_to_prune():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    sgd = keras_fds.optimizers.SGD()
    model.compile(keras_fds.HyperOptimizer(sgd, [], pruning="alternate"), loss="mse")
    data = tf.data.Dataset.from_tensors(([[1.0]], [[0.0]]))
    assert keras_fds.hypergradients(model, data, data) == {}


def test_pruning_needs_forward_mode():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    rate = keras_fds.Hyperparameter("learning_rate", 1, 0.1)
    sgd = keras_fds.optimizers.SGD()
    model.compile(keras_fds.HyperOptimizer(sgd, [rate], pruning="alternate"), loss="mse")
    data = tf.data.Dataset.from_tensors(([[1.0]], [[0.0]]))
    with pytest.raises(ValueError, match="`pruning`.*differentiation='forward'"):
        keras_fds.hypergradients(model, data, data, differentiation="adjoint")
