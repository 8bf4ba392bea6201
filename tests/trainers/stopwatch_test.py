"""Seconds are written at the end of every epoch, go on after an interrupt, and end training."""

import keras
import numpy as np
import pytest

from trainers.stopwatch import Stopwatch, read_seconds


def fit(stopwatch, epochs=3, initial_epoch=0):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((4, 2)), np.ones((4, 1))
    history = model.fit(
        x, y, epochs=epochs, initial_epoch=initial_epoch, callbacks=[stopwatch], verbose=0
    )
    return len(history.epoch)


def test_every_epoch_has_its_end(tmp_path):
    assert read_seconds(tmp_path) == []
    assert fit(Stopwatch(tmp_path)) == 3
    ends = read_seconds(tmp_path)
    assert len(ends) == 3 and 0 < ends[0] <= ends[1] <= ends[2]


def test_a_resumed_training_goes_on_from_the_epoch_it_resumes_at(tmp_path):
    (tmp_path / "seconds.json").write_text("[100.0, 200.0, 300.0]")
    fit(Stopwatch(tmp_path), epochs=4, initial_epoch=2)
    ends = read_seconds(tmp_path)
    assert ends[:2] == [100.0, 200.0] and len(ends) == 4 and 200.0 < ends[2] < 290.0


def test_training_ends_at_the_limit(tmp_path):
    (tmp_path / "seconds.json").write_text("[100.0]")
    assert fit(Stopwatch(tmp_path, limit=50.0), epochs=9, initial_epoch=1) == 1
    assert fit(Stopwatch(tmp_path, limit=1e6), epochs=2) == 2


def test_a_damaged_file_is_an_error(tmp_path):
    (tmp_path / "seconds.json").write_text("[1")
    with pytest.raises(ValueError):
        fit(Stopwatch(tmp_path))
