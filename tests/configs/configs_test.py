"""Every config loads, is complete, and gives a model and its optimizer."""

import importlib
import pathlib
import re
import types

import ml_collections
import pytest
import tensorflow_datasets as tfds

import keras_fds
from trainers import compare, data, experiment, networks, workdirs

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# A simulation that trains nothing has a config of its own kind.
NAMES = sorted({path.stem for path in CONFIGS.glob("*.py")} - {"__init__", "theorem_4_1"})


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
    for method in config.get("methods", {}):
        changed = compare.of_method(config, method)
        experiment.check_config(changed)
        experiment.lengths(changed)
        names = [each["name"] for each in changed.hyperparameters]
        assert experiment.make_optimizer(changed).names == names


def test_gives_a_model_and_its_optimizer(module):
    config = module.get_config()
    assert data and networks  # Importing data registers its datasets.
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
    if "methods" in module.get_config():
        assert f"python -m trainers.compare --config=configs/{name}.py" in text
    assert "Expected:" in text and "Measured:" in text
    for field in re.findall(r"--config\.(\w+)=", text):
        assert field in module.get_config()
