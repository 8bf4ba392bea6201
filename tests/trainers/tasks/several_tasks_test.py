"""Two digits in one image, their labels and sum; weights of tasks act in training only."""

import keras
import numpy as np
import pytest

from configs import several_tasks as config
from trainers import data, experiment
from trainers.tasks import several_tasks


@pytest.fixture
def pairs(monkeypatch):
    def load_arrays(name, split, normalisation):
        assert (name, normalisation) == ("mnist", "none")
        y = np.arange(30) % 10
        return data.ArrayDataset(
            np.full((30, 28, 28, 1), 0.05, "float32") * y[:, None, None, None], y, 10, black=None
        )

    monkeypatch.setattr(data, "load_arrays", load_arrays)
    monkeypatch.setattr(several_tasks, "EXAMPLES", {"train": 40, "test": 20})
    return several_tasks.load_data()


def test_labels_are_those_of_both_digits_and_their_sum(pairs):
    (x, y), (x_test, y_test) = pairs
    assert (
        x.shape == (40, 32, 32, 1) and y.shape == (40, 3) and x_test.shape[0] == len(y_test) == 20
    )
    # Every digit is a square as bright as its label: alone at its own corner, the brighter between.
    np.testing.assert_allclose(x[:, 0, 0, 0], 0.05 * y[:, 0], rtol=1e-6)
    np.testing.assert_allclose(x[:, -1, -1, 0], 0.05 * y[:, 1], rtol=1e-6)
    np.testing.assert_allclose(x[:, 16, 16, 0], 0.05 * y[:, :2].max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(y[:, 2], (y[:, 0] + y[:, 1]) % 10)


def test_the_loss_weighs_tasks():
    rng = np.random.default_rng(0)
    y, logits = rng.integers(0, 10, (4, 3)), rng.normal(size=(4, 3, 10)).astype("float32")
    each = np.mean(
        keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True), axis=0
    )
    loss = several_tasks.WeightedTasks(left=2.0, sum=0.0)
    assert float(loss(y, logits)) == pytest.approx((2 * each[0] + each[1]) / 3, rel=1e-5)
    again = several_tasks.WeightedTasks.from_config(loss.get_config())
    assert (again.left, again.right, again.sum) == (2.0, 1.0, 0.0)


def test_its_config_finds_what_it_learns():
    found = config.get_config()
    model = experiment.make_model(found, None)
    assert model.output_shape == (None, 3, 10)
    assert sum(each.num_buckets for each in model.optimizer.hyperparameters) == 13
    model.optimizer.multiplied(model)  # Every layer that is named is there.
