"""A search from a config, in this process and as the program that users type."""

import csv
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_fds
from benchmarks import kills
from configs import digits
from trainers import experiment, search, workdirs

pytestmark = pytest.mark.usefixtures("read_once")
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = [
    "checkpoints",
    "config.json",
    "history.csv",
    "model.keras",
    "schedules.json",
    "schedules.png",
    "seconds.json",
    "tensorboard",
]
REPORTS = ["report.html", "schedules.py"]
SPAM = ("WARNING", "oneDNN", "cuda", "Traceback")


def small(digits_dir, **fields):
    """Fields of a config whose search takes a second."""
    return {
        "network": "mlp",
        "epochs": (1,),
        "outer_steps": 2,
        "validation_split": 0.2,
        "differentiation": "reverse",
        "data_dir": str(digits_dir),
        **fields,
    }


def small_config(digits_dir, **fields):
    config = digits.get_config()
    config.update(small(digits_dir, **fields))
    return config


def arguments(workdir, fields):
    """The program's arguments."""
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config={ROOT}/configs/digits.py", f"--workdir={workdir}", *overrides]


@pytest.fixture(scope="module")
def program(tmp_path_factory, digits_dir, run_program):
    """The folder, what `search` returned, and the output of the program in this process."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    histories = []

    def search_and_keep(*args, original=search.search, **kwargs):
        histories.append(original(*args, **kwargs))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "search", search_and_keep)
        code, output = run_program(main, *arguments(workdir, small(digits_dir)))
    assert code == 0, output
    return workdir, histories[0], output


@pytest.fixture(scope="module")
def searched(program):
    """The folder of a finished search, and what `search` returned."""
    return program[:2]


def main():
    experiment.run(search.main)


def start(workdir, fields):
    """The program as a process of its own, both outputs in one pipe."""
    environment = {key: os.environ[key] for key in os.environ if key != "TF_CPP_MIN_LOG_LEVEL"}
    # Sums over threads are not the same to the bit with another number of threads.
    environment |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "trainers.search", *arguments(workdir, fields)],
        cwd=ROOT,
        env={**environment, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where tests run in the background, an interrupt is ignored unless asked for.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_workdir_ends_up_with_everything(searched, digits_dir):
    workdir, history = searched
    assert sorted(path.name for path in workdir.iterdir()) == sorted(RESULTS + REPORTS)
    runs = {path.parent.name for path in (workdir / "tensorboard").rglob("events.out.tfevents.*")}
    assert runs == {"tensorboard", "search", "train", "validation"} | {
        f"outer_step_00{n}" for n in (1, 2)
    }
    config = json.loads((workdir / "config.json").read_text())
    assert config == json.loads(json.dumps(small_config(digits_dir).to_dict()))
    with open(workdir / "history.csv", newline="") as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx(history.history["val_loss"])


def test_model_is_the_best_outer_steps(searched):
    workdir, history = searched
    model = keras.models.load_model(workdir / "model.keras")
    schedules = keras_fds.load_schedules(workdir / "schedules.json")
    assert set(schedules) == {"learning_rate", "momentum", "weight_decay"}
    for name, schedule in schedules.items():
        np.testing.assert_array_equal(schedule.values, model.optimizer.schedules[name].values)
    # Starting from zero, the second outer step is the first that learns.
    assert np.argmin(history.history["val_loss"]) == 1
    assert schedules["learning_rate"].values.max() > 1e-4


def test_an_older_result_is_never_overwritten_silently(searched, digits_dir):
    workdir, _ = searched
    before = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    with pytest.raises(ValueError, match="a search of another config, which differs in batch_size"):
        search.search(small_config(digits_dir, batch_size=64), workdir)
    # Asked to, but for something that does not work, it loses nothing either.
    for field in ({"dataset": "nope"}, {"network": "nope"}, {"batch_size": 1438}):
        with pytest.raises(ValueError):
            search.search(small_config(digits_dir, **field), workdir, overwrite=True, verbose=0)
    after = {path.name: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    assert after == before


def test_wrong_input_leaves_an_empty_workdir(tmp_path, digits_dir):
    for message, field in {
        "Unknown dataset": {"dataset": "nope"},
        "Unknown network": {"network": "nope"},
        "`optimizer` of the config must name": {"optimizer": {"name": "nope"}},
        "more buckets than the horizon": {"batch_size": 1438},
        "`validation_split` between 0 and 1": {"validation_split": 1.5},
        "`differentiation` must be 'auto'": {"differentiation": "backward"},
        r"Allow it more \(`reverse_memory`": {"differentiation": "reverse", "reverse_memory": 1000},
    }.items():
        with pytest.raises(ValueError, match=message):
            search.search(small_config(digits_dir, **field), tmp_path, verbose=0)
        assert not list(tmp_path.iterdir())


def test_program_prints_schedules_and_what_to_type_next(program):
    workdir, _, output = program
    for word in SPAM:
        assert word not in output
    lines = [line.split() for line in output.splitlines()]
    assert ["bucket", *"0123456"] in lines
    rates = [line for line in lines if line[:1] == ["learning_rate"]][-1]
    schedules = keras_fds.load_schedules(workdir / "schedules.json")
    values = schedules["learning_rate"].values
    np.testing.assert_allclose(np.array(rates[1:], "float64"), values, rtol=1e-2)
    assert "The best of 2 outer steps was number 2: validation loss" in output
    assert "outer_steps=2; its budget of 8 plain trainings does not count." in output
    train = next(line for line in lines if "trainers.train" in line)
    assert train[1:3] == ["-m", "trainers.train"]
    assert train[3] == f"--config={ROOT}/configs/digits.py"
    assert "--config.network=mlp" in train and "--config.outer_steps=2" in train
    assert train[-2:] == [f"--schedules={workdir}/schedules.json", f"--workdir={workdir}-train"]
    assert any(f"--logdir={workdir}/tensorboard" in line for line in lines)
    assert str(workdir / "schedules.png") in output
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert str(workdir / "report.html") in output
    assert "The best of 2 outer steps was number 2: validation loss" in page
    assert f"-m trainers.search --config={ROOT}/configs/digits.py --config.network=mlp" in page
    code = (workdir / "schedules.py").read_text(encoding="utf-8")
    assert f"def make_optimizer(horizon={schedules['learning_rate'].horizon})" in code
    assert "clipvalue=3.0" in code


def wait_for(process, condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)


def test_a_killed_search_ends_as_if_it_had_not_been(program, tmp_path, digits_dir, run_program):
    whole, _, whole_output = program
    workdir = tmp_path / "run"
    workdir.mkdir()
    # As a kill leaves it that comes when nothing is written but the config.
    workdirs.begin_search(workdir, small_config(digits_dir), going_on=False)
    process = start(workdir, small(digits_dir))
    checkpoints = workdir / "checkpoints"
    wait_for(process, lambda: list(checkpoints.glob("*.partial*")) or kills.outer_steps(workdir))
    process.kill()
    process.communicate()
    assert not (workdir / "report.html").exists()
    code, output = run_program(main, *arguments(workdir, small(digits_dir)))
    assert code == 0, output
    assert kills.differences(kills.results(whole), kills.results(workdir)) == []
    conclusion = output[output.index("\nThe best of") :]
    assert conclusion.replace(str(workdir), str(whole)) in whole_output


def test_a_finished_search_goes_on_with_more_outer_steps(searched, digits_dir, tmp_path, capsys):
    workdir = shutil.copytree(searched[0], tmp_path / "run")
    longer = small_config(digits_dir, outer_steps=3)
    history = search.search(longer, workdir, verbose=2)
    assert "Resuming after outer step 2 of 3." in capsys.readouterr().out
    assert history.history["val_loss"][:2] == searched[1].history["val_loss"]
    assert len(history.history["val_loss"]) == 3
    assert json.loads((workdir / "config.json").read_text())["outer_steps"] == 3


def test_overwrite_starts_anew(searched, digits_dir, tmp_path):
    workdir = shutil.copytree(searched[0], tmp_path / "run")
    config = small_config(digits_dir, batch_size=64, outer_steps=1, differentiation="auto")
    history = search.search(config, workdir, overwrite=True, verbose=0)
    assert len(history.history["val_loss"]) == 1
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["outer_step_000001.npz"]
    assert sorted(path.name for path in workdir.iterdir()) == RESULTS


def test_an_interrupt_leaves_what_is_finished(tmp_path, digits_dir):
    process = start(tmp_path, small(digits_dir, outer_steps=500))
    wait_for(process, lambda: (tmp_path / "history.csv").exists())
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert f"Interrupted. {tmp_path} holds what is finished: config.json, schedules.json" in output
    assert "To resume, start the same command again, without --overwrite." in output
    for word in SPAM:
        assert word not in output
    keras_fds.load_schedules(tmp_path / "schedules.json")
    assert "report.html" in output and (tmp_path / "report.html").exists()
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(None not in row.values() for row in rows)
    assert not list(tmp_path.glob("*.partial*"))


def test_report_is_of_this_config_only(searched, digits_dir):
    workdir, _ = searched
    assert search._holds_results_of(small_config(digits_dir), workdir)
    assert not search._holds_results_of(small_config(digits_dir, seed=7), workdir)
    assert not search._holds_results_of(small_config(digits_dir), workdir / "missing")


def test_a_config_that_cannot_be_meant_is_a_sentence(tmp_path, digits_dir, run_program):
    code, output = run_program(main, *arguments(tmp_path, small(digits_dir, dataset="nope")))
    assert code == 1
    assert "Unknown dataset" in output.splitlines()[-1]
    for word in SPAM:
        assert word not in output


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"outer_step": "3"}, "the config has no such field"),
        ({"outer_steps": "three"}, "invalid literal"),
    ],
)
def test_wrong_flags_are_a_sentence(tmp_path, digits_dir, run_program, fields, message):
    code, output = run_program(main, *arguments(tmp_path, small(digits_dir, **fields)))
    assert code == 1
    assert message in output.splitlines()[-1] or message in output.splitlines()[-2]
    for word in SPAM:
        assert word not in output
