"""Many values descend; few are searched first."""

import numpy as np
import pytest

from keras_fds import Hyperparameter
from keras_fds.hyperparameters import Buckets
from keras_fds.outer import BayesianOptimization, Descent, Observation, Problem

SIZE = 50
CENTRE = np.random.default_rng(0).uniform(0.0, 2.0, SIZE)


def problem_of(numbers=0, **arguments):
    learned = [
        Hyperparameter(f"model.n{k}", initial=1.0, min_value=0.1, max_value=10.0)
        for k in range(numbers)
    ]
    buckets = Buckets([Hyperparameter("sample_weight", shape=SIZE), *learned])
    return Problem(buckets, buckets.initial_coordinates(), 100, **arguments)


def loss_at(problem, coordinates):
    """Of a bowl whose lowest point is at `CENTRE`, and where numbers are 3; and its slopes."""
    vector = coordinates[:SIZE] - CENTRE
    rest = np.log(coordinates[SIZE:] / 3.0)
    slopes = np.concatenate([2 * vector / SIZE, 2 * rest / coordinates[SIZE:]])
    return 0.1 + np.mean(np.square(vector)) + np.sum(np.square(rest)), slopes


def searched(rule, problem, most=200):
    """All observations of a search, and the number of the best one."""
    observations, best = [], None
    while len(observations) < most:
        proposal = rule.propose(observations, problem)
        if proposal is None:
            return observations, best
        loss, slopes = loss_at(problem, proposal.coordinates)
        if proposal.horizon < problem.horizon:
            loss += 0.1
        observations.append(
            Observation(
                proposal.coordinates,
                proposal.horizon,
                loss,
                hypergradients=slopes if proposal.with_hypergradients else None,
            )
        )
        if rule.is_best(observations, best, problem):
            best = len(observations) - 1
        rule.bands(observations, problem)
    raise AssertionError("The search does not end.")


def test_the_first_step_is_as_long_as_the_step_size_on_the_mean():
    problem = problem_of(horizons=[100] * 3)
    start = problem.start
    observation = Observation(start, 100, 1.0, hypergradients=np.linspace(-1, 1, SIZE))
    moved = Descent().propose([observation], problem).coordinates - start
    np.testing.assert_allclose(moved, -0.1 * np.sign(observation.hypergradients), atol=1e-12)


@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e200])
def test_the_scale_of_hypergradients_does_not_matter(factor):
    problem = problem_of(horizons=[100] * 9)
    rng = np.random.default_rng(1)
    slopes = [rng.normal(size=SIZE) for _ in range(3)]
    ends = []
    for scale in (1.0, factor):
        observations = []
        for each in slopes:
            coordinates = Descent().propose(observations, problem).coordinates
            observations.append(Observation(coordinates, 100, 1.0, hypergradients=scale * each))
        ends.append(Descent().propose(observations, problem).coordinates)
    np.testing.assert_allclose(*ends, rtol=1e-9)


def test_values_stay_in_range_and_what_is_not_finite_stays():
    problem = problem_of(horizons=[100] * 60)
    slopes = np.where(np.arange(SIZE) < 3, [np.nan, np.inf, 0.0] + [1.0] * (SIZE - 3), 1.0)
    observations = []
    for _ in range(30):
        coordinates = Descent().propose(observations, problem).coordinates
        observations.append(Observation(coordinates, 100, 1.0, hypergradients=slopes))
    np.testing.assert_array_equal(coordinates[:3], 1.0)
    np.testing.assert_array_equal(coordinates[3:], 0.0)


def test_it_goes_back_halfway_from_where_training_broke_down():
    problem = problem_of(horizons=[100] * 9)
    sound = Observation(problem.start, 100, 1.0, hypergradients=np.ones(SIZE))
    step = Descent().propose([sound], problem)
    broken = Observation(step.coordinates, 100, None)
    back = Descent().propose([sound, broken], problem).coordinates
    np.testing.assert_allclose(back, (problem.start + step.coordinates) / 2)
    assert Descent().propose([broken], problem) is None


@pytest.mark.parametrize("rule", [Descent, BayesianOptimization])
@pytest.mark.parametrize("limit", [{"budget": 100.0}, {"horizons": [100] * 25}])
def test_a_vector_descends_to_the_lowest_point(rule, limit):
    problem = problem_of(**limit)
    observations, best = searched(rule(), problem)
    assert problem.budget is None or problem.spent(observations) <= problem.budget
    assert np.abs(observations[best].coordinates - CENTRE).max() < 0.2
    assert observations[best].loss < 0.11 < observations[0].loss


@pytest.mark.parametrize("limit", [{"budget": 100.0}, {"horizons": [100] * 24}])
def test_numbers_are_searched_before_vectors_descend(limit):
    problem = problem_of(numbers=2, **limit)
    rule = BayesianOptimization()
    observations, best = searched(rule, problem)
    assert problem.budget is None or problem.spent(observations) <= problem.budget
    moved = [not np.array_equal(o.coordinates[:SIZE], problem.start[:SIZE]) for o in observations]
    first = moved.index(True)
    assert all(moved[first:]) and len(observations) - first >= 10
    numbers = np.array([o.coordinates[SIZE:] for o in observations])
    np.testing.assert_array_equal(numbers[first - 1 :], numbers[[first] * (len(moved) - first + 1)])
    assert len(np.unique(numbers[:first], axis=0)) > 5
    assert best >= first
    np.testing.assert_allclose(observations[best].coordinates[:SIZE], CENTRE, atol=0.25)
    np.testing.assert_allclose(np.log(observations[best].coordinates[SIZE:] / 3), 0.0, atol=0.5)


def test_a_vector_that_has_no_slopes_ends_too():
    problem = problem_of(numbers=1, budget=30.0)
    rule, observations = BayesianOptimization(), []
    while (proposal := rule.propose(observations, problem)) is not None:
        slopes = np.zeros(SIZE + 1) if proposal.with_hypergradients else None
        loss = 1.0 + 0.01 * len(observations)
        observations.append(
            Observation(proposal.coordinates, proposal.horizon, loss, hypergradients=slopes)
        )
        assert len(observations) < 100
    assert problem.spent(observations) <= problem.budget


def test_within_a_budget_trainings_become_longer_and_the_last_one_is_whole_and_plain():
    problem = problem_of(budget=60.0)
    observations, _ = searched(Descent(), problem)
    horizons = [each.horizon for each in observations]
    assert horizons == sorted(horizons)
    assert set(horizons) == {20, 30, 100}  # None is shorter than twenty steps.
    part = problem.spent([each for each in observations if each.horizon < 100]) / problem.budget
    assert 0.45 < part < 0.55
    assert [each.hypergradients is None for each in observations] == [False] * (
        len(observations) - 1
    ) + [True]


@pytest.mark.parametrize("budget", [2.0, 4.0, 12.0, 30.3])
def test_any_budget_suffices_for_a_whole_training(budget):
    observations, _ = searched(Descent(), problem_of(budget=budget))
    assert observations[-1].horizon == 100
    assert problem_of(budget=budget).spent(observations) <= budget


def test_trainings_have_a_step_for_every_bucket():
    hyperparameter = Hyperparameter("class_weight", num_buckets=45, initial=1.0, shape=2)
    problem = Problem(Buckets([hyperparameter]), np.ones(90), 100, budget=40.0)
    assert Descent().propose([], problem).horizon == 45
