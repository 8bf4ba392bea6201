"""Models from configs, folders for results, and what a program says."""

import signal
import sys
import time
import types
import weakref

import keras
import ml_collections
import numpy as np
import pytest

import keras_fds
from configs import digits
from trainers import experiment, workdirs

ARRAYS = types.SimpleNamespace(input_shape=(8, 8, 1), num_classes=10)


@pytest.fixture
def config():
    return digits.get_config()


def test_check_config_names_what_is_missing_and_numbers_below_one(config):
    experiment.check_config(config)
    config.batch_size = 0
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1"):
        experiment.check_config(config)
    config.batch_size = 1
    config.reverse_memory = 0
    with pytest.raises(ValueError, match="`reverse_memory` must be a whole number of at least 1"):
        experiment.check_config(config)
    config.reverse_memory = 2**20
    experiment.check_config(config)
    config.seed = -1
    with pytest.raises(ValueError, match="`seed` must be a whole number from 0.*seed=-1"):
        experiment.check_config(config)
    config.seed = 0
    config.differentiation = "backward"
    with pytest.raises(ValueError, match="must be 'auto', 'forward' or 'reverse'. Received: 'back"):
        experiment.check_config(config)
    del config.network
    with pytest.raises(ValueError, match="The config lacks network."):
        experiment.check_config(config)


def test_the_last_number_of_epochs_is_for_all_that_follow():
    for epochs, expected in (
        (3, [3, 3, 3]),
        ((3,), [3, 3, 3]),
        ((1, 10), [1, 10, 10]),
        ((1, 2, 3, 4), [1, 2, 3]),
    ):
        config = ml_collections.ConfigDict({"epochs": epochs, "outer_steps": 3})
        assert experiment.lengths(config) == {"epochs": expected, "outer_steps": 3}


def test_without_outer_steps_there_is_a_budget():
    config = ml_collections.ConfigDict({"epochs": (5,), "budget": 4.0, "outer_steps": None})
    assert experiment.lengths(config) == {"epochs": 5, "budget": 4.0}
    config.epochs = (1, 5)
    with pytest.raises(ValueError, match="Several `epochs` are those of `outer_steps`"):
        experiment.lengths(config)


def test_epochs_that_are_not_positive_numbers_are_refused():
    for epochs in ((), 0, (1, 0), ("a",), -1.5):
        config = ml_collections.ConfigDict({"epochs": epochs, "outer_steps": 3})
        with pytest.raises(ValueError, match="`epochs` must be one or more positive numbers"):
            experiment.lengths(config)


def test_optimizer_is_as_the_config_says(config):
    config.tangent_clipvalue = 2.0
    config.outer.caution = 0.5
    optimizer = experiment.make_optimizer(config)
    assert type(optimizer.optimizer) is keras_fds.optimizers.SGD
    assert optimizer.optimizer.clipvalue == 3.0
    assert optimizer.names == ["learning_rate", "momentum", "weight_decay"]
    assert [h.num_buckets for h in optimizer.hyperparameters] == [7, 1, 1]
    assert optimizer.outer.caution == 0.5
    mode = experiment.differentiation(config)
    assert mode.tangent_clipvalue == 2.0


def test_stock_optimizers_go_by_their_full_names(config):
    config.optimizer = {"name": "keras.optimizers.Adam", "beta_2": 0.99}
    config.hyperparameters = [{"name": "learning_rate", "initial": 1e-3}]
    optimizer = experiment.make_optimizer(config)
    assert type(optimizer.optimizer) is keras.optimizers.Adam
    assert optimizer.optimizer.beta_2 == 0.99


