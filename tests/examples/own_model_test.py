"""The example runs and learns something."""

import pathlib
import runpy

import keras


def test_it_learns(capsys):
    keras.utils.set_random_seed(0)
    path = pathlib.Path(__file__).parents[2] / "examples" / "own_model.py"
    accuracy = runpy.run_path(str(path))["main"](outer_steps=2, epochs=2, retraining_epochs=3)
    assert accuracy > 0.7
    assert "learning_rate" in capsys.readouterr().out
