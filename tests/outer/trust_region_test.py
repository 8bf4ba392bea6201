"""The default outer update rule: its steps, its returns and what it does about chaos."""

import itertools
import math

import numpy as np
import pytest

from keras_fds.outer import TrustRegionDescent
from tests.outer.rules import POSITIVE, linear_ranges, measurement, run

WHOLE_STEPS = TrustRegionDescent(noise_floor=1e-9)


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
    losses = [0.5**i for i in range(12)]
    values = values_of(run(WHOLE_STEPS, [0.0], [0.1], [[-1e-4]] * 12, losses, ranges))
    assert all(before < after < 0.999 for before, after in itertools.pairwise(values))
    assert 1 - values[-1] == pytest.approx((1 - values[-2]) / 2, rel=0.2)


def test_coordinates_that_are_not_the_value_itself_move_by_the_step_size_at_first():
    ranges = linear_ranges(-np.inf, 0.0)._replace(linear=np.array([False]))
    states = run(WHOLE_STEPS, [-4.0], [0.6], [[-1.0], [1.0]], [2.0, 1.0], ranges)
    assert values_of(states) == pytest.approx([-4, -3.4, -3.7])


@pytest.mark.parametrize("step_size", [0.01, 0.1, 1.0])
def test_on_a_logarithmic_scale_steps_grow_to_factors_of_two(step_size):
    rule, best = TrustRegionDescent(), np.log(0.1)
    ranges = linear_ranges(-np.inf, np.inf)._replace(linear=np.array([False]))
    state = rule.initial_state(np.array([np.log(1e-3)]), np.array([step_size]))
    for _ in range(40):
        error = state["values"] - best
        state = rule.update(state, measurement(2 * error, 1 + float(error[0] ** 2)), ranges)
    np.testing.assert_allclose(state["values"], best, atol=0.1)


@pytest.mark.parametrize("step_size", [0.05, 0.5, 2.0])
def test_on_a_logarithmic_scale_chaos_is_told_by_factors_whatever_the_step_size(step_size):
    rule = TrustRegionDescent()
    ranges = linear_ranges(-np.inf, np.inf)._replace(linear=np.array([False]))
    for elasticity, is_stable in ((4.9, 1.0), (5.1, 0.0)):
        states = run(rule, [-2.0], [step_size], [[elasticity]], ranges=ranges)
        assert states[-1]["best_is_stable"] == is_stable
    broken = run(rule, [-2.0], [step_size], [[np.nan]], [np.inf], ranges)
    assert values_of(broken) == pytest.approx([-2, -2 - np.log(10)])


def test_a_value_leaves_the_upper_end_of_its_range_by_about_its_step_size():
    ranges = linear_ranges(0.0, 1.0)
    (_, after) = values_of(run(WHOLE_STEPS, [1.0], [0.1], [[0.1]], ranges=ranges))
    assert after == pytest.approx(0.9, abs=0.01)


def test_a_steep_descent_that_was_taken_for_chaos_goes_on():
    rule = TrustRegionDescent()
    state = rule.initial_state(np.array([0.002]), np.array([0.002]))
    for _ in range(40):  # L = (λ + 0.001)^−8: |dL / dlog λ| is up to eight times the loss.
        value = float(state["values"][0]) + 0.001
        state = rule.update(state, measurement([-8 * value**-9], value**-8), POSITIVE)
    assert float(state["best_values"][0]) > 0.05


def test_agreement_lets_steps_grow_and_a_flip_shrinks_them():
    states = run(WHOLE_STEPS, [1.0], [0.1], [[0.5], [-0.5], [-0.5]], ranges=POSITIVE)
    np.testing.assert_allclose(
        [float(s["steps"][0]) for s in states[1:]] / np.log(2), [1, 0.5, 0.6]
    )


def test_a_flip_of_a_slope_that_promised_little_shrinks_steps_little():
    rule = TrustRegionDescent(
        noise_floor=1.1, max_relative_slope=100.0, instability_threshold=100.0
    )
    for before, part in ((1.0, 0.5), (0.2, 0.5**0.2), (0.01, 0.5**0.01)):
        states = run(rule, [1.0], [0.1], [[before], [-10.0]], ranges=POSITIVE)
        assert float(states[-1]["steps"][0]) / np.log(2) == pytest.approx(part)


def test_a_slope_that_promises_more_than_a_step_can_keep_moves_its_bucket_by_less():
    rule = TrustRegionDescent(max_relative_slope=0.5)
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
    assert [float(s["radius"]) for s in states] == pytest.approx([1, 1, 1, 0.5, 0.25, 0.5])


