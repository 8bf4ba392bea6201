"""Exported schedules, trained with in a process that has no keras_fds."""

import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_fds
from keras_fds import BucketedSchedule, export
from tests import small_problem

ROOT = pathlib.Path(__file__).parents[2]
BATCH_SIZE = 10
EPOCHS = 2
STEPS_AN_EPOCH = small_problem.NUM_EXAMPLES // BATCH_SIZE

LINES = "with lines"
LEARNED = {"learning_rate": [0.3, 0.1, 0.2, 0.05], "momentum": [0.0, 0.8], "weight_decay": [0.01]}
OPTIMIZERS = {
    "paper": (keras_fds.optimizers.SGD(clipvalue=0.5), LEARNED),
    "paper, all constant": (
        keras_fds.optimizers.SGD(),
        {name: values[-1:] for name, values in LEARNED.items()},
    ),
    "SGD": (keras.optimizers.SGD(nesterov=True), LEARNED),
    LINES: (keras_fds.optimizers.SGD(), {**LEARNED, "weight_decay": [0.01, 0.0]}),
    "Adam": (keras.optimizers.Adam(amsgrad=True), {"beta_1": [0.5, 0.9], "learning_rate": [0.02]}),
    "of a schedule": (
        keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10)),
        {"momentum": [0.9, 0.5, 0.0]},
    ),
}

# One that stretches of each form of SGD and of schedules, and every optimizer over its own horizon.
RUNS = [(name, factor) for name in ("paper", "SGD", LINES) for factor in (5, 10)]
RUNS += [(name, 1) for name in OPTIMIZERS]

# Runs in another process; what it is given and gives back lies in a folder.
PROGRAM = """
import sys, pathlib
sys.modules["keras_fds"] = None  # Importing it fails.
import json, keras, numpy as np
folder = pathlib.Path(sys.argv[1])
data = np.load(folder / "data.npz")
for name, factor in json.loads(sys.argv[2]):
    names = {"__name__": "schedules"}
    exec((folder / f"{name}.py").read_text(), names)
    model = keras.models.load_model(folder / "model.keras")
    make = names["make_optimizer"]
    optimizer = make() if factor == 1 else make(horizon=12 * factor)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(data["x"], data["y"], batch_size=10, epochs=2 * factor, shuffle=False, verbose=0)
    np.savez(folder / f"{name}-{factor}.npz", *model.get_weights())
    model.save(folder / "trained.keras")
"""


def schedules_of(values, horizon=STEPS_AN_EPOCH * EPOCHS, interpolation="constant"):
    return {name: BucketedSchedule(each, horizon, interpolation) for name, each in values.items()}


