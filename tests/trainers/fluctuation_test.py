"""Greedy hypergradients against shorter horizons; resuming; files; the program."""

import csv
import json
import pathlib

import numpy as np
import pytest

import keras_fds
from configs import digits
from trainers import experiment, fluctuation

pytestmark = pytest.mark.usefixtures("read_once")
ROOT = pathlib.Path(__file__).parents[2]
HORIZON = 5


def small_config(digits_dir):
    config = digits.get_config()
    config.network, config.data_dir, config.batch_size = "mlp", str(digits_dir), 16
    return config


def flat_schedules(horizon):
    values = {"learning_rate": 0.05, "momentum": 0.8, "weight_decay": 1e-3}
    return {name: keras_fds.BucketedSchedule([v], horizon) for name, v in values.items()}


@pytest.fixture(scope="module")
def loops(digits_dir):
    """Two of the same training, one a step longer."""
    config = small_config(digits_dir)
    with fluctuation.float64():
        yield [
            fluctuation.Fluctuation(config, flat_schedules(horizon), horizon)
            for horizon in (HORIZON - 1, HORIZON)
        ]


@pytest.fixture(scope="module")
def measured(digits_dir, tmp_path_factory):
    """A folder with three seeds, interrupted after the first one, and what was told."""
    output, told = tmp_path_factory.mktemp("fluctuation"), []

    def interrupt(line):
        raise KeyboardInterrupt

    arguments = (small_config(digits_dir), output, 3, HORIZON)
    with pytest.raises(KeyboardInterrupt):
        fluctuation.fluctuation(*arguments, tell=interrupt)
    first = (output / "seeds" / "0000.npz").stat().st_mtime_ns
    fluctuation.fluctuation(*arguments, tell=told.append)
    assert (output / "seeds" / "0000.npz").stat().st_mtime_ns == first
    return output, told


# ----------------------------------------------------------------------------------- measurements
def test_greedy_is_the_last_step_of_a_horizon_that_ends_there(loops):
    shorter, longer = (loop.measure(seed=3) for loop in loops)
    for name in ("learning_rate", "momentum", "weight_decay"):
        greedy = longer[f"greedy/{name}"]
        assert greedy.shape == longer[name].shape == (HORIZON,)
        np.testing.assert_allclose(greedy[-1], longer[name][-1], rtol=1e-5)
        np.testing.assert_allclose(greedy[-2], shorter[name][-1], rtol=1e-5)
        assert greedy[1] != pytest.approx(longer[name][1], rel=1e-2, abs=0)


def test_a_seed_is_measured_the_same_again_and_others_differ(loops):
    loop = loops[1]
    first, other, again = loop.measure(0), loop.measure(1), loop.measure(0)
    for name, values in first.items():
        np.testing.assert_allclose(values, again[name], rtol=1e-10, atol=1e-14)
    assert np.abs(first["learning_rate"] - other["learning_rate"]).min() > 1e-6


def test_batches_of_a_pass_have_no_example_twice(loops):
    loop = loops[1]
    x, y = loop.draw(0)
    assert x.shape == (HORIZON, 16, 8, 8, 1) and y.shape == (HORIZON, 16)
    assert len(np.unique(x.reshape(HORIZON * 16, -1), axis=0)) > 0.95 * HORIZON * 16


def test_only_the_training_split_is_read(digits_dir, monkeypatch):
    splits = []
    load = experiment.load_arrays

    def recording(config, split):
        splits.append(split)
        return load(config, split)

    monkeypatch.setattr(experiment, "load_arrays", recording)
    loop = fluctuation.Fluctuation(small_config(digits_dir), flat_schedules(2), 2)
    assert splits == ["train"]
    assert len(loop.validation[0]) + len(loop.training[0]) == 1438
    both = np.concatenate([loop.validation[0], loop.training[0]]).reshape(1438, -1)
    assert len(np.unique(both, axis=0)) == len(np.unique(loop.arrays.x.reshape(1438, -1), axis=0))


