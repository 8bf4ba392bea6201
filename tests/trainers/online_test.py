"""Greedy learning from a config: the program, its files, and what is trained with them."""

import json
import pathlib

import numpy as np
import pytest

import keras_fds
from configs import digits
from trainers import experiment, online, search, train, workdirs

pytestmark = pytest.mark.usefixtures("read_once")
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = [
    "config.json",
    "history.csv",
    "model.keras",
    "schedules.json",
    "schedules.png",
    "seconds.json",
    "tensorboard",
]


def small_config(digits_dir, **fields):
    config = digits.get_config()
    small = {"network": "mlp", "epochs": (2,), "data_dir": str(digits_dir), "train_seeds": 1}
    config.update({**small, "train_epochs": 1, "method": "hd", **fields})
    return config


def test_the_program_writes_what_trainers_train_reads(tmp_path, digits_dir, run_program):
    workdir = tmp_path / "run"
    fields = {"method": "marthe", "tangent_decay": 0.9, "network": "mlp", "epochs": "(2,)"}
    arguments = [
        f"--config={ROOT}/configs/digits.py",
        f"--workdir={workdir}",
        f"--config.data_dir={digits_dir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]

    def program():
        experiment.run(search.main)

    code, output = run_program(program, *arguments)
    assert code == 0, output
    assert "After 2 epochs, 22 steps" in output and "trainers.train" in output
    assert sorted(path.name for path in workdir.iterdir()) == RESULTS
    assert json.loads((workdir / "config.json").read_text())["method"] == "marthe"
    rows = workdirs.read_history(workdir)
    rates = keras_fds.load_schedules(workdir / "schedules.json")["learning_rate"]
    np.testing.assert_allclose([row["learning_rate"] for row in rows], rates.values[[10, 21]])
    assert rates.values[0] == 0 and rates.values[-1] > 0
    code, output = run_program(program, *arguments)
    assert code == 1 and output.startswith("The workdir is not empty"), output
    summary = train.train(
        small_config(digits_dir), workdir / "schedules.json", tmp_path / "train", verbose=0
    )
    assert summary["accuracy"] > 0.1


@pytest.mark.parametrize(("method", "decay"), [("hd", 0.0), ("rtho", 1.0), ("marthe", 0.99)])
def test_a_method_is_a_decay(method, decay, digits_dir):
    found = experiment.online(small_config(digits_dir, method=method))
    assert (found["tangent_decay"], found["epochs"]) == (decay, 2)
    assert float(found["outer_optimizer"].learning_rate) == pytest.approx(0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "greedy"}, "`method` must be one of 'search', 'hd', 'rtho', 'marthe'"),
        ({"validation_training": True}, "`validation_training` is for method='search'"),
        ({"outer_optimizer": {"name": "Adam"}}, "`outer_optimizer` of the config must name"),
    ],
)
def test_bad_fields_are_refused(fields, message, tmp_path, digits_dir):
    config = small_config(digits_dir)
    config.update(fields)
    with pytest.raises(ValueError, match=message):
        online.learn(config, tmp_path / "run")


def test_a_config_without_the_fields_is_a_search():
    config = digits.get_config()
    for name in ("method", "tangent_decay", "outer_optimizer"):
        del config[name]
    experiment.check_config(config)
    assert not experiment.is_online(config)
    assert experiment.make_optimizer(config).hyperparameters[0].num_buckets == 7
