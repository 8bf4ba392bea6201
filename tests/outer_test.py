"""The outer update rule, bucket by bucket, against the paper's in plain Python."""

import copy
import itertools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fds.outer import Measurement, Ranges, SignDescent, TrustRegionDescent

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")

RULES = (SignDescent, TrustRegionDescent)


def linear_ranges(minimum, maximum):
    minimum, maximum = np.atleast_1d(minimum), np.atleast_1d(maximum)
    linear, groups = np.full(len(minimum), True), np.arange(len(minimum))
    return Ranges(minimum.astype(float), maximum.astype(float), linear, groups)


ANYWHERE = linear_ranges(-np.inf, np.inf)
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


def measurement(hypergradients, loss=1.0, lengths=1, horizon=10, error=0.0):
    hypergradients = np.array(hypergradients, "float64")
    return Measurement(hypergradients, loss, np.full(len(hypergradients), lengths), horizon, error)


def run(rule, values, step_sizes, measured, losses=None, ranges=ANYWHERE):
    """The states before and after every update."""
    states = [rule.initial_state(np.array(values), np.array(step_sizes))]
    for i, hypergradients in enumerate(measured):
        loss = 1.0 if losses is None else losses[i]
        states.append(rule.update(states[-1], measurement(hypergradients, loss), ranges))
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
    values, step_sizes, measured, losses = search
    state = run(SignDescent(), values, step_sizes, measured, losses)[-1]
    expected_values, expected_step_sizes = paper(values, step_sizes, measured)
    np.testing.assert_array_equal(state["values"], expected_values)
    np.testing.assert_array_equal(state["step_sizes"], expected_step_sizes)


@given(searches(hypergradient=signs_only))
def test_it_is_the_papers_rule_through_zeros_and_nans(search):
    values, step_sizes, measured, losses = search
    state = run(SignDescent(), values, step_sizes, measured, losses)[-1]
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


# ---------------------------------------------------------------------------- the trust region
POSITIVE = linear_ranges(0.0, np.inf)
WHOLE_STEPS = TrustRegionDescent(resolution=1e-9)


def values_of(states):
    return [float(state["values"][0]) for state in states]


def test_the_first_step_from_the_end_of_the_range_is_the_step_size():
    for minimum in (0.0, 2.0, -3.0):
        ranges = linear_ranges(minimum, np.inf)
        states = run(WHOLE_STEPS, [minimum], [0.1], [[-1.0], [-1.0]], [2, 1], ranges)
        assert values_of(states) == pytest.approx([minimum, minimum + 0.1, minimum + 0.3])


def test_steps_are_factors_beyond_the_first_step_size():
    up, down = (
        run(WHOLE_STEPS, [8.0], [0.001], [[sign]], ranges=POSITIVE)[-1]["values"][0]
        for sign in (-0.01, 0.01)
    )
    assert (up, down) == (pytest.approx(16.001), pytest.approx(4 - 0.0005))


def test_a_bounded_value_nears_the_end_of_its_range_by_factors_too():
    ranges = linear_ranges(0.0, 0.999)
    values = values_of(run(WHOLE_STEPS, [0.0], [0.1], [[-1.0]] * 12, ranges=ranges))
    assert all(before < after < 0.999 for before, after in itertools.pairwise(values))
    assert 1 - values[-1] == pytest.approx((1 - values[-2]) / 2, rel=0.2)


def test_coordinates_that_are_not_the_value_itself_move_by_the_step_size():
    ranges = Ranges(np.array([-np.inf]), np.array([0.0]), np.array([False]), np.array([0]))
    states = run(WHOLE_STEPS, [-4.0], [0.6], [[-1.0], [1.0]], ranges=ranges)
    first = 0.6 * np.log(2)
    assert values_of(states) == pytest.approx([-4, -4 + first, -4 + first / 2])


def test_agreement_lets_steps_grow_and_a_flip_shrinks_them():
    states = run(WHOLE_STEPS, [1.0], [0.1], [[0.5], [-0.5], [-0.5]], ranges=POSITIVE)
    np.testing.assert_allclose(
        [float(s["steps"][0]) for s in states[1:]] / np.log(2), [1, 0.5, 0.6]
    )


