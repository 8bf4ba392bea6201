"""What a search costs is told before it begins, and telling it changes nothing."""

import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.callbacks import progress as progress_module
from keras_fds.callbacks.progress import SearchProgress
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.data.datasets import DatasetBatches
from keras_fds.data.split import SplitData
from keras_fds.differentiation.forward import Forward
from keras_fds.differentiation.reverse import Reverse
from keras_fds.outer import Problem
from keras_fds.search.cost import Cost, Seconds, cost_table, duration, measure_seconds
from keras_fds.search.state import Search
from tests.small_problem import arrays, make_model

MEBIBYTE = 2**20


def cost(**changes):
    return Cost(
        **{
            "horizons": [100, 100, 200],
            "budget": None,
            "num_values": {"learning_rate": 7, "momentum": 1},
            "reason": "Forward mode, as asked for.",
            "memory": [("state", 3 * MEBIBYTE), ("tangents", 24 * MEBIBYTE)],
            "seconds": Seconds(0.04, 0.0, 1.0),
            "remedies": ["fewer buckets", "fewer `outer_steps`"],
            **changes,
        }
    )


def test_table_of_forward_mode():
    assert cost_table(cost()).splitlines() == [
        "The cost of this search:",
        "  horizon    100 to 200 inner steps per outer step",
        "  learned    8 values: learning_rate (7), momentum (1)",
        "  mode       forward, as asked for",
        "  memory     state 3 MiB, tangents 24 MiB",
        "  measured   40 ms an inner step, 5.0 s to 9.0 s an outer step",
        "  in all     19 s for 3 outer steps",
        "  to cut it  fewer buckets, fewer `outer_steps`",
    ]


def test_table_of_reverse_mode():
    reason = "Reverse mode: an inner step costs 4.0 plain training steps, 8.1 in forward mode."
    seconds = Seconds(0.004, 0.012, 0.0)
    memory = [("state", 3 * MEBIBYTE), ("100 states kept", 300 * MEBIBYTE), ("allowed", 2**30)]
    changes = {"memory": memory, "horizons": [100] * 2}
    text = cost_table(cost(reason=reason, seconds=seconds, **changes))
    assert "mode       reverse: an inner step costs 4.0 plain training steps, 8.1" in text
    assert "horizon    100 inner steps" in text
    assert "state 3 MiB, 100 states kept 300 MiB, allowed 1 GiB" in text
    assert "16 ms an inner step (forward 4.0 ms, back 12 ms), 1.6 s an outer step" in text


def test_table_of_outer_steps_at_the_same_time():
    text = cost_table(cost(tracing=4.0, at_a_time=3))
    assert "  in all     23 s for 3 outer steps" in text
    assert "  workers    3 make outer steps at once: at least 10 s" in text


def test_table_of_a_budget():
    text = cost_table(cost(horizons=[200], budget=10.0))
    assert "horizon    200 inner steps, in most outer steps fewer" in text
    assert "measured   40 ms an inner step, 9.0 s a plain training" in text
    assert "in all     2 min for 10 plain trainings" in text  # And 30 validations.


def test_table_with_nothing_to_learn():
    text = cost_table(cost(num_values={}, memory=[("state", 3 * MEBIBYTE)], remedies=[]))
    assert "learned    nothing" in text
    assert "memory     state 3 MiB\n" in text
    assert "to cut it" not in text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0004, "0.4 ms"),
        (0.35, "350 ms"),
        (1.7, "1.7 s"),
        (59.6, "60 s"),
        (240.0, "4 min"),
        (5990.0, "1 h 40 min"),
        (7260.0, "2 h 1 min"),
    ],
)
def test_durations(seconds, expected):
    assert duration(seconds) == expected


# ------------------------------------------------------------------------------------ measuring
def mode_and_batches(kind, num_buckets=2, memory=2**30, form="arrays"):
    x, y = arrays()
    if form == "arrays":
        train = ArrayBatches(as_arrays(x, y, None), 10)
    else:
        train = DatasetBatches(tf.data.Dataset.from_tensor_slices((x, y)).batch(10))
    data = SplitData(train, train, True)
    model = make_model(num_buckets, initial=0.1)
    mode = Forward() if kind == "forward" else Reverse(memory)
    return model, mode.bind(model, train.spec), data


