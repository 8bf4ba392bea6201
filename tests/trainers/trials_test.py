"""A trial is the stock training with its schedules, in fewer calls."""

import random

import numpy as np
import pytest

from configs import digits
from trainers import experiment
from trainers.trials import Trials, seconds_a_training, with_knots


def config_of(**changes):
    config = digits.get_config()
    config.network = "mlp"
    config.method = "random"
    config.epochs = (3,)
    config.update(changes)
    return config.lock()


@pytest.fixture(scope="module")
def trials():
    return Trials(config_of(network="digits_cnn"))


def values_of(trials, rate=0.1):
    start = {"learning_rate": rate, "momentum": 0.5, "weight_decay": 1e-4}
    return {h.name: np.full(h.num_buckets, start[h.name]) for h in trials.hyperparameters}


def test_it_is_stock_training_with_its_schedules(trials):
    """`train_on_batch` on the same batches, with a model of its own, from the same weights."""
    values = values_of(trials)
    logs, part = trials.train(values, seed=7)
    random.seed(7)
    model = experiment.make_model(trials.config, trials.arrays)
    model.optimizer.schedules = trials.schedules(values)
    model.optimizer.build(model.trainable_variables)
    (x, y), rng = trials.training, np.random.default_rng(7)
    for _ in range(3):
        order = rng.permutation(len(x))
        for start in range(0, len(x), 128):
            batch = order[start : start + 128]
            model.train_on_batch(x[batch], y[batch])
    loss, accuracy = model.evaluate(*trials.validation, batch_size=24, verbose=0)
    assert part == 1.0
    assert logs["val_accuracy"] == pytest.approx(accuracy)
    assert logs["val_loss"] == pytest.approx(loss, rel=1e-4)


def test_a_trial_does_not_depend_on_those_before(trials):
    first = trials.train(values_of(trials), seed=1)
    trials.train(values_of(trials, rate=0.3), seed=2)
    assert trials.train(values_of(trials), seed=1) == first


def test_pruning_is_asked_after_whole_epochs(trials):
    asked = []
    values = values_of(trials)
    trials.train(values, 0, {"epochs": [1, 2, 3], "call": lambda *found: asked.append(found)})
    assert [epoch for epoch, _ in asked] == [1, 2]
    assert all(set(logs) == {"val_loss", "val_accuracy"} for _, logs in asked)


def test_a_training_that_breaks_down_ends_early_and_costs_its_part(trials):
    logs, part = trials.train(values_of(trials, rate=1e30), seed=0)
    assert not np.isfinite(logs["val_loss"]) and part == pytest.approx(1 / 3)


def test_weights_of_groups_reach_the_examples(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(
        "import keras, numpy as np\n"
        "def groups(): return np.arange(40) % 4\n"
        "def load_data():\n"
        "    x = np.eye(40, dtype='float32'); y = np.arange(40) % 2\n"
        "    return (x, y), (x, y), (x, y)\n"
        "def make_model():\n"
        "    return keras.Sequential([keras.Input((40,)), keras.layers.Dense(2)])\n"
    )
    config = config_of(
        task=str(path),
        space="values",
        batch_size=10,
        optimizer={"name": "keras.optimizers.SGD", "learning_rate": 1.0},
        hyperparameters=[{"name": "sample_weight", "max_value": 2.0}],
    )
    trials = Trials(config)
    (weights,) = trials.hyperparameters
    assert weights.shape == (4,)
    values = {"sample_weight": np.array([[0.0, 1.0, 0.0, 0.5]])}
    trials.train(values, seed=0)
    random.seed(0)
    start = experiment.make_model(config, trials.arrays).get_weights()[0]
    moved = (trials.model.get_weights()[0] != start).any(axis=1)
    assert moved.tolist() == [number % 4 in (1, 3) for number in range(40)]


def test_a_vector_of_unknown_length_is_refused(tmp_path):
    path = tmp_path / "task.py"
    path.write_text(
        "import keras, numpy as np\n"
        "def load_data():\n"
        "    x = np.eye(4, dtype='float32'); y = np.arange(4) % 2\n"
        "    return (x, y), (x, y), (x, y)\n"
        "def make_model():\n"
        "    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])\n"
    )
    with pytest.raises(ValueError, match="Of sample_weight that is known only in a search"):
        Trials(config_of(task=str(path), hyperparameters=[{"name": "sample_weight"}]))


def test_an_expert_tunes_one_number_of_everything_but_the_rate():
    found = with_knots(config_of()).hyperparameters
    assert [each.get("num_buckets") for each in found] == [20, None, None]


def test_a_training_is_timed():
    assert 0 < seconds_a_training(config_of(epochs=(1,))) < 60