def interpolation_of(name):
    return "linear" if name == LINES else "constant"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights after training with every snippet over every horizon, without keras_fds."""
    folder = tmp_path_factory.mktemp("export")
    model = small_problem.make_model(compiled=False)
    model.save(folder / "model.keras")
    x, y = small_problem.arrays()
    np.savez(folder / "data.npz", x=x, y=y)
    for name, (optimizer, values) in OPTIMIZERS.items():
        schedules = schedules_of(values, interpolation=interpolation_of(name))
        code = export.python_snippet(schedules, optimizer)
        (folder / f"{name}.py").write_text(code)
    command = [sys.executable, "-c", PROGRAM, folder, json.dumps(RUNS)]
    subprocess.run(command, check=True, timeout=300, cwd=folder)
    return folder


@pytest.mark.sweep()
@pytest.mark.parametrize(("name", "factor"), RUNS)
def test_snippet_trains_as_the_hyper_optimizer_does_over_any_horizon(folder, name, factor):
    optimizer, values = OPTIMIZERS[name]
    model = keras.models.load_model(folder / "model.keras")
    hyperparameters = [
        keras_fds.Hyperparameter(each, len(numbers), numbers, interpolation=interpolation_of(name))
        for each, numbers in values.items()
    ]
    optimizer = type(optimizer).from_config(optimizer.get_config())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_fds.HyperOptimizer(optimizer, hyperparameters), loss)
    x, y = small_problem.arrays()
    epochs = EPOCHS * factor
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=epochs, shuffle=False, verbose=0)
    assert model.optimizer.horizon == STEPS_AN_EPOCH * epochs
    with np.load(folder / f"{name}-{factor}.npz") as weights:
        for mine, its in zip(model.get_weights(), weights.values()):
            np.testing.assert_allclose(its, mine, rtol=0, atol=1e-6)


def test_snippet_holds_what_it_needs_and_no_more():
    optimizer, values = OPTIMIZERS["paper"]
    code = export.python_snippet(schedules_of(values), optimizer)
    assert "import keras_fds" not in code and "keras_fds.optimizers" not in code
    assert "        weight_decay=0.01," in code and "        clipvalue=0.5," in code
    assert all(len(line) <= 100 or "piecewise_constant(" in line for line in code.splitlines())
    # A schedule of one bucket needs nothing but Keras's own optimizer.
    code = export.python_snippet(schedules_of({"momentum": [0.9]}), keras.optimizers.SGD(0.5))
    assert code.split("\n\n\n", 1)[0].endswith("import keras")
    assert "\nclass " not in code
    assert "keras.optimizers.SGD(\n        learning_rate=0.5,\n        momentum=0.9,\n" in code


@pytest.mark.parametrize(
    "num_buckets, horizon", [(1, 1), (1, 7), (3, 3), (3, 10), (7, 100), (5, 2)]
)
def test_keras_schedules_are_equal_at_every_step(num_buckets, horizon):
    schedule = BucketedSchedule(np.linspace(0.1, 0.9, num_buckets), horizon)
    stock = export.keras_schedules({"learning_rate": schedule})["learning_rate"]
    assert type(stock) is keras.optimizers.schedules.PiecewiseConstantDecay
    steps = range(horizon + 3)
    assert [float(stock(step)) for step in steps] == [float(schedule(step)) for step in steps]


def test_lines_in_stock_schedules():
    line = BucketedSchedule([0.5, 0.1], 7, interpolation="linear")
    stock = export.keras_schedules({"learning_rate": line})["learning_rate"]
    assert type(stock) is keras.optimizers.schedules.PolynomialDecay
    np.testing.assert_allclose([float(stock(t)) for t in range(7)], line.per_step(), rtol=1e-6)
    more = BucketedSchedule([0.5, 0.1, 0.2], 7, interpolation="linear")
    with pytest.raises(ValueError, match="no schedule of 3 knots"):
        export.keras_schedules({"learning_rate": more})


@pytest.mark.parametrize(
    ("schedules", "optimizer", "message"),
    [
        ({"a.learning_rate_multiplier": [1.0]}, keras.optimizers.SGD(), "Learned numbers of a mod"),
        ({"beta_1": [0.9]}, keras_fds.optimizers.SGD(), "SGD has no 'beta_1'"),
        ({}, keras.optimizers.SGD(), "must hold one or more schedules over the same horizon"),
        ({"momentum": [0.9]}, "sgd", "must be the Keras optimizer"),
        (
            {"momentum": [0.9]},
            keras_fds.HyperOptimizer("sgd", [keras_fds.Hyperparameter("momentum")]),
            "of a HyperOptimizer pass its `optimizer`",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(schedules, optimizer, message):
    with pytest.raises(ValueError, match=message):
        export.python_snippet(schedules_of(schedules), optimizer)


def test_snippet_leaves_the_optimizer_it_copies_registered():
    optimizer, values = OPTIMIZERS["paper"]
    names = {}
    exec(export.python_snippet(schedules_of(values), optimizer), names)
    assert type(names["make_optimizer"]()) is not keras_fds.optimizers.SGD
    serialized = keras.optimizers.serialize(optimizer)
    assert type(keras.optimizers.deserialize(serialized)) is keras_fds.optimizers.SGD


def test_different_horizons_are_refused():
    schedules = {"learning_rate": BucketedSchedule([1], 10), "momentum": BucketedSchedule([0], 20)}
    with pytest.raises(ValueError, match="the same horizon"):
        export.python_snippet(schedules, keras.optimizers.SGD())


# ------------------------------------------------------------------------------- docs/schedules.md
def test_examples_of_the_file_format_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    (document,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    pathlib.Path("schedules.json").write_text(document)
    learned = keras_fds.load_schedules("schedules.json")
    assert {name: s.get_config() for name, s in learned.items()} == json.loads(document)[
        "schedules"
    ]
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
