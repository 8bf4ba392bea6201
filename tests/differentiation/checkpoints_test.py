"""Plans reach over the horizon with the states they are given, and repeat as little as they can."""

import pytest

from keras_fds.differentiation import checkpoints


def runs_again(plan):
    """`(the most states at once, how often each step is run again)`, by walking through a plan."""
    times, most = [0] * plan.horizon, 0

    def sweep(first, last, left, held):
        nonlocal most
        while last - first > plan.block:
            middle = plan.split(first, last, left)
            assert left > 0 and first < middle < last
            for step in range(first, middle):
                times[step] += 1
            sweep(middle, last, left - 1, held + 1)
            last = middle
        for step in range(first, last):
            times[step] += 1
        most = max(most, held + last - first)

    firsts, last = [0, *plan.kept_on_the_way()], plan.horizon
    assert len(firsts) - 1 <= plan.checkpoints and firsts == sorted(set(firsts))
    for number, first in reversed(list(enumerate(firsts))):
        sweep(first, last, plan.checkpoints - number, number + 1)
        last = first
    return most, times


@pytest.mark.parametrize("horizon", [1, 2, 7, 100, 999, 2000])
@pytest.mark.parametrize("states", [1, 4, 10, 40, 100])
def test_every_step_is_run_again_at_least_once_and_no_more_than_promised(horizon, states):
    plan = checkpoints.plan(horizon, states)
    most, times = runs_again(plan)
    assert min(times) >= 1 and max(times) <= plan.repeats
    assert most <= plan.states
    if plan.repeats < checkpoints.MOST_REPEATS:
        assert plan.states <= states


def test_more_states_repeat_less():
    found = [checkpoints.plan(10000, states) for states in (200, 100, 51, 27)]
    assert [plan.repeats for plan in found] == [1, 2, 2, 3]
    means = [sum(runs_again(plan)[1]) / 10000 for plan in found]
    assert means == sorted(means) and means[0] == 1.0 and means[1] < 1.9


def test_fifty_states_are_enough_for_a_hundred_thousand_steps():
    plan = checkpoints.plan(10**5, 50)
    assert plan.repeats == 3 and plan.states <= 50
