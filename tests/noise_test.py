"""Estimates of noise, drift and correlation against what was put in; the error of sharing."""

import numpy as np
import pytest

import keras_fds
from keras_fds import noise


def hypergradients(seeds, horizon, sigma=0.5, drift=0.0, correlation=0.0, generator=0):
    """Steady drift, and Gaussian noise of which all steps have a part in common."""
    generator = np.random.default_rng(generator)
    common = generator.normal(size=(seeds, 1))
    own = generator.normal(size=(seeds, horizon))
    both = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    return drift * np.arange(horizon) + sigma * both


# ----------------------------------------------------------------------------------- the theorem
def test_bound_is_that_of_the_theorem():
    assert noise.sharing_bound(0.25, 0.08, 0.0, 40) == pytest.approx(0.25**2 / 40 + 0.8528)
    assert noise.sharing_bound(2.0, 0.0, 0.25, 4) == pytest.approx(4 * (1 + 0.75) / 4)
    assert noise.sharing_bound(2.0, 1.0, 0.25, [1, 1]).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("correlation", [0.0, 0.1, 0.7])
def test_best_steps_minimise_the_bound(correlation):
    lengths = np.linspace(1, 50, 100_000)
    bounds = noise.sharing_bound(0.4, 0.03, correlation, lengths)
    best = noise.best_steps(0.4, 0.03, correlation)
    assert best == pytest.approx(lengths[np.argmin(bounds)], abs=1e-3)


def test_best_steps_at_the_ends():
    assert noise.best_steps(1.0, 0.0) == np.inf
    assert noise.best_steps(1.0, 0.0, correlation=1.0) == 1.0
    assert noise.best_steps(0.0, 0.0) == 1.0
    assert noise.best_steps(0.1, 5.0) == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1.0, 0.0, 0.0, 1), "`noise` must be a number of at least 0"),
        ((1.0, -1.0, 0.0, 1), "`drift` must be a number of at least 0"),
        ((1.0, 0.0, 1.5, 1), "`correlation` must be a number of at least -1 and of at most 1"),
        ((1.0, 0.0, 0.0, [1, 0.5]), "`steps` must be at least 1"),
    ],
)
def test_bound_refuses_what_is_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        noise.sharing_bound(*arguments)


# -------------------------------------------------------------------------------------- estimates
def test_estimate_finds_what_was_put_in():
    found = noise.estimate(hypergradients(2000, 40, sigma=0.5, drift=0.2, correlation=0.3))
    assert found.noise == pytest.approx(0.5, rel=0.03)
    assert found.drift == pytest.approx(0.2, rel=0.01)
    assert found.correlation == pytest.approx(0.3, abs=0.05)
    assert found.mean_correlation == pytest.approx(0.3, abs=0.04)
    assert (found.seeds, found.horizon) == (2000, 40)


def test_drift_is_freed_of_what_noise_adds():
    draws = [hypergradients(30, 50, drift=0.1, generator=k) for k in range(200)]
    squares = [noise.estimate(each).drift ** 2 for each in draws]
    # Noise changes the means of thirty seeds by ± 0.13 per step, more than the drift.
    assert np.mean(squares) == pytest.approx(0.1**2, rel=0.05)
    assert np.mean([noise.estimate(each).largest_drift for each in draws]) > 0.3


def test_correlation_is_the_largest_over_distances():
    own = np.random.default_rng(0).normal(size=(3000, 61))
    moving = (own[:, 1:] + own[:, :-1]) / np.sqrt(2)  # 1/2 beside each other, else 0.
    found = noise.estimate(moving)
    assert found.correlation == pytest.approx(0.5, abs=0.02)
    assert found.mean_correlation == pytest.approx(2 * 59 * 0.5 / (60 * 59), abs=0.01)


def test_hypergradients_without_noise():
    found = noise.estimate(np.tile(np.arange(6.0), (4, 1)))
    assert (found.noise, found.drift, found.correlation) == (0.0, 1.0, 0.0)
    assert noise.estimate(np.zeros((3, 2))).mean_correlation == 0.0