def test_where_losses_fall_no_longer_steps_are_those_of_a_running_mean():
    # Every slope points at another optimum; a whole step would lead there.
    rule = TrustRegionDescent(noise_floor=np.log(2.0), growth=1.0, shrink=0.9999)
    ranges, optima = linear_ranges(-np.inf, np.inf), np.array([0.3, -0.2, 0.4, 0.1, -0.3])
    state = rule.initial_state(np.array([0.0]), np.array([1.0]))
    for i, optimum in enumerate(optima):
        state = rule.update(state, measurement(state["values"] - optimum), ranges)
        assert state["values"][0] == pytest.approx(optima[: i + 1].mean(), abs=1e-3)
    assert float(state["radius"]) == pytest.approx(1 / 5)


def test_the_radius_doubles_when_the_loss_falls_clearly():
    losses = [1.0, 1.0, 0.99, 0.979, 0.97, 0.955]
    states = run(WHOLE_STEPS, [1.0], [0.1], [[0.0]] * 6, losses, POSITIVE)
    radii = [1, 1 / 2, 1 / 3, 2 / 3, 2 / 5, 4 / 5]
    assert [float(state["radius"]) for state in states[1:]] == pytest.approx(radii)


def test_slopes_that_agree_keep_their_steps_where_losses_fall_no_longer():
    rule = TrustRegionDescent()
    states = run(rule, [1.0], [0.1], [[-0.01]] * 20, ranges=POSITIVE)
    steps = [float(s["steps"][0] * s["radius"] / np.log(2)) for s in states[1:]]
    assert min(steps) > 0.4 and steps[-1] == pytest.approx(1.0)


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
    assert rule.classify(state, measurement([0.0], second), POSITIVE) == verdict


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(0.0, "rejected"), (0.02, "rejected"), (0.04, "accepted"), (0.09, "best")],
)
def test_the_standard_error_of_the_lowest_loss_is_noise_too(error, verdict):
    rule = TrustRegionDescent()
    state = rule.initial_state(np.ones(1), np.full(1, 0.1))
    state = rule.update(state, measurement([0.0], error=error), POSITIVE)
    assert rule.classify(state, measurement([0.0], 1.1), POSITIVE) == verdict


def test_the_standard_error_of_a_loss_with_an_outlier_excuses_nothing():
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[0.0]], [1.0], POSITIVE)[-1]
    assert rule.classify(state, measurement([0.0], 1e5, error=1e5), POSITIVE) == "rejected"


def test_noise_does_not_add_up_from_one_best_point_to_the_next():
    rule, measured = TrustRegionDescent(), [[0.0]] * 3
    state = run(rule, [1.0], [0.1], measured, [1.0, 1.015, 1.03], POSITIVE)[-1]
    assert (float(state["best_loss"]), float(state["lowest_loss"])) == (1.015, 1.0)
    assert rule.classify(state, measurement([0.0], 1.045), POSITIVE) == "rejected"


def test_an_exploding_bucket_goes_half_the_way_back_and_its_point_is_not_the_best():
    rule, ranges = WHOLE_STEPS, linear_ranges([0.0, 0.0], [np.inf, np.inf])
    measured = [[-0.1, -0.1], [-1e9, -0.1], [-0.1, -0.1]]
    states = run(rule, [1.0, 1.0], [0.1, 0.1], measured, [1.0, 1.01, 0.95], ranges)
    first, second = (state["values"] for state in states[1:3])
    np.testing.assert_allclose(first, [2.1, 2.1])
    np.testing.assert_allclose(second, [2.2 / 2**0.5 - 0.1, 2.2 * 2**0.6 - 0.1])
    assert [float(state["best_loss"]) for state in states[1:]] == [1.0, 1.0, 0.95]


def test_an_exploding_bucket_takes_its_neighbours_with_it():
    ranges, slopes = (
        linear_ranges([0.0] * 28, [np.inf] * 28, smoothing_window=1 / 7),
        np.full(28, -1e-3),
    )
    rule = TrustRegionDescent()
    state = run(rule, [1.0] * 28, [0.1] * 28, [slopes], ranges=ranges)[-1]
    chaos = np.where(np.arange(28) < 4, 1e9, slopes)
    after = rule.update(state, measurement(chaos, 1.0), ranges)["values"]
    moved = np.log((after + 0.1) / (state["values"] + 0.1))
    assert (moved[:6] < 0).all() and (moved[12:] > 0).all()
    assert (np.diff(moved[:12]) > 0).all() and np.diff(moved).max() < 0.25 * np.ptp(moved)