def test_a_slope_that_promises_more_than_a_step_can_keep_moves_its_bucket_by_less():
    rule = TrustRegionDescent(doubt=0.5)
    for slope, part in ((0.4, 1.0), (0.5, 1.0), (1.0, 0.5), (-2.0, -0.25)):
        after = values_of(run(rule, [1.0], [0.1], [[slope / 1.1]], ranges=POSITIVE))[-1]
        assert np.log(1.1 / (after + 0.1)) / np.log(2) == pytest.approx(part)


@pytest.mark.parametrize("step_size", [0.1, 10.0, 1e6])
def test_leaves_zero_whatever_the_first_step_size(step_size):
    rule = TrustRegionDescent()
    (_, after) = values_of(run(rule, [0.0], [step_size], [[-20.0]], ranges=POSITIVE))
    # What it promises, 20 a unit, is about the loss.
    assert 0.5 < 20 * after < 1


def test_a_worse_point_is_left_for_the_best_one_with_half_the_radius():
    losses = [1.0, 0.5, 0.53, 0.6, 0.4]
    states = run(WHOLE_STEPS, [1.0], [0.1], [[-0.01]] * 5, losses, POSITIVE)
    values = values_of(states)
    # From 2.1 with loss 0.5, the best, to 4.3, which is worse by more than 4%, and back.
    assert values == pytest.approx(
        [1, 2.1, 4.3, 2.2 * 2**0.5 - 0.1, 2.2 * 2**0.25 - 0.1, values[-1]]
    )
    assert float(states[-1]["best_loss"]) == 0.4
    assert [float(s["radius"]) for s in states] == pytest.approx([1, 1, 1, 0.5, 0.25, 0.3])


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (1.0, 0.1, "best"),
        (1.0, 1.019, "best"),
        (1.0, 1.021, "accepted"),
        (1.0, 1.039, "accepted"),
        (1.0, 1.041, "rejected"),
        (-1.0, -0.981, "best"),
        (-1.0, -0.961, "accepted"),
        (-1.0, -0.959, "rejected"),
        (0.0, 0.0, "best"),
        (0.0, 1e-9, "rejected"),
        (1.0, math.inf, "rejected"),
        (1.0, -math.inf, "rejected"),
        (1.0, math.nan, "rejected"),
    ],
)
def test_losses_within_the_noise_are_as_good_and_within_twice_the_noise_accepted(
    first, second, verdict
):
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[0.0]], [first], POSITIVE)[-1]
    assert rule.judge(state, measurement([0.0], second), POSITIVE) == verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(0.0, "rejected"), (0.02, "rejected"), (0.04, "accepted"), (0.09, "best")],
)
def test_the_standard_error_of_the_loss_is_noise_too(error, verdict):
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[0.0]], [1.0], POSITIVE)[-1]
    assert rule.judge(state, measurement([0.0], 1.1, error=error), POSITIVE) == verdict


def test_noise_does_not_add_up_from_one_best_point_to_the_next():
    rule, measured = TrustRegionDescent(), [[0.0]] * 3
    state = run(rule, [1.0], [0.1], measured, [1.0, 1.015, 1.03], POSITIVE)[-1]
    assert (float(state["best_loss"]), float(state["lowest_loss"])) == (1.015, 1.0)
    assert rule.judge(state, measurement([0.0], 1.045), POSITIVE) == "rejected"


def test_an_exploding_bucket_returns_and_its_point_is_not_the_best():
    rule, ranges = WHOLE_STEPS, linear_ranges([0.0, 0.0], [np.inf, np.inf])
    measured = [[-0.1, -0.1], [-1e9, -0.1], [-0.1, -0.1]]
    states = run(rule, [1.0, 1.0], [0.1, 0.1], measured, [1.0, 0.9, 0.95], ranges)
    first, second = (state["values"] for state in states[1:3])
    np.testing.assert_allclose(first, [2.1, 2.1])
    # One is at the best point again; the other goes on.
    np.testing.assert_allclose(second, [1.0, 4.3])
    assert [float(state["best_loss"]) for state in states[1:]] == [1.0, 1.0, 0.95]


