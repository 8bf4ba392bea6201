"""What all outer rules share, and the paper's rule, bucket by bucket, in plain Python."""

import copy

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fds import Hyperparameter
from keras_fds.hyperparameters import Buckets
from keras_fds.outer import BayesianOptimization, Descent, Observation, Problem, SignDescent

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")

RULES = (SignDescent, Descent, BayesianOptimization)

any_float = st.floats(allow_nan=True, allow_infinity=True)
not_zero = st.floats(allow_nan=False).filter(lambda value: value != 0)
signs_only = st.sampled_from([1.0, -1.0, 0.0, np.nan])


def problem_of(values, step_sizes, minimum=-np.inf, maximum=np.inf, outer_steps=99):
    """Of one hyperparameter a value."""
    minimum, maximum = np.broadcast_arrays(minimum, maximum, np.zeros(len(values)))[:2]
    hyperparameters = [
        Hyperparameter(f"model.n{k}", 1, value, step, float(minimum[k]), float(maximum[k]))
        for k, (value, step) in enumerate(zip(values, step_sizes))
    ]
    horizons = [10] * outer_steps
    return Problem(Buckets(hyperparameters), np.array(values, float), 10, horizons)


def steps_of(rule, problem, measured, losses=None):
    """The coordinates of all outer steps of a search that measures these hypergradients."""
    observations, found = [], [rule.propose([], problem).coordinates]
    for i, hypergradients in enumerate(measured):
        loss = 1.0 if losses is None else losses[i]
        values = np.array(hypergradients, float)
        observations.append(Observation(found[-1], 10, loss, hypergradients=values))
        found.append(rule.propose(observations, problem).coordinates)
    return np.array(found)


def paper(values, step_sizes, measured, shrink=0.5):
    """The paper's rule over several outer steps, in loops over scalars."""
    values, step_sizes = list(values), list(step_sizes)
    previous = [0] * len(values)
    for hypergradients in measured:
        for k, hypergradient in enumerate(hypergradients):
            sign = int(hypergradient > 0) - int(hypergradient < 0)  # NaN has sign 0.
            if sign * previous[k] == -1:
                step_sizes[k] *= shrink
            values[k] -= sign * step_sizes[k]
            previous[k] = sign
    return values


@st.composite
def searches(draw, hypergradient=any_float):
    """`(values, step_sizes, measured)`."""
    size = draw(st.integers(1, 4))

    def vectors(elements):
        return st.lists(elements, min_size=size, max_size=size)

    steps = draw(st.integers(1, 8))
    measured = [draw(vectors(hypergradient)) for _ in range(steps)]
    return draw(vectors(st.floats(-1, 1))), draw(vectors(st.floats(1e-3, 1))), measured


# ------------------------------------------------------------------------------ the paper's rule
def test_steps_against_the_sign_and_halves_on_a_flip():
    problem = problem_of([1.0], [0.4])
    found = steps_of(SignDescent(), problem, [[3.0], [0.1], [-5.0], [-2.0], [7.0]])
    assert found[:, 0] == pytest.approx([1, 0.6, 0.2, 0.4, 0.6, 0.5])