def test_bound_of_an_estimate_weighs_buckets_by_length():
    found = noise.NoiseEstimate(0.0, 1.0, 1.0, 0.0, 0.0, seeds=3, horizon=3)
    # Buckets of 2 and 1 steps on a ramp: errors of ½², ½² and 0.
    assert found.bound(2) == pytest.approx(1 / 6)
    assert found.bound(3) == 0.0


# ---------------------------------------------------------------------------------------- sharing
@pytest.mark.parametrize("num_buckets, horizon", [(1, 7), (3, 7), (7, 7), (4, 10), (30, 100)])
def test_buckets_are_those_of_hyperparameters(num_buckets, horizon):
    lengths = noise._lengths(num_buckets, horizon)
    hyperparameter = keras_fds.Hyperparameter("learning_rate", num_buckets)
    assert lengths.tolist() == hyperparameter.bucket_lengths(horizon).tolist()


def test_error_of_sharing_has_no_bias():
    """With three seeds, on average over many draws, it is the true error."""
    horizon, sigma, drift, correlation = 12, 0.5, 0.1, 0.4
    draws = [hypergradients(3, horizon, sigma, drift, correlation, k) for k in range(3000)]
    found = [noise.measure_sharing(each, [1, 3, 12]) for each in draws]
    mean = np.mean([each.errors for each in found], axis=0)
    error = np.std([each.errors for each in found], axis=0) / np.sqrt(len(draws))
    exact = noise.sharing_bound(sigma, drift, correlation, np.array([12, 4, 1]))
    assert np.all(np.abs(mean - exact) < 4 * error)
    assert np.all(error < 0.02 * exact)


def test_without_sharing_the_error_is_the_variance():
    h = hypergradients(9, 20)
    sharing = noise.measure_sharing(h)
    assert sharing.errors[-1] == pytest.approx(noise.estimate(h).noise ** 2, rel=1e-12)
    assert sharing.num_buckets[[0, -1]].tolist() == [1, 20]
    np.testing.assert_allclose(sharing.steps, 20 / sharing.num_buckets)


def test_best_and_fewest_numbers_of_buckets():
    flat = noise.measure_sharing(hypergradients(30, 64))
    assert (flat.best, flat.fewest) == (1, 1)
    steep = noise.measure_sharing(hypergradients(30, 64, drift=10.0))
    assert (steep.best, steep.fewest) == (64, 64)
    middle = noise.measure_sharing(hypergradients(200, 64, drift=0.05), [2, 4, 8, 16, 32])
    best = noise.best_steps(0.5, 0.05)
    assert best == pytest.approx(8.4, abs=0.1)
    assert middle.best == 8  # Of eight steps each.
    assert middle.fewest <= middle.best


def test_error_of_other_estimates():
    h = hypergradients(400, 10, sigma=0.5)
    error, standard_error = noise.error_of(h + 2.0, h)
    assert error == pytest.approx(4.25, abs=5 * standard_error)
    assert 0 < standard_error < 0.2
    with pytest.raises(ValueError, match=r"must have one shape. Received: \(400, 9\) and \(400,"):
        noise.error_of(h[:, 1:], h)


@pytest.mark.parametrize("shape", [(2, 5), (5, 1), (5,), (3, 4, 5)])
def test_too_few_seeds_or_steps_are_refused(shape):
    with pytest.raises(ValueError, match="at least three seeds and two steps. Received: shape="):
        noise.estimate(np.zeros(shape))


def test_seeds_that_broke_down_are_named():
    h = hypergradients(5, 4)
    h[3, 1], h[1, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"Received: NaN or infinity in rows \[1, 3\]"):
        noise.measure_sharing(h)


def test_numbers_of_buckets_above_the_horizon_are_refused():
    with pytest.raises(ValueError, match="`num_buckets` must be a whole number of at least 1 and"):
        noise.measure_sharing(hypergradients(5, 4), [5])
