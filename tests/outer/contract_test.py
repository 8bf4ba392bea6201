"""The outer update rule, bucket by bucket, against the paper's in plain Python."""

import copy
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fds.outer import SignDescent, TrustRegionDescent
from tests.outer.rules import POSITIVE, linear_ranges, measurement, run

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")

RULES = (SignDescent, TrustRegionDescent)


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
    states = run(SignDescent(), [1.0], [0.4], [[3.0], [0.1], [-5.0], [-2.0], [7.0]])
    assert [float(s["values"][0]) for s in states] == pytest.approx([1, 0.6, 0.2, 0.4, 0.6, 0.5])
    assert [float(s["step_sizes"][0]) for s in states] == [0.4, 0.4, 0.4, 0.2, 0.2, 0.1]


def test_buckets_do_not_touch_each_other():
    states = run(SignDescent(), [1.0, 1.0], [0.4, 0.2], [[1.0, 1.0], [-1.0, 1.0]])
    np.testing.assert_allclose(states[-1]["values"], [0.8, 0.6])
    np.testing.assert_allclose(states[-1]["step_sizes"], [0.2, 0.2])


def test_shrink_is_the_factor_of_a_flip():
    rule = SignDescent(shrink=0.1)
    states = run(rule, [1.0], [0.4], [[1.0], [-1.0]])
    assert states[-1]["step_sizes"] == pytest.approx(0.04)


@given(searches(hypergradient=not_zero))
def test_it_is_the_papers_rule(search):
    values, step_sizes, measured, _ = search
    state = run(SignDescent(), values, step_sizes, measured)[-1]
    expected_values, expected_step_sizes = paper(values, step_sizes, measured)
    np.testing.assert_array_equal(state["values"], expected_values)
    np.testing.assert_array_equal(state["step_sizes"], expected_step_sizes)


@given(searches(hypergradient=signs_only))
def test_it_is_the_papers_rule_through_zeros_and_nans(search):
    values, step_sizes, measured, _ = search
    state = run(SignDescent(), values, step_sizes, measured)[-1]
    expected_values, expected_step_sizes = paper(values, step_sizes, measured)
    np.testing.assert_array_equal(state["values"], expected_values)
    np.testing.assert_array_equal(state["step_sizes"], expected_step_sizes)


@pytest.mark.parametrize("nothing", [0.0, -0.0, np.nan])
def test_zero_and_nan_leave_a_value_where_it_is(nothing):
    states = run(SignDescent(), [0.5, 0.5], [0.1, 0.1], [[1.0, nothing], [1.0, nothing]])
    np.testing.assert_allclose(states[-1]["values"], [0.3, 0.5])
    np.testing.assert_array_equal(states[-1]["step_sizes"], [0.1, 0.1])


def test_infinite_hypergradients_have_a_sign():
    states = run(SignDescent(), [0.5, 0.5], [0.1, 0.1], [[np.inf, -np.inf]])
    np.testing.assert_allclose(states[-1]["values"], [0.4, 0.6])


def test_only_the_sign_counts():
    large, small = (
        run(SignDescent(), [0.5, 0.5], [0.1, 0.2], [[size, -size], [-size, -size]])[-1]
        for size in (1e30, 1e-30)
    )
    np.testing.assert_array_equal(large["values"], small["values"])


# --------------------------------------------------------------------------------------- ranges
@pytest.mark.parametrize("rule", RULES)
@given(searches())
@pytest.mark.filterwarnings("error")
def test_values_stay_in_range(rule, search):
    values, step_sizes, measured, losses = search
    ranges = linear_ranges(np.full(len(values), -1.0), np.full(len(values), 1.0))
    for state in run(rule(), values, step_sizes, measured, losses, ranges):
        assert np.all(np.abs(state["values"]) <= 1.0)
        assert np.all(np.isfinite(state["step_sizes"]))
        assert not np.isnan(state["best_loss"])


def test_ranges_are_one_a_value():
    ranges = linear_ranges([0.45, 0.0], [1.0, 0.55])
    state = run(SignDescent(), [0.5, 0.5], [0.1, 0.1], [[1.0, -1.0]], ranges=ranges)[-1]
    np.testing.assert_array_equal(state["values"], [0.45, 0.55])


# -------------------------------------------------------------------------------- the way down
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_first_point_that_breaks_down_is_never_the_best(rule, loss):
    states = run(rule(), [1.0], [0.1], [[np.nan], [1.0], [np.nan]], [loss, 2.0, loss], POSITIVE)
    assert float(states[1]["values"][0]) == pytest.approx(
        1.0 if rule is SignDescent else 1.1 / 10 - 0.1
    )
    worse = measurement([1.0], 1e9)
    assert rule().classify(states[1], worse, POSITIVE) == "best"
    assert rule().classify(states[-1], worse, POSITIVE) != "best"
    assert float(states[-1]["best_loss"]) == 2.0


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("best", [0.07, 0.3, 2.0])
def test_finds_the_minimum_of_a_parabola_and_converges(rule, best):
    rule, ranges = rule(), linear_ranges(0.0, 5.0)
    state = rule.initial_state(np.zeros(1), np.full(1, 0.1))
    for _ in range(100):
        if rule.converged(state, ranges):
            break
        error = state["values"] - best
        state = rule.update(state, measurement(2 * error, 1 + float(error[0] ** 2)), ranges)
    else:
        pytest.fail("did not converge")
    np.testing.assert_allclose(state["values"], best, rtol=0.1)


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
    assert rule.converged(state, linear_ranges(0, 2)) is expected


