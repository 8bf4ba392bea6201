"""The outer update rule, bucket by bucket, against the paper's in plain Python."""

import copy
import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fds.outer import SignDescent

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")

ANYWHERE = (np.array([-np.inf]), np.array([np.inf]))
any_float = st.floats(allow_nan=True, allow_infinity=True)
any_loss = st.floats(-1e300, 1e300) | st.sampled_from([math.inf, -math.inf, math.nan])
signs_only = st.sampled_from([1.0, -1.0, 0.0, math.nan])
not_zero = st.floats(allow_nan=False).filter(lambda value: value != 0)


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
    return values, step_sizes


def run(rule, values, step_sizes, measured, losses=None, ranges=ANYWHERE):
    """The states before and after every update."""
    states = [rule.initial_state(np.array(values), np.array(step_sizes))]
    for i, hypergradients in enumerate(measured):
        loss = 1.0 if losses is None else losses[i]
        states.append(rule.update(states[-1], np.array(hypergradients), loss, *ranges))
    return states


@st.composite
def searches(draw, hypergradient=any_float):
    """`(values, step_sizes, measured, losses)`."""
    size = draw(st.integers(1, 4))
    number_of_steps = draw(st.integers(1, 8))

    def vectors(elements):
        return st.lists(elements, min_size=size, max_size=size)

    return (
        draw(vectors(st.floats(-1, 1))),
        draw(vectors(st.floats(1e-3, 1))),
        [draw(vectors(hypergradient)) for _ in range(number_of_steps)],
        [draw(any_loss) for _ in range(number_of_steps)],
    )


# ------------------------------------------------------------------------------ the paper's rule
def test_steps_against_the_sign_and_halves_on_a_flip():
    states = run(SignDescent(tolerance=None), [1.0], [0.4], [[3.0], [0.1], [-5.0], [-2.0], [7.0]])
    assert [float(s["values"][0]) for s in states] == pytest.approx([1, 0.6, 0.2, 0.4, 0.6, 0.5])
    assert [float(s["step_sizes"][0]) for s in states] == [0.4, 0.4, 0.4, 0.2, 0.2, 0.1]