def test_schedules_of_the_paper(digits_dir):
    config = small_config(digits_dir)
    config.hyperparameters[2]["initial"] = 1e-4
    found = fluctuation.paper_schedules(config, 250)
    assert list(found) == ["learning_rate", "momentum", "weight_decay"]
    rates = found["learning_rate"].per_step()
    assert rates[[0, 125]].tolist() == pytest.approx([0.01, 0.005])
    assert 0 < rates[-1] < 1e-6
    assert found["momentum"].values.tolist() == [0.9]
    assert found["weight_decay"].values.tolist() == [1e-4]


def test_too_large_batches_are_refused(digits_dir):
    config = small_config(digits_dir)
    config.batch_size = 2000
    with pytest.raises(ValueError, match="at least one whole batch of training examples. Received"):
        fluctuation.Fluctuation(config, flat_schedules(2), 2)


# ------------------------------------------------------------------------------------------ files
def test_interrupted_measurement_goes_on(measured):
    output, told = measured
    assert told == ["Seed 1 is measured; 1 to go.", "Seed 2 is measured; 0 to go."]
    assert sorted(path.name for path in output.iterdir()) == [
        "figure_2.csv",
        "figure_2.json",
        "figure_2.png",
        "seeds",
        "settings.json",
    ]


def test_files_hold_what_was_measured(measured):
    output, _ = measured
    content = json.loads((output / "figure_2.json").read_text())
    assert content["broken_seeds"] == []
    found = content["hyperparameters"]
    assert list(found) == ["learning_rate", "momentum", "weight_decay"]
    of_seeds = [np.load(output / "seeds" / f"{k:04d}.npz")["learning_rate"] for k in range(3)]
    estimate = keras_fds.noise.estimate(of_seeds)
    assert found["learning_rate"]["noise"] == pytest.approx(estimate.noise)
    with open(output / "figure_2.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["hyperparameter"] == "momentum"]
    assert [float(row["num_buckets"]) for row in rows] == [1, 2, 3, 5]
    assert float(rows[-1]["error"]) == pytest.approx(found["momentum"]["noise"] ** 2)
    assert float(rows[-1]["error"]) == pytest.approx(found["momentum"]["error_unshared"])


def test_other_settings_are_refused(measured, digits_dir):
    output, _ = measured
    config = small_config(digits_dir)
    config.batch_size = 17
    with pytest.raises(ValueError, match="holds a measurement with another config, horizon or"):
        fluctuation.fluctuation(config, output, 3, HORIZON)


def test_seeds_that_broke_down_are_left_out(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 6))
    values[2, 3] = np.nan
    for seed, each in enumerate(values):
        np.savez(tmp_path / f"{seed:04d}.npz", learning_rate=each)
    (tmp_path / "0005.partial.npz").touch()
    found, broken = fluctuation._read(tmp_path)
    assert broken == [2]
    np.testing.assert_array_equal(found["learning_rate"], np.delete(values, 2, axis=0))
    for seed in (0, 1, 3):
        (tmp_path / f"{seed:04d}.npz").unlink()
    with pytest.raises(ValueError, match=r"No seed has finite hypergradients.*seeds=\[2\]"):
        fluctuation._read(tmp_path)


def test_program(measured, digits_dir, run_program):
    output, _ = measured

    def program():
        experiment.run(fluctuation.main, required=fluctuation.REQUIRED)

    arguments = [
        f"--config={ROOT}/configs/digits.py",
        "--config.network=mlp",
        "--config.batch_size=16",
        f"--config.data_dir={digits_dir}",
        f"--horizon={HORIZON}",
        f"--workdir={output}",
    ]
    code, printed = run_program(program, *arguments, "--seeds=3")
    assert code == 0, printed
    assert "Mean squared errors relative to those without sharing:" in printed
    assert "learning_rate" in printed and "figure_2.png" in printed
    code, printed = run_program(program, *arguments, "--seeds=2")
    assert code == 1 and "At least three seeds are needed" in printed
    code, printed = run_program(program, *arguments, "--seeds=3", "--momentum=0.5")
    assert code == 1
    assert "another config, horizon or schedules" in printed
