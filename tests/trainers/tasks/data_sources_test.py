"""Only labels of bad sources are wrong; a weight for each source is learned and used."""

import numpy as np
import pytest

import keras_fds
from configs import data_sources as config
from trainers import data, experiment, search, task, train
from trainers.tasks import data_cleaning, data_sources


@pytest.fixture
def small(monkeypatch):
    """Six sources of twenty examples, of images that tell their labels."""

    def load_arrays(name, split, *arguments, **options):
        rng = np.random.default_rng(len(split))
        y = rng.integers(0, 10, 200)
        x = np.zeros((200, 28, 28, 1), "float32")
        x[np.arange(200), y] = 1.0
        return data.ArrayDataset(x, y, 10, black=None)

    monkeypatch.setattr(data, "load_arrays", load_arrays)
    monkeypatch.setattr(data_sources, "SOURCES", 6)
    monkeypatch.setattr(data_sources, "BAD", 3)
    monkeypatch.setattr(data_sources, "EXAMPLES", 20)
    monkeypatch.setattr(data_cleaning, "HELD_OUT", 60)
    return load_arrays


def test_only_labels_of_bad_sources_are_wrong(small):
    (x, y), (x_held_out, y_held_out), _ = data_sources.load_data()
    wrong = y != x[:, :10, 0, 0].argmax(axis=1)
    of_source = np.array([wrong[data_sources.groups() == k].mean() for k in range(6)])
    assert data_sources.is_bad().sum() == 3
    assert (of_source[~data_sources.is_bad()] == 0).all()
    assert (of_source[data_sources.is_bad()] > 0.6).all()
    np.testing.assert_array_equal(x_held_out[:, :10, 0, 0].argmax(axis=1), y_held_out)


def test_bad_sources_get_lower_weights_and_training_uses_them(small, tmp_path, monkeypatch):
    found = config.get_config()
    found.epochs, found.budget, found.batch_size = (4,), 33.0, 40
    found.train_epochs, found.train_seeds = 2, 1
    task._data.cache_clear()
    search.search(found.lock(), tmp_path / "search", verbose=0)
    path = tmp_path / "search" / "schedules.json"
    (weights,) = keras_fds.load_schedules(path)["sample_weight"].values
    bad = data_sources.is_bad()
    assert weights.shape == (6,)
    assert weights[bad].max() < weights[~bad].min()
    per_example = experiment.example_weights(found, keras_fds.load_schedules(path), 120)
    np.testing.assert_array_equal(per_example, weights[data_sources.groups()])
    assert 0 <= train.train(found, path, tmp_path / "train", verbose=0)["accuracy"] <= 1
    task._data.cache_clear()