def test_schedules_decide_values_and_numbers_of_buckets(config):
    schedules = {
        "learning_rate": keras_fds.BucketedSchedule([0.3, 0.2], 10),
        "momentum": keras_fds.BucketedSchedule([0.9], 10),
        "weight_decay": keras_fds.BucketedSchedule([1e-4, 0.0, 1e-5], 10),
    }
    optimizer = experiment.make_optimizer(config, schedules)
    for name, schedule in optimizer.schedules.items():
        assert schedule.values.tolist() == schedules[name].values.tolist()
    del schedules["momentum"]
    with pytest.raises(ValueError, match="The schedules hold learning_rate, weight_decay, but the"):
        experiment.make_optimizer(config, schedules)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("optimizer", {"name": "SGD"}, "`optimizer` of the config must name one of keras.optim"),
        ("optimizer", {"name": "keras.optimizers.Optimizer"}, "must name one of"),
        ("optimizer", {"name": "keras.optimizers.SGD", "rate": 1.0}, "not recognized: .*rate"),
        ("outer", {"name": "Newton"}, "`outer` of the config must name one of BayesianOptim"),
        ("hyperparameters", [{"name": "learning_rate", "buckets": 7}], "cannot be made: .*buckets"),
        ("hyperparameters", [{"num_buckets": 7}], "Hyperparameter cannot be made: .*name"),
        ("hyperparameters", [{"name": "rho"}], "SGD has no hyperparameter 'rho'"),
    ],
)
def test_wrong_optimizers_are_told_in_a_sentence(config, field, value, message):
    config[field] = value
    with pytest.raises(ValueError, match=message):
        experiment.make_optimizer(config)


def test_model_is_compiled_and_returns_logits(config):
    model = experiment.make_model(config, ARRAYS)
    assert model.output_shape == (None, 10)
    assert isinstance(model.optimizer, keras_fds.HyperOptimizer)
    config.network = "alexnet"
    with pytest.raises(ValueError, match="Unknown network"):
        experiment.make_model(config, ARRAYS)


def test_augmentation_normalisation_and_initializer(config):
    for field, value, message in (
        ("augmentation", "crop_rotate", "`augmentation` must be 'none', or one or more of crop, f"),
        ("augmentation", "flip_crop", "in this order, joined by _, such as 'crop_flip'. Received"),
        ("normalisation", "pixel", "`normalisation` must be 'channel' or 'none'. .*='pixel'"),
    ):
        before, config[field] = config[field], value
        with pytest.raises(ValueError, match=message):
            experiment.check_config(config)
        config[field] = before
    config.augmentation = "crop_flip"
    config.initializer = "he_normal"
    arrays = types.SimpleNamespace(input_shape=(8, 8, 1), num_classes=10, black=np.array([-1.5]))
    model = experiment.make_model(config, arrays)
    layer = model.layers[1]
    assert (layer.padding, layer.flip, layer.cutout, layer.border) == (4, True, 0, [-1.5])
    assert isinstance(model.layers[-1].kernel_initializer, keras.initializers.HeNormal)
    config.augmentation = "crop_flip_cutout"
    with pytest.raises(ValueError, match=r"16x16: too large for these images.*\(8, 8, 1\)"):
        experiment.make_model(config, arrays)
    config.augmentation = "none"
    del config.initializer
    config.initializer = {"class_name": "HeUniform", "config": {}}
    model = experiment.make_model(config, arrays)
    assert isinstance(model.layers[-1].kernel_initializer, keras.initializers.HeUniform)


def test_a_config_of_an_older_version_means_what_it_meant(config):
    for field in workdirs.OPTIONAL_FIELDS:
        del config[field]
    experiment.check_config(config)
    model = experiment.make_model(config, ARRAYS)
    assert isinstance(model.layers[1], keras.layers.Conv2D)
    assert isinstance(model.layers[1].kernel_initializer, keras.initializers.GlorotNormal)


