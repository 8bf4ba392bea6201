"""The surrogate of the loss: its derivatives, what it learns, and that it forgets nothing."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="benchmarks/requirements.txt has it")
pytest.importorskip("jax", reason="benchmarks/requirements.txt has it")

from benchmarks.outer_rules.inner_loop import Measured
from benchmarks.outer_rules.searchers import Observation
from benchmarks.outer_rules.surrogate import Space, Surrogate, SurrogateSearcher

HORIZON = 100
GOOD = np.array([-2.0, 1.5, -6.0])  # Logarithms of the rate, of 1 / (1 - momentum), of the decay.


def log_loss(schedule):
    """A bowl around `GOOD` with a cliff, by the numbers of every step, and its derivatives."""
    rate, momentum, decay = np.float64(schedule.T)
    good = np.exp(GOOD[0]) * (1 - np.arange(len(schedule)) / len(schedule))
    logs = np.stack([np.log(rate / good), -np.log1p(-momentum), np.log(decay)], axis=1)
    widths = [2.0, 2.0, 4.0]
    off = (logs - [0.0, *GOOD[1:]]) / widths
    loss = np.minimum(0.8, -1 + np.mean(np.square(off)) * 3)
    by_logs = 6 * off / widths / off.size * (loss < 0.8)
    return loss, by_logs / np.stack([rate, 1 - momentum, decay], axis=1)


def search(seed=0, budget=10.0, optimizer="adamw"):
    """`(searcher, observations)` of a search on that bowl, with noise."""
    searcher = SurrogateSearcher(optimizer, HORIZON, seed, num_values=(3, 2, 1), budget=budget)
    observations, rng, cost = [], np.random.default_rng(seed), 0.0
    while True:
        proposal = searcher.propose(observations)
        if proposal is None:
            assert budget - 1 < cost <= budget
            return searcher, observations
        cost += proposal.cost(HORIZON)
        loss, slopes = log_loss(proposal.schedule)
        loss = np.exp(loss + 0.02 * rng.standard_normal())
        hypergradients = loss * slopes if proposal.with_hypergradients else None
        observations.append(Observation(proposal, Measured(loss, 0.01, False, hypergradients)))


@pytest.fixture(scope="module")
def searched():
    return search()


@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_slopes_are_the_derivatives_of_values(interpolation):
    space, rng = Space("sgd", (3, 2, 1), interpolation), np.random.default_rng(0)
    points = rng.uniform(space.constant(space.low), space.constant(space.high), (6, space.size))
    slopes = {2: (rng.normal(size=space.size), np.full(space.size, 0.1))}
    horizons = np.log([0.1, 0.1, 0.3, 0.3, 1.0, 1.0])
    surrogate = Surrogate(space, points, horizons, rng.normal(size=6), slopes)
    x, h = points[2], 0.0
    rows, of_given = surrogate.slope_rows(x, h), surrogate.given
    found = surrogate.covariance(rows, of_given) @ surrogate.weights + surrogate._prior_slope(x)
    steps = 1e-5 * np.eye(space.size)
    expected = (surrogate.mean(x + steps) - surrogate.mean(x - steps)) / 2e-5
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    # The covariance of two slopes is the derivative of that of a slope and a value.
    of_slopes = surrogate.covariance(rows, rows)
    ends = [surrogate.covariance(rows, surrogate.rows(x + sign * steps, h)) for sign in (1, -1)]
    np.testing.assert_allclose(of_slopes, (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("interpolation", ["linear", "constant"])
def test_coordinates_give_the_slopes_of_schedules(interpolation):
    space, x = Space("sgd", (3, 2, 1), interpolation), np.array([-2.0, -1.0, -3.0, 1.0, 2.0, -6.0])
    schedule = space.schedule(x, 20)
    found = space.slopes(x, log_loss(schedule)[1])
    losses = [
        [log_loss(space.schedule(x + sign * step, 20))[0] for step in 1e-2 * np.eye(6)]
        for sign in (1, -1)
    ]
    np.testing.assert_allclose(found, np.subtract(*losses) / 2e-2, rtol=1e-3, atol=1e-5)


def test_the_answer_is_near_the_best_schedule(searched):
    searcher, observations = searched
    loss, _ = log_loss(searcher.answer(observations))
    assert loss < -0.9  # The best one has -1, the median of the first ones 0.8.


def test_observations_are_all_it_knows(searched):
    _, observations = searched
    for number in (9, len(observations) // 2, len(observations) - 1):
        other = SurrogateSearcher("adamw", HORIZON, 0, num_values=(3, 2, 1), budget=10.0)
        proposal, expected = other.propose(observations[:number]), observations[number].proposal
        np.testing.assert_array_equal(proposal.schedule, expected.schedule)
        assert proposal.with_hypergradients == expected.with_hypergradients


def test_short_trainings_come_first_and_whole_ones_last(searched):
    _, observations = searched
    horizons = [len(each.proposal.schedule) for each in observations]
    assert max(horizons[:12]) < HORIZON == horizons[-1]