def test_a_point_with_an_exploding_bucket_is_the_best_only_with_the_lowest_loss():
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[0.1]], [1.0], POSITIVE)[-1]
    for loss, verdict in ((0.999, "best"), (1.001, "accepted"), (1.1, "rejected")):
        assert rule.classify(state, measurement([1e9], loss), POSITIVE) == verdict


def test_a_point_with_hypergradients_that_are_not_numbers_is_not_calm():
    states = run(WHOLE_STEPS, [1.0], [0.1], [[-0.1], [np.nan]], [1.0, 1.01], POSITIVE)
    assert float(states[-1]["best_loss"]) == 1.0
    np.testing.assert_array_equal(states[-1]["values"], states[-2]["values"])


def test_a_longer_horizon_that_breaks_down_is_left_for_the_best_point_then_downwards():
    rule, missing = WHOLE_STEPS, [np.nan, np.nan]
    ranges = linear_ranges([0.0] * 2, [np.inf] * 2)
    state = rule.initial_state(np.array([1.0, 1.0]), np.array([0.1, 0.1]))
    state = rule.update(state, measurement([-0.1, 0.1]), ranges)
    np.testing.assert_allclose(state["values"], [2.1, 0.45])
    for expected in ([1.0, 0.45], [0.45, 0.175], [0.175, 0.0375]):
        state = rule.update(state, measurement(missing, np.inf, horizon=20), ranges)
        np.testing.assert_allclose(state["values"], expected)


def test_a_slope_that_promises_little_moves_its_bucket_little():
    rule, ranges = TrustRegionDescent(noise_floor=0.1), linear_ranges([0.0] * 3, [np.inf] * 3)
    # Slopes dL/dφ of 0.4, 0.1 and 0.02 in units of the loss.
    measured = [[0.4 / 1.1, 0.1 / 1.1, 0.02 / 1.1]]
    values = run(rule, [1.0] * 3, [0.1] * 3, measured, ranges=ranges)[-1]["values"]
    np.testing.assert_allclose(np.log(1.1 / (values + 0.1)) / np.log(2), [1, 1, 0.2])


def test_neighbouring_buckets_of_a_hyperparameter_move_by_the_mean_of_their_slopes():
    ranges = linear_ranges([0.0] * 4, [np.inf] * 4)._replace(groups=np.array([0, 0, 0, 1]))
    measured = [[0.4, 0.0, 0.0, 0.1]]
    rule = TrustRegionDescent(noise_floor=1.0)
    values = run(rule, [1.0] * 4, [0.1] * 4, measured, ranges=ranges)[-1]["values"]
    slopes = 1.1 * np.array([2 / 3 * 0.4, 1 / 4 * 0.4, 0.0, 0.1])
    np.testing.assert_allclose(np.log(1.1 / (values + 0.1)) / np.log(2), slopes, atol=1e-12)


def moves(slopes, **arguments):
    """How far, in whole steps, buckets of one hyperparameter go for their slopes dL/dφ."""
    count = len(slopes)
    ranges = linear_ranges([0.0] * count, [np.inf] * count)._replace(groups=np.zeros(count))
    rule = TrustRegionDescent(**arguments)
    measured = [np.asarray(slopes) / 1.1]
    values = run(rule, [1.0] * count, [0.1] * count, measured, ranges=ranges)[-1]["values"]
    return np.log(1.1 / (values + 0.1)) / np.log(2)


def test_slopes_that_scatter_around_their_neighbours_move_their_buckets_by_less():
    smooth = np.linspace(-0.4, 0.4, 28)
    scattered = np.random.default_rng(0).permutation(smooth)
    assert (np.abs(moves(smooth)) > 0.9).sum() >= 24
    assert np.abs(moves(scattered)).max() < 0.6 and np.abs(moves(scattered)).mean() < 0.25


def test_the_slope_of_one_bucket_is_no_scatter():
    for slope, last in ((0.5, 1.0), (1.25, 0.8)):
        slopes = np.append(np.full(27, -0.02), slope)
        np.testing.assert_allclose(moves(slopes)[[0, 10, 27]], [-0.4, -0.4, last])


def test_two_buckets_whose_slopes_differ_are_not_taken_for_noise():
    np.testing.assert_allclose(moves([0.4, -0.4]), [1, -1])


