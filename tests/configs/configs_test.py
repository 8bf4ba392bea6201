"""Every config loads, is complete, and gives a model and its optimizer."""

import importlib
import pathlib
import re
import types

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

import keras_fds
from configs import all_tasks, digits_wide
from trainers import compare, data, experiment, networks, workdirs

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# A simulation that trains nothing has a config of its own kind, and one config holds others.
OTHERS = {"__init__", "theorem_4_1", "all_tasks", "short_trainings"}
NAMES = sorted({path.stem for path in CONFIGS.glob("*.py")} - OTHERS)


@pytest.fixture(params=NAMES)
def module(request):
    return importlib.import_module(f"configs.{request.param}")


def test_there_are_configs():
    assert {"digits", "fashion_mnist_lenet"} <= set(NAMES)


def test_is_complete_and_locks(module):
    config = module.get_config()
    assert isinstance(config, ml_collections.ConfigDict)
    experiment.check_config(config)
    config.lock()
    with pytest.raises(AttributeError):
        config.outer_step = 3
    lengths = experiment.lengths(config)
    assert lengths.get("budget", config.budget) == config.budget
    assert lengths.get("outer_steps") == config.outer_steps
    fields = {*experiment._FIELDS, *workdirs.OPTIONAL_FIELDS}
    assert set(config.to_dict()) - {"methods"} == fields


def test_every_method_fits(module):
    config = module.get_config().lock()
    for method in compare.methods_of(config):
        changed = compare.of_method(config, method)
        experiment.check_config(changed)
        experiment.lengths(changed)
        names = [each["name"] for each in changed.hyperparameters]
        assert experiment.make_optimizer(changed).names == names


def test_gives_a_model_and_its_optimizer(module):
    config = module.get_config()
    assert data and networks  # Importing data registers its datasets.
    arrays = types.SimpleNamespace(input_shape=(32, 32, 3), num_classes=10)
    if config.dataset != "image_folder":
        features = tfds.builder(config.dataset).info.features
        arrays = types.SimpleNamespace(
            input_shape=features["image"].shape, num_classes=features["label"].num_classes
        )
    model = experiment.make_model(config, arrays)
    assert isinstance(model.optimizer, keras_fds.HyperOptimizer)
    assert model.optimizer.names == [each["name"] for each in config.hyperparameters]


def test_docstring_gives_the_commands_and_the_result(module):
    text = re.sub(r" \\\n +", " ", module.__doc__)
    name = module.__name__.split(".")[-1]
    for program in ("search", "train"):
        assert f"python -m trainers.{program} --config=configs/{name}.py" in text
    if "trainers.compare" in text:
        assert f"python -m trainers.compare --config=configs/{name}.py" in text
    assert "Expected:" in text and "Measured:" in text
    for field in re.findall(r"--config\.(\w+)=", text):
        assert field in module.get_config()


def test_the_config_of_all_tasks_has_each_as_it_is():
    config = all_tasks.get_config().lock()
    for name, task in config.tasks.items():
        assert task.to_dict() == importlib.import_module(f"configs.{name}").get_config().to_dict()
        assert f"python -m trainers.compare --config=configs/{name}.py" in re.sub(
            r" \\\n +", " ", importlib.import_module(f"configs.{name}").__doc__
        )


def test_the_wide_ranges_are_ten_times_as_wide_as_those_of_the_default_rule():
    for each in digits_wide.get_config().hyperparameters:
        wide = keras_fds.Hyperparameter(**each)
        usual = keras_fds.Hyperparameter(each["name"])
        widened = np.subtract(wide.searched[1:], usual.searched[1:])
        low = 0.0 if each["name"] == "momentum" else -np.log(10)
        np.testing.assert_allclose(widened, [low, np.log(10)])
