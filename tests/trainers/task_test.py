"""A file of the user's own gives data and models to all programs, or is refused in a sentence."""

import pytest

from configs import digits
from trainers import compare, experiment, task

TASK = """
import keras
import numpy as np

def load_data():
    x = np.random.default_rng(0).integers(0, 20, size=(320, 6))
    y = (x > np.roll(x, 1, axis=1)).astype("int32")  # A label for every position.
    return (x[:256], y[:256]), (x[256:], y[256:])

def make_model():
    return keras.Sequential([
        keras.Input((6,), dtype="int32"), keras.layers.Embedding(20, 8), keras.layers.Dense(2)
    ])
"""


def config_of(path, **changes):
    config = digits.get_config()
    config.task = str(path)
    config.batch_size = 32
    config.epochs, config.budget, config.outer_steps = (1,), 2.0, None
    config.hyperparameters = [{"name": "learning_rate", "num_buckets": 2}]
    config.train_epochs, config.train_seeds = 1, 1
    config.methods = {"search": {}}
    config.update(changes)
    return config.lock()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "positions.py"
    path.write_text(TASK)
    return path


def test_it_is_searched_and_trained_as_any_other(path, tmp_path):
    (record,) = compare.compare(config_of(path), tmp_path / "results", seeds=1)[""]
    assert 0.4 < record["accuracies"][0] <= 1


def test_its_data_and_models_are_as_the_file_says(path):
    arrays = experiment.load_arrays(config_of(path), "train")
    assert arrays.x.shape == (256, 6) and arrays.x.dtype == "int64" and arrays.num_classes == 2
    assert experiment.load_arrays(config_of(path), "test").y.shape == (64, 6)
    model = experiment.make_model(config_of(path), arrays)
    assert model.output_shape == (None, 6, 2)
    assert model is not experiment.make_model(config_of(path), arrays)


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "There is no such file"),
        (
            "import nothing_like_it",
            r"cannot be loaded:\n[^$]*ModuleNotFoundError",
        ),
        ("def load_data(): pass", r"lacks make_model\(\)"),
        (TASK.replace("return (x[:256], y[:256]), ", "return "), "must return"),
        (TASK.replace('astype("int32")', 'astype("float32")'), "whole numbers"),
        (TASK.replace('astype("int32")', "astype(str)"), "Received: types int64 and <U5"),
        (TASK.replace("y[:256]", "y[:256] - 9"), "labels from 0. Received: -"),
        (TASK.replace("(x[:256], y[:256])", "(dict(a=x[:256]), y[:256])"), r"shapes \(\) and"),
        (TASK.replace("x[:256]", "x[:256, :5]"), "of one shape"),
        (f"{TASK}\ndef load_data(): raise SystemExit(3)", r"failed:\n[^$]*SystemExit: 3"),
        (f"{TASK}\ndef groups(): return None", r"groups\(\) of .* must return"),
        (TASK.replace("y[:256]", "y[:200]"), "as many labels as examples"),
        (f"{TASK}\ndef make_model(): return 3", "must return a keras.Model. Received: 3"),
        (f"{TASK}\ndef make_model(): return 1 / 0", r"make_model\(\) of .* failed:\n[^$]*1 / 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, text, words):
    path = tmp_path / "task.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=words):
        task.load(str(path))
        task.load_arrays(str(path), "train")
        task.make_model(str(path))
        task.groups(str(path))


def test_a_module_has_a_dotted_name(monkeypatch, path):
    monkeypatch.syspath_prepend(path.parent)
    assert task.make_model("positions").output_shape == (None, 6, 2)
    with pytest.raises(ValueError, match=r"cannot be loaded:\n[^$]*ModuleNotFoundError"):
        task.load("position")


def test_fields_of_other_networks_are_refused(path):
    with pytest.raises(ValueError, match=r"`augmentation` is for the networks here"):
        experiment.check_config(config_of(path, augmentation="crop_flip"))