def test_only_the_hyperparameter_that_explodes_most_is_blamed():
    ranges = linear_ranges([0.0] * 3, [np.inf] * 3)._replace(groups=np.array([0, 0, 1]))
    measured = [[-0.1] * 3, [-1e9, 1e5, 1e8]]
    states = run(WHOLE_STEPS, [1.0] * 3, [0.1] * 3, measured, [1.0, 0.9], ranges)
    np.testing.assert_allclose(states[-1]["values"], [1.0, 1.0, 2.1])


def test_a_bucket_that_explodes_at_its_best_value_steps_down():
    measured, losses = [[-0.1], [-1e9], [-1e9], [-1e9]], [1.0, 0.9, 0.95, 0.95]
    values = values_of(run(WHOLE_STEPS, [1.0], [0.1], measured, losses, POSITIVE))
    assert values == pytest.approx([1.0, 2.1, 1.0, 1.1 / 2**0.5 - 0.1, 1.1 / 2 - 0.1])


def test_a_slope_that_promises_little_moves_its_bucket_little():
    rule, ranges = TrustRegionDescent(resolution=0.1), linear_ranges([0.0] * 3, [np.inf] * 3)
    # Slopes dL/dφ of 0.4, 0.1 and 0.02 in units of the loss.
    measured = [[0.4 / 1.1, 0.1 / 1.1, 0.02 / 1.1]]
    values = run(rule, [1.0] * 3, [0.1] * 3, measured, ranges=ranges)[-1]["values"]
    np.testing.assert_allclose(np.log(1.1 / (values + 0.1)) / np.log(2), [1, 1, 0.2])


def test_neighbouring_buckets_of_a_hyperparameter_move_by_the_mean_of_their_slopes():
    ranges = linear_ranges([0.0] * 4, [np.inf] * 4)._replace(groups=np.array([0, 0, 0, 1]))
    measured = [[0.4, 0.0, 0.0, 0.1]]
    rule = TrustRegionDescent(resolution=1.0)
    values = run(rule, [1.0] * 4, [0.1] * 4, measured, ranges=ranges)[-1]["values"]
    slopes = 1.1 * np.array([2 / 3 * 0.4, 1 / 4 * 0.4, 0.0, 0.1])
    np.testing.assert_allclose(np.log(1.1 / (values + 0.1)) / np.log(2), slopes, atol=1e-12)


@pytest.mark.parametrize("second_loss", [0.9, 1.01])
def test_where_nothing_calm_is_known_a_bucket_that_explodes_again_steps_down(second_loss):
    rule, ranges = WHOLE_STEPS, linear_ranges([0.0, 0.0], [np.inf, np.inf])
    losses = [1.0, second_loss]
    states = run(rule, [1.0, 1.0], [0.1, 0.1], [[-1e9, -0.1], [-1e9, -0.1]], losses, ranges)
    np.testing.assert_allclose(states[1]["values"], [1.0, 1.1 * 2**0.5 - 0.1])
    np.testing.assert_allclose(states[2]["values"], [0.45, 1.1 * 2**1.0 - 0.1])


def test_a_calm_point_that_is_clearly_worse_does_not_take_the_place_of_one_that_is_not():
    rule, ranges = TrustRegionDescent(), linear_ranges([0.0, 0.0], [np.inf, np.inf])
    (_, state) = run(rule, [1.0, 1.0], [0.1, 0.1], [[-1e9, -0.1]], [1.0], ranges)
    for loss, verdict in ((1.01, "best"), (1.05, "rejected"), (0.5, "best")):
        assert rule.judge(state, measurement([-0.1, -0.1], loss), ranges) == verdict


def test_a_bucket_explodes_by_its_whole_hypergradient_whatever_its_length():
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[0.1]], [1.0], POSITIVE)[-1]
    for lengths, verdict in ((1, "best"), (1000, "accepted")):
        measured = measurement([0.1], 0.99, lengths)
        assert rule.judge(state, measured, POSITIVE) == verdict