@pytest.mark.parametrize(("step_size", "expected"), [(0.049, True), (0.051, False)])
def test_converged_at_a_negative_value(step_size, expected):
    rule = SignDescent()
    state = rule.initial_state(np.array([-1.0]), np.array([step_size]))
    assert rule.converged(state, linear_ranges(-9, 9)) is expected


def test_converged_only_when_every_value_is():
    rule = SignDescent()
    for step_sizes, expected in (([0.01, 0.01], True), ([0.01, 0.1], False)):
        state = rule.initial_state(np.ones(2), np.array(step_sizes))
        assert rule.converged(state, linear_ranges([0, 0], [9, 9])) is expected


# ---------------------------------------------------------------------------------------- state
@pytest.mark.parametrize("rule", RULES)
@given(searches())
def test_state_and_arguments_are_not_changed(rule, search):
    values, step_sizes, measured, losses = search
    rule = rule()
    ranges = linear_ranges(np.full(len(values), -1.0), np.full(len(values), 1.0))
    values, step_sizes = np.array(values), np.array(step_sizes)
    state = rule.initial_state(values, step_sizes)
    values[:] = 9.0
    step_sizes[:] = 9.0
    assert not np.any(state["values"] == 9.0)
    assert not np.any(state["step_sizes"] == 9.0)
    for hypergradients, loss in zip(measured, losses):
        given_to_it = state, measurement(hypergradients, loss), ranges
        before = copy.deepcopy(given_to_it)
        new = rule.update(*given_to_it)
        rule.classify(*given_to_it)
        rule.converged(new, ranges)
        np.testing.assert_equal(given_to_it, before)
        state = new


@pytest.mark.parametrize("rule", RULES)
def test_state_keeps_its_keys_shapes_and_dtypes(rule):
    measured = [[1.0, np.nan], [1.0, 1.0], [1.0, 0.0]]
    losses = [1.0, 2.0, np.inf]
    ranges = linear_ranges([0.0] * 2, [np.inf] * 2)
    states = run(rule(), [0.5, 0.5], [0.1, 0.1], measured, losses, ranges)
    forms = [{key: (v.shape, v.dtype) for key, v in state.items()} for state in states]
    assert all(form == forms[0] for form in forms)
    assert {dtype for _, dtype in forms[0].values()} == {np.dtype("float64")}


@pytest.mark.parametrize("rule", RULES)
def test_going_on_from_a_saved_state_is_the_same_search(rule):
    rng = np.random.default_rng(0)
    measured, losses = rng.normal(size=(8, 3)), rng.random(8)
    ranges = linear_ranges([0.0] * 3, [np.inf] * 3)
    whole = run(rule(), np.ones(3), np.full(3, 0.1), measured, losses, ranges)
    saved = {key: np.array(value.tolist()) for key, value in whole[4].items()}
    again = rule.from_config(rule().get_config())
    for hypergradients, loss in zip(measured[4:], losses[4:]):
        saved = again.update(saved, measurement(hypergradients, float(loss)), ranges)
    np.testing.assert_array_equal(saved["values"], whole[-1]["values"])


# --------------------------------------------------------------------------- config, bad input
@pytest.mark.parametrize(
    ("rule", "arguments"),
    [
        (SignDescent, {}),
        (SignDescent, {"shrink": 0.25}),
        (TrustRegionDescent, {}),
        (
            TrustRegionDescent,
            {
                "tolerance": 0.1,
                "growth": 1.5,
                "shrink": 0.25,
                "noise_floor": 0.2,
                "instability_threshold": 2.0,
            },
        ),
    ],
)
def test_config_round_trip(rule, arguments):
    rule = rule(**arguments)
    serialized = keras.saving.serialize_keras_object(rule)
    for restored in (
        type(rule).from_config(rule.get_config()),
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(restored) is type(rule)
        assert restored.get_config() == rule.get_config()
    assert rule.get_config().items() >= arguments.items()


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
        ("tolerance", None),
        ("growth", 0.9),
        ("growth", np.inf),
        ("instability_threshold", 0.0),
        ("instability_threshold", -1.0),
        ("instability_threshold", True),
        ("noise_floor", 0.0),
        ("noise_floor", np.nan),
    ],
)
def test_bad_input_is_named_with_what_was_received(argument, value):
    for rule in RULES if argument == "shrink" else (TrustRegionDescent,):
        with pytest.raises(ValueError) as raised:
            rule(**{argument: value})
        assert f"`{argument}`" in str(raised.value)
        assert f"Received: {argument}={value!r}" in str(raised.value)