def test_buckets_do_not_touch_each_other():
    states = run(SignDescent(tolerance=None), [1.0, 1.0], [0.4, 0.2], [[1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(states[-1]["values"], [0.8, 0.6])
    np.testing.assert_allclose(states[-1]["step_sizes"], [0.2, 0.2])


def test_shrink_is_the_factor_of_a_flip():
    rule = SignDescent(shrink=0.1, tolerance=None)
    states = run(rule, [1.0], [0.4], [[1.0], [-1.0]])
    assert states[-1]["step_sizes"] == pytest.approx(0.04)


@given(searches(hypergradient=not_zero))
def test_without_tolerance_it_is_the_papers_rule(search):
    values, step_sizes, measured, losses = search
    state = run(SignDescent(tolerance=None), values, step_sizes, measured, losses)[-1]
    expected_values, expected_step_sizes = paper(values, step_sizes, measured)
    np.testing.assert_array_equal(state["values"], expected_values)
    np.testing.assert_array_equal(state["step_sizes"], expected_step_sizes)


@given(searches(hypergradient=signs_only))
def test_without_tolerance_it_is_the_papers_rule_through_zeros_and_nans(search):
    values, step_sizes, measured, losses = search
    state = run(SignDescent(tolerance=None), values, step_sizes, measured, losses)[-1]
    expected_values, expected_step_sizes = paper(values, step_sizes, measured)
    np.testing.assert_array_equal(state["values"], expected_values)
    np.testing.assert_array_equal(state["step_sizes"], expected_step_sizes)


@pytest.mark.parametrize("nothing", [0.0, -0.0, np.nan])
@pytest.mark.parametrize("tolerance", [None, 0.02])
def test_zero_and_nan_leave_a_value_where_it_is(nothing, tolerance):
    rule = SignDescent(tolerance=tolerance)
    states = run(rule, [0.5, 0.5], [0.1, 0.1], [[1.0, nothing], [1.0, nothing]])
    np.testing.assert_allclose(states[-1]["values"], [0.3, 0.5])
    np.testing.assert_array_equal(states[-1]["step_sizes"], [0.1, 0.1])


def test_infinite_hypergradients_have_a_sign():
    states = run(SignDescent(tolerance=None), [0.5, 0.5], [0.1, 0.1], [[np.inf, -np.inf]])
    np.testing.assert_allclose(states[-1]["values"], [0.4, 0.6])


def test_only_the_sign_counts():
    large, small = (
        run(SignDescent(), [0.5, 0.5], [0.1, 0.2], [[size, -size], [-size, -size]])[-1]
        for size in (1e30, 1e-30)
    )
    np.testing.assert_array_equal(large["values"], small["values"])


# --------------------------------------------------------------------------------------- ranges
@given(searches(), st.sampled_from([None, 0.0, 0.02, 10.0]), st.floats(0.01, 0.99))
@pytest.mark.filterwarnings("error")
def test_values_stay_in_range_and_steps_never_grow(search, tolerance, shrink):
    values, step_sizes, measured, losses = search
    ranges = (np.full(len(values), -1.0), np.full(len(values), 1.0))
    rule = SignDescent(shrink=shrink, tolerance=tolerance)
    states = run(rule, values, step_sizes, measured, losses, ranges)
    for before, after in itertools.pairwise(states):
        assert np.all(np.abs(after["values"]) <= 1.0)
        assert np.all(np.isfinite(after["step_sizes"]))
        assert np.all(after["step_sizes"] <= before["step_sizes"])
        assert np.all(after["step_sizes"] >= before["step_sizes"] * shrink)
        assert not np.isnan(after["best_loss"])


def test_ranges_are_one_a_value():
    ranges = (np.array([0.45, 0.0]), np.array([1.0, 0.55]))
    state = run(SignDescent(), [0.5, 0.5], [0.1, 0.1], [[1.0, -1.0]], ranges=ranges)[-1]
    np.testing.assert_array_equal(state["values"], [0.45, 0.55])


# ------------------------------------------------------------------------------------ tolerance
def test_a_worse_point_is_left_for_the_best_one_with_halved_steps():
    rule = SignDescent(tolerance=0.02)
    measured = [[1.0], [1.0], [-1.0], [-1.0], [-1.0]]
    losses = [1.0, 0.5, 0.6, 0.7, 0.4]
    states = run(rule, [1.0], [0.1], measured, losses)
    # 0.9 (loss 0.5) is the best; 0.8 and 0.85 are worse; from 0.875 the sign flips.
    expected = [1.0, 0.9, 0.8, 0.9 - 0.05, 0.9 - 0.025, 0.875 + 0.0125]
    assert [float(s["values"][0]) for s in states] == pytest.approx(expected)
    assert [float(s["step_sizes"][0]) for s in states] == pytest.approx(
        [0.1, 0.1, 0.1, 0.05, 0.025, 0.0125]
    )
    assert float(states[-1]["best_loss"]) == 0.4
    assert states[-1]["best_values"] == pytest.approx(0.875)


def test_every_step_size_is_halved_on_a_return():
    rule = SignDescent(shrink=0.5, tolerance=0.02)
    states = run(
        rule, [1.0, 1.0, 1.0], [0.1, 0.2, 0.4], [[1.0, -1.0, 0.0], [-1.0] * 3], losses=[1.0, 2.0]
    )
    np.testing.assert_allclose(states[-1]["step_sizes"], [0.05, 0.1, 0.2])
    np.testing.assert_allclose(states[-1]["values"], [0.95, 1.1, 1.0])


@pytest.mark.parametrize(
    ("first", "second", "accepted"),
    [
        (1.0, 1.019, True),
        (1.0, 1.021, False),
        (-1.0, -0.981, True),
        (-1.0, -0.979, False),
        (0.0, 0.0, True),
        (0.0, 1e-9, False),
        (1.0, 0.1, True),
        (1.0, math.inf, False),
        (1.0, -math.inf, False),
        (1.0, math.nan, False),
    ],
)
def test_losses_within_the_tolerance_are_accepted(first, second, accepted):
    state = run(SignDescent(tolerance=0.02), [1.0], [0.1], [[1.0], [1.0]], [first, second])[-1]
    assert state["values"] == pytest.approx(0.8 if accepted else 0.95)
    assert state["step_sizes"] == pytest.approx(0.1 if accepted else 0.05)


@pytest.mark.filterwarnings("error")
def test_tolerance_zero_accepts_the_first_point_and_nothing_worse():
    losses = [1.0, 0.9, 0.90001]
    states = run(SignDescent(tolerance=0.0), [1.0], [0.1], [[1.0]] * 3, losses)
    assert [float(s["values"][0]) for s in states] == pytest.approx([1.0, 0.9, 0.8, 0.85])


def test_without_tolerance_a_worse_point_is_continued_from():
    losses = [1.0, 100.0, math.inf, math.nan]
    states = run(SignDescent(tolerance=None), [1.0], [0.1], [[1.0]] * 4, losses)
    assert [float(s["values"][0]) for s in states] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_first_point_that_breaks_down_is_never_the_best(loss):
    rule = SignDescent(tolerance=0.02)
    states = run(rule, [1.0], [0.1], [[np.nan], [1.0], [np.nan]], [loss, 2.0, loss])
    # Nothing to return to at first: the value stays and the step size is halved.
    assert [float(s["step_sizes"][0]) for s in states] == [0.1, 0.05, 0.05, 0.025]
    assert [float(s["values"][0]) for s in states] == pytest.approx([1.0, 1.0, 0.95, 0.975])
    assert float(states[-1]["best_loss"]) == 2.0


@pytest.mark.parametrize("tolerance", [None, 0.02])
@pytest.mark.parametrize("best", [0.07, 0.3, 2.0])
def test_finds_the_minimum_of_a_parabola_and_converges(tolerance, best):
    rule = SignDescent(tolerance=tolerance)
    minimum, maximum = np.zeros(1), np.full(1, 5.0)
    state = rule.initial_state(np.zeros(1), np.full(1, 0.1))
    for _ in range(100):
        if rule.converged(state, minimum, maximum):
            break
        error = state["values"] - best
        state = rule.update(state, 2 * error, float(error[0] ** 2), minimum, maximum)
    else:
        pytest.fail("did not converge")
    np.testing.assert_allclose(state["values"], best, rtol=0.1)


def test_a_cliff_ends_the_search_on_its_edge():
    # The loss falls towards 1 and is not finite from there on.
    rule = SignDescent(tolerance=0.02)
    state = rule.initial_state(np.zeros(1), np.full(1, 0.3))
    for _ in range(40):
        value = float(state["values"][0])
        loss, hypergradient = (2 - value, -1.0) if value < 1 else (np.inf, np.nan)
        state = rule.update(state, np.array([hypergradient]), loss, np.zeros(1), np.full(1, 9.0))
    assert 0.95 < float(state["best_values"][0]) < 1


# ------------------------------------------------------------------------------------ converged
@pytest.mark.parametrize(
    ("value", "step_size", "sign", "expected"),
    [
        (1.0, 0.049, 1.0, True),
        (1.0, 0.051, 1.0, False),
        (0.0, 0.1, 0.0, False),  # Nothing measured yet.
        (0.0, 0.1, -1.0, False),  # On its way up.
        (0.0, 0.1, 1.0, True),  # Held at the lower end,
        (2.0, 0.5, -1.0, True),  # and at the upper one.
        (2.0, 0.5, 1.0, False),
    ],
)
def test_converged(value, step_size, sign, expected):
    rule = SignDescent()
    state = rule.initial_state(np.array([value]), np.array([step_size]))
    state["signs"] = np.array([sign])
    assert rule.converged(state, np.zeros(1), np.full(1, 2.0)) is expected


@pytest.mark.parametrize(("step_size", "expected"), [(0.049, True), (0.051, False)])
def test_converged_at_a_negative_value(step_size, expected):
    rule = SignDescent()
    state = rule.initial_state(np.array([-1.0]), np.array([step_size]))
    assert rule.converged(state, np.full(1, -9.0), np.full(1, 9.0)) is expected


def test_converged_only_when_every_value_is():
    rule = SignDescent()
    for step_sizes, expected in (([0.01, 0.01], True), ([0.01, 0.1], False)):
        state = rule.initial_state(np.ones(2), np.array(step_sizes))
        assert rule.converged(state, np.zeros(2), np.full(2, 9.0)) is expected


# ---------------------------------------------------------------------------------------- state
@given(searches(), st.sampled_from([None, 0.02]))
def test_state_and_arguments_are_not_changed(search, tolerance):
    values, step_sizes, measured, losses = search
    rule = SignDescent(tolerance=tolerance)
    ranges = (np.full(len(values), -1.0), np.full(len(values), 1.0))
    values, step_sizes = np.array(values), np.array(step_sizes)
    state = rule.initial_state(values, step_sizes)
    values[:], step_sizes[:] = 9.0, 9.0
    assert not np.any(state["values"] == 9.0)
    assert not np.any(state["step_sizes"] == 9.0)
    for hypergradients, loss in zip(np.array(measured), losses):
        before = copy.deepcopy((state, hypergradients, ranges))
        new = rule.update(state, hypergradients, loss, *ranges)
        rule.converged(new, *ranges)
        for key in state:
            np.testing.assert_array_equal(state[key], before[0][key])
        np.testing.assert_array_equal(hypergradients, before[1])
        np.testing.assert_array_equal(ranges, before[2])
        state = new


def test_state_keeps_its_keys_shapes_and_dtypes():
    states = run(SignDescent(), [0.5, 0.5], [0.1, 0.1], [[1.0, np.nan], [1.0, 1.0]], [1.0, 2.0])
    forms = [{key: (v.shape, v.dtype) for key, v in state.items()} for state in states]
    assert forms[0] == forms[1] == forms[2]
    assert {dtype for _, dtype in forms[0].values()} == {np.dtype("float64")}


def test_going_on_from_a_saved_state_is_the_same_search():
    rng = np.random.default_rng(0)
    measured, losses = rng.normal(size=(8, 3)), rng.random(8)
    whole = run(SignDescent(), np.ones(3), np.full(3, 0.1), measured, losses)
    saved = {key: np.array(value.tolist()) for key, value in whole[4].items()}
    rule = SignDescent.from_config(SignDescent().get_config())
    for hypergradients, loss in zip(measured[4:], losses[4:]):
        saved = rule.update(saved, hypergradients, float(loss), *ANYWHERE)
    np.testing.assert_array_equal(saved["values"], whole[-1]["values"])


# --------------------------------------------------------------------------- config, bad input
@pytest.mark.parametrize("arguments", [{}, {"shrink": 0.25, "tolerance": 0.1}, {"tolerance": None}])
def test_config_round_trip(arguments):
    rule = SignDescent(**arguments)
    serialized = keras.saving.serialize_keras_object(rule)
    for restored in (
        SignDescent.from_config(rule.get_config()),
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(restored) is SignDescent
        assert (restored.shrink, restored.tolerance) == (rule.shrink, rule.tolerance)
    assert rule.get_config() == {"shrink": 0.5, "tolerance": 0.02, **arguments}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("shrink", 0),
        ("shrink", 1.0),
        ("shrink", -0.5),
        ("shrink", np.nan),
        ("shrink", None),
        ("shrink", "half"),
        ("tolerance", -0.01),
        ("tolerance", np.nan),
        ("tolerance", "none"),
    ],
)
def test_bad_input_is_named_with_what_was_received(argument, value):
    with pytest.raises(ValueError) as raised:
        SignDescent(**{argument: value})
    assert f"`{argument}`" in str(raised.value)
    assert f"Received: {argument}={value!r}" in str(raised.value)