def test_buckets_do_not_touch_each_other():
    found = steps_of(SignDescent(), problem_of([1.0, 1.0], [0.4, 0.2]), [[1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(found[-1], [0.8, 0.6])


def test_shrink_is_the_factor_of_a_flip():
    found = steps_of(SignDescent(shrink=0.1), problem_of([1.0], [0.4]), [[1.0], [-1.0]])
    assert found[-1] == pytest.approx(0.64)


@pytest.mark.parametrize("hypergradient", [not_zero, signs_only])
def test_it_is_the_papers_rule(hypergradient):
    @given(searches(hypergradient))
    def check(search):
        values, step_sizes, measured = search
        found = steps_of(SignDescent(), problem_of(values, step_sizes), measured)
        np.testing.assert_array_equal(found[-1], paper(values, step_sizes, measured))

    check()


@pytest.mark.parametrize("nothing", [0.0, -0.0, np.nan])
def test_zero_and_nan_leave_a_value_where_it_is(nothing):
    found = steps_of(SignDescent(), problem_of([0.5, 0.5], [0.1, 0.1]), [[1.0, nothing]] * 2)
    np.testing.assert_allclose(found[-1], [0.3, 0.5])


def test_infinite_hypergradients_have_a_sign():
    found = steps_of(SignDescent(), problem_of([0.5, 0.5], [0.1, 0.1]), [[np.inf, -np.inf]])
    np.testing.assert_allclose(found[-1], [0.4, 0.6])


@given(searches())
def test_values_stay_in_range(search):
    values, step_sizes, measured = search
    problem = problem_of(values, step_sizes, -1.0, 1.0)
    assert np.all(np.abs(steps_of(SignDescent(), problem, measured)) <= 1.0)


def test_ranges_are_one_a_value():
    problem = problem_of([0.5, 0.5], [0.1, 0.1], [0.45, 0.0], [1.0, 0.55])
    found = steps_of(SignDescent(), problem, [[1.0, -1.0]])
    np.testing.assert_array_equal(found[-1], [0.45, 0.55])


def test_it_makes_the_outer_steps_asked_for():
    problem = problem_of([0.5], [0.1], outer_steps=2)
    observations = [Observation(np.array([0.5]), 10, 1.0, hypergradients=np.ones(1))] * 2
    assert SignDescent().propose(observations[:1], problem).horizon == 10
    assert SignDescent().propose(observations, problem) is None


def test_a_search_that_only_breaks_down_does_not_stay_where_it_is():
    problem = problem_of([0.5], [0.1])
    broke_down = Observation(np.array([0.5]), 10, None)
    sound = Observation(np.array([0.5]), 10, 1.0, hypergradients=np.ones(1))
    assert SignDescent().propose([broke_down], problem) is None
    assert SignDescent().propose([sound, broke_down], problem) is not None


# ------------------------------------------------------------------------------------ all rules
@pytest.mark.parametrize("rule", RULES)
def test_a_proposal_depends_on_the_observations_alone(rule):
    rng = np.random.default_rng(0)
    problem = problem_of([0.5, 0.5], [0.1, 0.1], 0.0, 1.0)
    observations = [
        Observation(rng.random(2), 10, float(rng.random()), hypergradients=rng.normal(size=2))
        for _ in range(5)
    ]
    before = copy.deepcopy(observations)
    first = rule().propose(observations, problem)
    rule().propose(observations[:3], problem)
    again = rule.from_config(rule().get_config()).propose(before, problem)
    np.testing.assert_array_equal(first.coordinates, again.coordinates)
    np.testing.assert_equal([vars(o) for o in observations], [vars(o) for o in before])


@pytest.mark.parametrize("rule", RULES)
def test_several_proposals_begin_with_the_next_one(rule):
    problem = problem_of([0.5, 0.5], [0.1, 0.1], 0.0, 1.0, outer_steps=4)
    observation = Observation(np.array([0.4, 0.6]), 10, 0.5, hypergradients=np.array([0.3, -0.2]))
    for done in (0, 1, 2, 4):
        observations = [observation] * done
        first = rule().propose(observations, problem)
        several = rule().propose_several(observations, problem, 3)
        expected = [] if first is None else [vars(first)]
        np.testing.assert_equal([vars(each) for each in several[:1]], expected)
        assert len(several) <= (3 if rule is BayesianOptimization else 1)


@pytest.mark.parametrize("rule", RULES)
def test_a_longer_horizon_counts_more_and_then_a_lower_loss(rule):
    problem = problem_of([0.5], [0.1])

    def observed(loss, horizon=10):
        return Observation(np.array([0.5]), horizon, loss)

    assert rule().is_best([observed(2.0, 5)], None, problem)
    assert rule().is_best([observed(1.0, 5), observed(2.0)], 0, problem)
    assert not rule().is_best([observed(2.0), observed(1.0, 5)], 0, problem)


@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        (SignDescent, {}),
        (SignDescent, {"shrink": 0.25}),
        (Descent, {"mean_decay": 0.5}),
        (BayesianOptimization, {}),
        (BayesianOptimization, {"caution": 2.0}),
    ],
)
def test_config_round_trip(rule, arguments):
    rule = rule(**arguments)
    serialized = keras.saving.serialize_keras_object(rule)
    restored = keras.saving.deserialize_keras_object(serialized)
    assert type(restored) is type(rule)
    assert restored.get_config() == rule.get_config()
    assert rule.get_config().items() >= arguments.items()


@pytest.mark.parametrize(
    ("rule", "argument", "value"),
    [
        (SignDescent, "shrink", 0),
        (SignDescent, "shrink", 1.0),
        (SignDescent, "shrink", np.nan),
        (SignDescent, "shrink", "half"),
        (Descent, "mean_decay", 1.0),
        (Descent, "square_decay", 0),
        (BayesianOptimization, "caution", -1.0),
        (BayesianOptimization, "caution", np.nan),
        (BayesianOptimization, "caution", None),
    ],
)
def test_bad_input_is_named_with_what_was_received(rule, argument, value):
    with pytest.raises(ValueError) as raised:
        rule(**{argument: value})
    assert f"`{argument}`" in str(raised.value)
    assert f"Received: {argument}={value!r}" in str(raised.value)
