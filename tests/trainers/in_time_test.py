"""A rule within a time gets a budget that ends with it."""

import keras
import pytest

import keras_fds
from keras_fds.hyperparameters import Buckets
from keras_fds.outer import Observation, Problem
from trainers.in_time import InTime

BUCKETS = Buckets(
    [
        keras_fds.Hyperparameter("learning_rate", 5, interpolation="linear"),
        keras_fds.Hyperparameter("momentum"),
    ]
)


def search(outer, other, budget=12.0):
    """A search whose plain training takes a second, and every outer step `other` seconds more.

    Returns:
        `(seconds, proposals)`.
    """
    problem = Problem(BUCKETS, BUCKETS.initial_coordinates(), horizon=500, budget=budget)
    observations, proposals, seconds = [], [], [0.0]
    outer.clock = lambda: seconds[0]
    while (found := outer.propose(observations, problem)) is not None:
        proposals.append(found)
        level = abs(BUCKETS.values(found.coordinates)["learning_rate"].mean() - 0.1)
        observations.append(Observation(found.coordinates, found.horizon, loss=0.3 + level))
        seconds[0] += problem.price(found) + other
    return seconds[0], proposals


@pytest.mark.parametrize("other", [0.05, 0.5, 1.5])
def test_it_trains_with_its_answer_in_time(other):
    outer = InTime(keras_fds.outer.BayesianOptimization(), 12.0, seconds_a_training=1.0)
    seconds, proposals = search(outer, other)
    assert proposals[-1].horizon == 500
    assert seconds <= 12.0 + other


def test_with_time_to_spare_it_changes_nothing():
    rule = keras_fds.outer.BayesianOptimization()
    _, proposals = search(InTime(rule, 1e6, seconds_a_training=1.0), 0.5, budget=3.0)
    _, expected = search(rule, 0.5, budget=3.0)
    assert [each.horizon for each in proposals] == [each.horizon for each in expected]
    assert all((a.coordinates == b.coordinates).all() for a, b in zip(proposals, expected))


def test_its_config_makes_it_again():
    outer = InTime(keras_fds.outer.BayesianOptimization(caution=2.0), 60.0, 4.0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(outer))
    assert again.get_config() == outer.get_config() and again.rule.caution == 2.0