def test_a_new_horizon_has_a_best_point_of_its_own():
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[-0.1]], [0.1], POSITIVE)[-1]
    assert rule.judge(state, measurement([0.1], 5.0, horizon=20), POSITIVE) == "best"
    state = rule.update(state, measurement([0.1], 5.0, horizon=20), POSITIVE)
    assert (float(state["best_loss"]), float(state["horizon"])) == (5.0, 20)
    assert rule.judge(state, measurement([0.1], 5.3, horizon=20), POSITIVE) == "rejected"
    assert rule.judge(state, measurement([0.1], np.nan, horizon=30), POSITIVE) == "rejected"


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_first_point_that_breaks_down_is_never_the_best(rule, loss):
    states = run(rule(), [1.0], [0.1], [[np.nan], [1.0], [np.nan]], [loss, 2.0, loss], POSITIVE)
    assert values_of(states)[1] == pytest.approx(1.0 if rule is SignDescent else 1.1 / 10 - 0.1)
    assert float(states[1]["best_loss"]) == np.inf
    assert float(states[-1]["best_loss"]) == 2.0


@pytest.mark.parametrize("start", [1e4, 30.0])
def test_finds_a_way_down_from_values_that_are_far_too_great(start):
    # Not finite above 100, chaotic above 1, and least at 0.3.
    rule, ranges = TrustRegionDescent(), linear_ranges(0.0, np.inf)
    state = rule.initial_state(np.full(1, start), np.full(1, 0.1))
    for _ in range(20):
        value = float(state["values"][0])
        loss, slope = (1 + (value - 0.3) ** 2, 2 * (value - 0.3)) if value < 1 else (2.3, -1e6)
        measured = measurement([slope], loss) if value < 100 else measurement([np.nan], np.inf)
        assert not rule.converged(state, ranges) or value < 1
        state = rule.update(state, measured, ranges)
    assert float(state["best_values"][0]) == pytest.approx(0.3, rel=0.1)


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


def test_a_cliff_ends_the_search_on_its_edge():
    # The loss falls towards 1 and is not finite from there on.
    rule = TrustRegionDescent()
    state = rule.initial_state(np.zeros(1), np.full(1, 0.3))
    for _ in range(40):
        value = float(state["values"][0])
        loss, hypergradient = (2 - value, -1.0) if value < 1 else (np.inf, np.nan)
        state = rule.update(state, measurement([hypergradient], loss), linear_ranges(0, 9))
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
    values[:], step_sizes[:] = 9.0, 9.0
    assert not np.any(state["values"] == 9.0)
    assert not np.any(state["step_sizes"] == 9.0)
    for hypergradients, loss in zip(measured, losses):
        given_to_it = state, measurement(hypergradients, loss), ranges
        before = copy.deepcopy(given_to_it)
        new = rule.update(*given_to_it)
        rule.judge(*given_to_it)
        rule.converged(new, ranges)
        np.testing.assert_equal(given_to_it, before)
        state = new


@pytest.mark.parametrize("rule", RULES)
def test_state_keeps_its_keys_shapes_and_dtypes(rule):
    measured, losses = [[1.0, np.nan], [1.0, 1.0], [1.0, 0.0]], [1.0, 2.0, np.inf]
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
            {"tolerance": 0.1, "growth": 1.5, "shrink": 0.25, "resolution": 0.2, "alarm": 2.0},
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
        *(("shrink", value) for value in (0, 1.0, -0.5, np.nan, None, "half")),
        *(("tolerance", value) for value in (-0.01, np.nan, "none", None)),
        *(("growth", value) for value in (0.9, np.inf)),
        *(("alarm", value) for value in (0.0, -1.0, True)),
        *(("resolution", value) for value in (0.0, np.nan)),
    ],
)
def test_bad_input_is_named_with_what_was_received(argument, value):
    for rule in RULES if argument == "shrink" else (TrustRegionDescent,):
        with pytest.raises(ValueError) as raised:
            rule(**{argument: value})
        assert f"`{argument}`" in str(raised.value)
        assert f"Received: {argument}={value!r}" in str(raised.value)