@pytest.mark.sweep("forward-1-arrays", "reverse-20000-dataset")
@pytest.mark.parametrize("form", ["arrays", "dataset"])
@pytest.mark.parametrize(
    ("kind", "memory"), [("forward", 1), ("reverse", 2**30), ("reverse", 20000)]
)
def test_measures_positive_times(kind, memory, form):
    model, mode, data = mode_and_batches(kind, memory=memory, form=form)
    several = [measure_seconds(model, mode, data.timing_batches(), horizon=60) for _ in range(3)]
    seconds = max(several, key=lambda each: each.sweep)  # Which noise may hide.
    assert seconds.run > 0
    assert (seconds.sweep > 0) == (kind == "reverse")
    assert seconds.validation > 0
    assert seconds.of_outer_step(60) == pytest.approx(
        60 * (seconds.run + seconds.sweep) + seconds.validation
    )


def test_counts_the_tangents_that_move():
    model, _, data = mode_and_batches("forward", num_buckets=3)
    mode = Forward().bind(model, data.train.spec)  # Two hyperparameters, the second in one bucket.
    np.testing.assert_array_equal(mode.work(6), [2, 2, 3, 3, 4, 4])


def noisy_model():
    stock = make_model(3, initial=0.1)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8),
            keras.layers.BatchNormalization(),
            keras.layers.GaussianNoise(0.1),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )
    model.compile(stock.optimizer, loss=stock.loss, metrics=["accuracy"])
    return model


@pytest.mark.sweep("forward-arrays")
@pytest.mark.parametrize("form", ["arrays", "dataset"])
@pytest.mark.parametrize("differentiation", ["forward", "reverse"])
def test_results_are_the_same_to_the_bit_with_and_without_measuring(differentiation, form):
    results = []
    for verbose in (0, 2):
        keras.utils.set_random_seed(3)
        x, y = arrays()
        data = (x, y)
        arguments = {"validation_split": 0.2, "batch_size": 10}
        if form == "dataset":
            dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60).batch(10)
            data = (dataset.take(4), None)
            arguments = {"validation_data": dataset.skip(4)}
        model = noisy_model()
        history = keras_fds.fit(
            model,
            *data,
            epochs=3,
            outer_steps=3,
            differentiation=differentiation,
            verbose=verbose,
            **arguments,
        )
        variables = model.variables + model.optimizer.variables
        results.append((history.history, [v.numpy() for v in variables]))
    assert results[0][0] == results[1][0]
    for without, measured in zip(results[0][1], results[1][1]):
        np.testing.assert_array_equal(without, measured)


def test_sparse_batches_are_measured(capsys):
    x, y = arrays()
    dataset = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y)).batch(10)
    model = keras.Sequential([keras.Input((4,), sparse=True), keras.layers.Dense(3)])
    stock = make_model()
    model.compile(stock.optimizer, loss=stock.loss)
    keras_fds.fit(model, dataset, validation_data=dataset, outer_steps=1, verbose=2)
    assert "an inner step" in capsys.readouterr().out


# ------------------------------------------------------------------------------- whole searches
def printed(capsys, verbose=2, **arguments):
    x, y = arrays()
    model = make_model(initial=0.1)
    arguments = {"outer_steps": 3, "validation_split": 0.2, "batch_size": 10, **arguments}
    keras_fds.fit(model, x, y, verbose=verbose, **arguments)
    return capsys.readouterr().out


def test_a_search_tells_its_cost_then_how_long_it_takes_yet(capsys):
    lines = printed(capsys, epochs=2).splitlines()
    assert lines[0] == "The cost of this search:"
    headers = [line for line in lines if line.startswith("Outer step ")]
    assert len(headers) == 3
    for number, header in enumerate(headers, start=1):
        assert re.fullmatch(rf"Outer step {number}/3, about [\d.]+ (ms|s|min) left", header)
    assert not any(line.startswith("Epoch") for line in lines)


def test_a_silent_search_prints_nothing(capsys):
    assert printed(capsys, verbose=0) == ""


@pytest.mark.parametrize(
    ("arguments", "expected", "unexpected"),
    [
        ({"differentiation": "forward"}, "fewer buckets", "differentiation="),
        ({"differentiation": "reverse"}, "differentiation='auto'", "buckets"),
        (
            {"differentiation": "reverse", "reverse_memory": 20000, "epochs": 20},
            "a greater `reverse_memory`, fewer `epochs`, fewer `outer_steps`",
            "buckets",
        ),
        ({"outer_steps": 1}, "fewer `steps_per_epoch`", "outer_steps"),
    ],
)
def test_tells_only_what_would_help(capsys, arguments, expected, unexpected):
    text = printed(capsys, **arguments)
    (line,) = [line for line in text.splitlines() if "to cut it" in line]
    assert expected in line
    assert unexpected not in line


