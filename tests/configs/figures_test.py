"""The paper's experiments run end to end with their own settings, on a small stand-in."""

import importlib

import numpy as np
import pytest

import keras_fds
from trainers import search, train, workdirs

SMALL = {
    "dataset": "digits",
    "network": "mlp",
    "batch_size": 64,
    "epochs": (1,),
    "outer_steps": 2,
    "validation_split": 0.2,
    "train_epochs": 1,
    "train_seeds": 1,
}


@pytest.mark.parametrize("name", ["figure_1", "figure_3_mnist", "figure_4"])
def test_it_learns_from_zero_and_trains_with_what_it_learned(tmp_path, name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update(SMALL)
    search.search(config, tmp_path / "search", verbose=0)
    first, second = workdirs.read_history(tmp_path / "search")
    step_size = config.hyperparameters[0]["step_size"]
    assert first["learning_rate[0]"] == 0.0
    # By the sign of its hypergradient alone, as the paper has it.
    assert second["learning_rate[0]"] in (0.0, step_size)
    assert second["learning_rate[0]"] == step_size * (first["hypergradient/learning_rate[0]"] < 0)
    assert np.isfinite([first["val_loss"], second["val_loss"]]).all()
    learned = keras_fds.load_schedules(tmp_path / "search" / "schedules.json")
    assert list(learned) == [each["name"] for each in config.hyperparameters]
    found = train.train(config, tmp_path / "search/schedules.json", tmp_path / "train", verbose=0)
    assert 0 <= found["accuracy"] <= 1
