"""The picture of schedules."""

import numpy as np
import pytest

import keras_fds
from keras_fds.callbacks import draw_schedules


def test_drawing_panels_and_legend():
    schedules = [
        {
            "learning_rate": keras_fds.BucketedSchedule([0.1 * n, 0.2], 10),
            "weight_decay": keras_fds.BucketedSchedule([n * 1e-4], 10),
        }
        for n in range(4)
    ]
    figure = draw_schedules(schedules, outer_steps=[3, 4, 5, 6])
    assert [axes.get_ylabel() for axes in figure.axes] == ["learning_rate", "weight_decay"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"inner step"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["3", "4", "5", "6"]
    steps, values = figure.axes[0].patches[-1].get_data()[1::-1]
    np.testing.assert_allclose(steps, [0, 5, 10])
    np.testing.assert_allclose(values, [0.3, 0.2])


def test_lines_are_drawn_between_knots():
    schedule = keras_fds.BucketedSchedule([0.4, 0.2, 0.0], 10, interpolation="linear")
    (line,) = draw_schedules([{"learning_rate": schedule}]).axes[0].lines
    np.testing.assert_allclose(line.get_data(), [[0, 5, 10], [0.4, 0.2, 0.0]])


def test_the_best_one_is_dark():
    schedules = [{"learning_rate": keras_fds.BucketedSchedule([n, 0.2], 10)} for n in range(9)]
    figure = draw_schedules(schedules, best=4)
    widths = [patch.get_linewidth() for patch in figure.axes[0].patches]
    assert np.argmax(widths) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "4, the best" in labels and "9" in labels


def test_drawing_unlike_horizons_and_many_outer_steps():
    schedules = [
        {name: keras_fds.BucketedSchedule([-0.5, n], 10 + n) for name in "abcd"} for n in range(30)
    ]
    figure = draw_schedules(schedules)
    assert {axes.get_xlabel() for axes in figure.axes[:4]} == {"inner step / horizon"}
    assert figure.axes[0].get_xlim() == pytest.approx((0, 1))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == 6 and labels[0] == "1" and labels[-1] == "30"


def test_drawing_nothing_is_refused():
    one = {"a": keras_fds.BucketedSchedule([1.0], 1)}
    other = {"b": keras_fds.BucketedSchedule([1.0], 1)}
    for schedules in ([], [{}], [one, other]):
        with pytest.raises(ValueError, match="the same hyperparameters"):
            draw_schedules(schedules)