def test_load_arrays_passes_on_what_the_config_says(config, monkeypatch):
    from trainers import data

    received = []
    monkeypatch.setattr(
        data, "load_arrays", lambda *args, **kwargs: received.append((args, kwargs))
    )
    config.update(
        dataset="image_folder", data_dir="images", cache_dir="cache", normalisation="none"
    )
    experiment.load_arrays(config, "test")
    for field in workdirs.OPTIONAL_FIELDS:
        del config[field]
    experiment.load_arrays(config, "train")
    assert received == [
        (("image_folder", "test", "images"), {"normalisation": "none", "cache_dir": "cache"}),
        (("image_folder", "train", "images"), {"normalisation": "channel", "cache_dir": None}),
    ]


def test_load_arrays_tells_failures_in_a_sentence(config, monkeypatch, tmp_path):
    from trainers import data

    def fail(*arguments, **options):
        raise RuntimeError("Could not prepare it.")

    monkeypatch.setattr(data, "load_arrays", fail)
    with pytest.raises(ValueError, match="Could not prepare it."):
        experiment.load_arrays(config, "train")


def test_summary_of_seeds():
    one = [{"seed": 0, "loss": 0.5, "accuracy": 0.9}]
    assert experiment.summarise(one) == {
        "loss": 0.5,
        "accuracy": 0.9,
        "accuracy_interval": None,
        "seeds": one,
    }
    three = [{"seed": n, "loss": 0.5, "accuracy": a} for n, a in enumerate((0.8, 0.82, 0.84))]
    summary = experiment.summarise(three)
    assert summary["accuracy"] == pytest.approx(0.82)
    # The tables' t for 95% and two degrees of freedom is 4.303.
    half = 4.303 * 0.02 / 3**0.5
    assert summary["accuracy_interval"] == pytest.approx([0.82 - half, 0.82 + half], abs=1e-5)
    assert experiment.summarise([{**each, "accuracy": 1 - n / 9} for n, each in enumerate(three)])[
        "accuracy_interval"
    ][1] == pytest.approx(1.0)


def test_table_has_a_column_a_bucket():
    schedules = {
        "learning_rate": keras_fds.BucketedSchedule([0.5, 0.125], 10),
        "weight_decay": keras_fds.BucketedSchedule([3e-4], 10),
    }
    assert [line.split() for line in experiment.table(schedules).splitlines()] == [
        ["bucket", "0", "1"],
        ["learning_rate", "0.5", "0.125"],
        ["weight_decay", "0.0003"],
    ]


def test_table_of_many_buckets_has_ten_beside_each_other():
    schedules = {"learning_rate": keras_fds.BucketedSchedule(range(12), 12)}
    schedules["momentum"] = keras_fds.BucketedSchedule([0.5], 12)
    first, second = experiment.table(schedules).split("\n\n")
    assert [len(line.split()) for line in first.splitlines()] == [11, 11, 2]
    assert [line.split() for line in second.splitlines()] == [
        ["bucket", "10", "11"],
        ["learning_rate", "10", "11"],
    ]


def test_commands_are_those_of_this_python(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python3"))
    assert experiment.command("python", "-m", "a b") == f"{tmp_path}/bin/python -m 'a b'"
    monkeypatch.chdir(tmp_path)
    assert experiment.command("python") == "bin/python"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert experiment.command("python") == "python"


def test_an_interrupt_that_meets_a_clean_up_is_not_lost(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", experiment._interrupt_again)
    # A process started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Thing:
        pass

    def clean_up(reference):
        raise KeyboardInterrupt

    thing = Thing()
    reference = weakref.ref(thing, clean_up)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            del thing
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert reference() is None
    assert time.monotonic() - start < 4


@pytest.mark.parametrize(
    "task, name, title",
    [
        (None, "digits", "digits_cnn on digits"),
        ("trainers.tasks.low_data", "low_data", "low_data"),
        ("folder.of/my_task.py", "my_task", "my_task"),
    ],
)
def test_a_task_has_a_name_and_a_title(task, name, title):
    config = digits.get_config()
    config.task = task
    assert experiment.task_name(config) == name
    assert experiment.described(config) == title