def test_many_buckets_are_learned_as_few_but_smoothly():
    def moved(num_buckets):
        time = (np.arange(num_buckets) + 0.5) / num_buckets
        zeros, infinite = np.zeros(num_buckets), np.full(num_buckets, np.inf)
        ranges = linear_ranges(zeros, infinite, smoothing_window=1 / 7)
        slopes = (time - 0.3) / num_buckets
        state = run(rule, [1.0] * num_buckets, [0.1] * num_buckets, [slopes], ranges=ranges)[-1]
        return np.interp(np.linspace(0.1, 0.9, 50), time, np.log(state["values"] + 0.1))

    rule = TrustRegionDescent(noise_floor=1.0)
    np.testing.assert_allclose(moved(28), moved(7), atol=0.005)
    np.testing.assert_allclose(moved(700), moved(7), atol=0.005)
    assert np.ptp(moved(7)) > 0.05


def test_a_jump_in_the_slopes_of_many_buckets_makes_no_jump_in_the_schedule():
    slopes = np.repeat([-0.0035, 0.0035], 50)
    ranges = linear_ranges(np.zeros(100), np.full(100, np.inf), smoothing_window=1 / 7)
    values = run(TrustRegionDescent(), [1.0] * 100, [0.1] * 100, [slopes], ranges=ranges)[-1]
    logarithms = np.log(values["values"] + 0.1)
    assert np.ptp(logarithms) == pytest.approx(2 * np.log(2), rel=0.01)
    assert np.abs(np.diff(logarithms)).max() < 0.1


@pytest.mark.parametrize("second_loss", [0.9, 1.01])
def test_where_nothing_stable_is_known_a_bucket_that_explodes_again_steps_down(second_loss):
    rule, ranges = WHOLE_STEPS, linear_ranges([0.0, 0.0], [np.inf, np.inf])
    losses = [1.0, second_loss]
    states = run(rule, [1.0, 1.0], [0.1, 0.1], [[-1e9, -0.1], [-1e9, -0.1]], losses, ranges)
    np.testing.assert_allclose(states[1]["values"], [1.0, 1.1 * 2**0.5 - 0.1])
    assert states[2]["values"][0] == pytest.approx(0.45)
    assert states[2]["values"][1] > states[1]["values"][1]


def test_a_calm_point_that_is_clearly_worse_does_not_take_the_place_of_one_that_is_not():
    rule, ranges = TrustRegionDescent(), linear_ranges([0.0, 0.0], [np.inf, np.inf])
    (_, state) = run(rule, [1.0, 1.0], [0.1, 0.1], [[-1e9, -0.1]], [1.0], ranges)
    for loss, verdict in ((1.01, "best"), (1.05, "rejected"), (0.5, "best")):
        assert rule.classify(state, measurement([-0.1, -0.1], loss), ranges) == verdict


def test_a_bucket_explodes_by_its_whole_hypergradient_whatever_its_length():
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[0.1]], [1.0], POSITIVE)[-1]
    for lengths, verdict in ((1, "best"), (1000, "accepted")):
        measured = measurement([0.1], 1.01, lengths)
        assert rule.classify(state, measured, POSITIVE) == verdict


def test_a_new_horizon_has_a_best_point_of_its_own():
    rule = TrustRegionDescent()
    state = run(rule, [1.0], [0.1], [[-0.1]], [0.1], POSITIVE)[-1]
    assert rule.classify(state, measurement([0.1], 5.0, horizon=20), POSITIVE) == "best"
    state = rule.update(state, measurement([0.1], 5.0, horizon=20), POSITIVE)
    assert (float(state["best_loss"]), float(state["horizon"])) == (5.0, 20)
    assert rule.classify(state, measurement([0.1], 5.3, horizon=20), POSITIVE) == "rejected"
    assert rule.classify(state, measurement([0.1], np.nan, horizon=30), POSITIVE) == "rejected"


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


def test_a_cliff_ends_the_search_on_its_edge():
    # The loss falls towards 1 and is not finite from there on.
    rule = TrustRegionDescent()
    state = rule.initial_state(np.zeros(1), np.full(1, 0.3))
    for _ in range(40):
        value = float(state["values"][0])
        loss, hypergradient = (2 - value, -1.0) if value < 1 else (np.inf, np.nan)
        state = rule.update(state, measurement([hypergradient], loss), linear_ranges(0, 9))
    assert 0.95 < float(state["best_values"][0]) < 1