def test_the_time_left_goes_by_the_last_outer_step_that_was_finished(capsys, monkeypatch):
    now = iter([0.0, 100.0, 110.0, 110.0])
    seconds = Seconds(60.0, 0.0, 0.0)
    monkeypatch.setattr(progress_module, "measure_seconds", lambda *_: seconds)
    monkeypatch.setattr(
        progress_module, "cost_of", lambda mode, reason, horizons, *_: cost(horizons=horizons)
    )
    model = make_model()
    problem = Problem(model.optimizer.buckets, np.zeros(3), 20, [10, 10, 10, 20])
    progress = SearchProgress(None, None, "", (), problem, 10)
    progress.set_params({"verbose": 0, "epochs": 4, "steps": 10})
    progress.set_model(model)
    progress.model.optimizer.search = Search(0, "forward")
    progress.on_train_begin()
    assert "for 4 outer steps" in capsys.readouterr().out
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now, 200.0))
    for epoch, steps in enumerate((10, 10, 3)):
        progress.on_epoch_begin(epoch)
        progress.on_train_batch_end(steps - 1)
        progress.on_epoch_end(epoch)
    progress.on_epoch_begin(3)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "Outer step 1/4, about 50 min left",
        "Outer step 2/4, about 40 min left",  # The first one compiled.
        "Outer step 3/4, about 30 s left",
        "Outer step 4/4, about 20 s left",
    ]


def test_the_time_left_goes_by_a_whole_round_of_several_workers(capsys, monkeypatch):
    now = iter([100.0, 140.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(now))
    model = make_model()
    problem = Problem(model.optimizer.buckets, np.zeros(3), 10, [10] * 9)
    progress = SearchProgress(None, None, "", (), problem, 10, begin=0.0, at_a_time=2)
    progress.set_params({"verbose": 0, "epochs": 9, "steps": 10})
    progress.set_model(model)
    search = model.optimizer.search = Search(0, "forward")
    progress.seconds_a_unit, progress.finished, progress.units, progress.start = 1.0, 1, 0.0, None
    search.begin_round(0)
    progress.on_epoch_begin(0)
    progress.on_train_batch_end(9)
    progress.on_epoch_end(0)
    progress.on_epoch_begin(1)
    search.before_round = None
    progress.on_epoch_end(1)
    assert progress.seconds_a_unit == 40 / 20
    assert "Outer step 2/9, about 80 s left" in capsys.readouterr().out


def test_within_a_budget_it_tells_what_is_spent(capsys):
    text = printed(capsys, outer_steps=None, budget=2, epochs=10)
    lines = [line for line in text.splitlines() if line.startswith("Outer step ")]
    pattern = r"Outer step \d+, [\d.]+ of 2 plain trainings spent, about [\d.]+ (ms|s|min) left"
    assert len(lines) > 3 and all(re.fullmatch(pattern, line) for line in lines)
    assert re.search(r"\n  momentum  \S+ \(\S+ to \S+\)", text)
    assert re.search(r"\n  learning_rate  \S+ \(\S+ to \S+\) … \S+ \(\S+ to \S+\)", text)
    assert "for 2 plain trainings" in text and "a smaller `budget`" in text


def test_a_best_value_at_an_end_of_its_range_is_told():
    model = make_model(initial=0.1)
    optimizer = model.optimizer
    h = optimizer.hyperparameters[1]  # Momentum, one value.
    for value, remark in ((0.5, ""), (h.from_searched(np.array(h.searched[2])), "at an end")):
        bands = [{"learning_rate": [0.05] * 2, "momentum": [float(value) * 0.99]}] * 2
        record = types.SimpleNamespace(bands=bands)
        optimizer.search = types.SimpleNamespace(records=[record])
        optimizer.coordinates = np.array([0.1, 0.1, float(value)])
        *_, line = progress_module.told_bands(optimizer)
        assert line.startswith("  momentum") and (remark in line if remark else ";" not in line)


def test_of_a_search_that_goes_on_it_tells_what_is_to_come(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "measure_seconds", lambda *_: Seconds(1.0, 0.0, 0.0))
    monkeypatch.setattr(
        progress_module, "cost_of", lambda mode, reason, horizons, *_: cost(horizons=horizons)
    )
    for done, told in ((2, "for 1 outer steps"), (3, "")):
        problem = Problem(make_model().optimizer.buckets, np.zeros(3), 10, [10] * 3)
        progress = SearchProgress(None, None, "", (), problem, 10)
        progress.set_params({"verbose": 0, "epochs": 3, "steps": 10})
        progress.set_model(make_model())
        progress.model.optimizer.search = Search(0, "forward")
        progress.model.optimizer.search.records = [{}] * done
        progress.on_train_begin()
        printed = capsys.readouterr().out
        assert told in printed and bool(told) == bool(printed)
