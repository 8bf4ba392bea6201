"""A search that learns vectors: what it prints and writes, its resume, and saved models."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds import callbacks

NUM_EXAMPLES, BATCH = 200, 20


def arrays():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_EXAMPLES, 4)).astype("float32")
    return x, np.argmax(x[:, :3], axis=1)


def make_model(*hyperparameters, outer=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    hyperparameters = hyperparameters or (
        keras_fds.Hyperparameter("sample_weight", 2),
        keras_fds.Hyperparameter("class_weight"),
        keras_fds.Hyperparameter("learning_rate", initial=0.1),
    )
    model.compile(
        keras_fds.HyperOptimizer(keras.optimizers.SGD(), list(hyperparameters), outer=outer),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def fit(model, **arguments):
    arguments = {"outer_steps": 4, "epochs": 1, "verbose": 0, **arguments}
    return keras_fds.fit(
        model, *arrays(), batch_size=BATCH, validation_split=0.2, seed=0, **arguments
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """`(model, folder)` of a search that was interrupted once."""
    folder = tmp_path_factory.mktemp("searched")
    for interrupted in (True, False):
        model = make_model()
        shown = [
            callbacks.Checkpoint(folder / "checkpoints"),
            callbacks.ScheduleExport(folder / "export"),
            callbacks.TensorBoard(folder / "board"),
        ]
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                fit(model, callbacks=[*shown, InterruptThirdOuterStep()])
        else:
            fit(model, callbacks=shown)
    return model, folder


class InterruptThirdOuterStep(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_a_resumed_search_ends_as_if_it_was_not_interrupted(searched):
    straight = make_model()
    fit(straight)
    np.testing.assert_array_equal(searched[0].optimizer.coordinates, straight.optimizer.coordinates)
    for one, other in zip(searched[0].get_weights(), straight.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_the_history_has_elements_of_short_vectors_and_quantiles_of_long_ones(searched):
    with open(searched[1] / "export" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    columns = [name for name in rows[0] if name.startswith(("sample", "class", "learning"))]
    quantiles = [f"sample_weight[{k}]_{q}%" for k in (0, 1) for q in (0, 5, 25, 50, 75, 95, 100)]
    expected = [*quantiles, *(f"class_weight[0][{i}]" for i in range(3)), "learning_rate[0]"]
    assert columns == expected
    assert float(rows[-1]["sample_weight[0]_0%"]) < 1 < float(rows[-1]["sample_weight[1]_100%"])
    assert len(rows[0]) < 60


def test_schedules_are_written_and_read(searched):
    optimizer, path = searched[0].optimizer, searched[1] / "export" / "schedules.json"
    loaded = keras_fds.load_schedules(path)
    assert loaded["sample_weight"].values.shape == (2, NUM_EXAMPLES)
    assert len(path.read_text().splitlines()) < 40
    other = make_model()
    assert list(other.optimizer.schedules) == ["learning_rate"]  # The others' lengths are unknown.
    other.optimizer.schedules = loaded
    np.testing.assert_array_equal(other.optimizer.coordinates, optimizer.coordinates)
    fit(other, outer_steps=1)
    assert len(repr(loaded["sample_weight"])) < 100


def test_a_saved_model_keeps_its_vectors(searched, tmp_path):
    model = searched[0]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name, values in model.optimizer.values.items():
        np.testing.assert_array_equal(loaded.optimizer.values[name], values)
    fit(loaded, outer_steps=1)
    with pytest.raises(ValueError, match="200 values, but model and data have 100 values"):
        keras_fds.fit(loaded, *(part[:100] for part in arrays()), validation_split=0.2, verbose=0)


def test_tensorboard_has_few_tags(searched):
    tags = set()
    for path in (searched[1] / "board").rglob("*.keras_fds"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert "sample_weight_50%/bucket_1/value" in tags
    assert "class_weight[2]/bucket_0/hypergradient" in tags
    assert "schedules/sample_weight_100%" in tags
    assert len(tags) < 80


def test_pictures_show_elements_or_how_they_are_spread(searched):
    rng = np.random.default_rng(0)
    schedules = [
        {
            "class_weight": keras_fds.BucketedSchedule(rng.random((1, 4)), 10),
            "sample_weight": keras_fds.BucketedSchedule(rng.random((2, 1000)), 10),
        }
        for _ in range(3)
    ]
    short, long = callbacks.draw_schedules(schedules).axes
    assert (short.get_xlabel(), len(short.patches)) == ("element", 3)
    drawn = long.lines[-1].get_ydata()
    expected = np.sort(schedules[-1]["sample_weight"].values.mean(axis=0))
    np.testing.assert_array_equal(drawn[[0, -1]], expected[[0, -1]])
    assert np.all(np.diff(drawn) >= 0)


def test_what_is_printed(capsys):
    fit(make_model(), outer_steps=2, verbose=2)
    printed = capsys.readouterr().out
    assert "404 values: sample_weight (400), class_weight (3), learning_rate (1)" in printed
    assert "reverse: an inner step costs about 4.0 plain training steps" in printed
    assert "sample_weight  400 values from" in printed


def test_within_a_budget_numbers_are_searched_then_vectors_descend():
    model = make_model()
    fit(model, budget=40, outer_steps=None, epochs=2)
    observations, start = model.optimizer.search.observations, np.ones(2 * NUM_EXAMPLES)
    moved = [not np.array_equal(o.coordinates[: len(start)], start) for o in observations]
    first = moved.index(True)
    assert all(moved[first:]) and first > 3
    assert all(o.hypergradients is not None for o in observations[first - 1 : -1])
    assert model.optimizer.search.records[-1].spent <= 40
    assert set(model.optimizer.bands) == {"learning_rate"}


@pytest.mark.parametrize("rule", [keras_fds.outer.SignDescent, keras_fds.outer.Descent])
def test_other_rules_move_vectors_and_numbers_together(rule):
    model = make_model(outer=rule())
    fit(model, outer_steps=2)
    first, second = (o.coordinates for o in model.optimizer.search.observations)
    assert np.mean(first != second) > 0.3  # The others are held out, or in the other bucket.


def test_a_budget_that_is_too_small_for_vectors_is_refused():
    with pytest.raises(ValueError, match="vectors are learned, `budget` must be at least 12"):
        fit(make_model(), budget=5, outer_steps=None)


def test_stock_keras_has_no_such_thing():
    schedules = {"learning_rate": keras_fds.BucketedSchedule([[0.1, 0.2]], horizon=10)}
    with pytest.raises(ValueError, match="one value at a step, and 'learning_rate' is a vector"):
        keras_fds.export.keras_schedules(schedules)
    schedules = {"sample_weight": keras_fds.BucketedSchedule([[0.1, 0.2]], horizon=10)}
    with pytest.raises(ValueError, match="has no 'sample_weight'"):
        keras_fds.export.python_snippet(schedules, keras.optimizers.SGD())


@pytest.mark.parametrize("structure", ["two outputs", "sequence", "PyDataset"])
def test_weights_of_zero_leave_examples_out(structure):
    """Learned weights reach every output and step, also in batches that Python makes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5, 2)).astype("float32")
    keep = np.arange(40) % 2 == 0
    ends = []
    for shift in (0.0, 9.0):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5, 2))
        steps = keras.layers.Dense(3)(inputs)
        outputs, y = steps, x[:, :, :1] * np.ones(3, "float32")
        if structure == "two outputs":
            pooled = keras.layers.GlobalAveragePooling1D()(inputs)
            outputs, y = [keras.layers.Dense(3)(pooled), steps], (y[:, 0], y)
        y = keras.tree.map_structure(lambda a: a.astype("float32"), y)
        for part in keras.tree.flatten(y):
            part[~keep] += shift
        model = keras.Model(inputs, outputs)
        learned = keras_fds.Hyperparameter(
            "sample_weight", shape=40, initial=keep.astype(float), num_buckets=1
        )
        losses = [keras.losses.MeanSquaredError() for _ in range(2)]
        model.compile(
            keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), [learned]),
            loss=losses if structure == "two outputs" else losses[0],
        )
        data = {"x": x, "y": y}
        if structure == "PyDataset":
            data = {"x": Numbered(x, y)}
        validation = x[:8], keras.tree.map_structure(lambda a: a[:8], y)
        keras_fds.fit(
            model,
            **data,
            validation_data=validation,
            batch_size=None if structure == "PyDataset" else 5,
            outer_steps=1,
            epochs=1,
            verbose=0,
            seed=0,
        )
        ends.append(model.get_weights())
    for one, other in zip(*ends):
        np.testing.assert_allclose(one, other, atol=1e-6)


class Numbered(keras.utils.PyDataset):
    """Batches of five examples with their numbers, and without weights."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // 5

    def __getitem__(self, index):
        numbers = np.arange(5 * index, 5 * index + 5)
        return self.x[numbers], self.y[numbers], None, numbers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "learning_rate", "each": True}, "belongs to no layer"),
        ({"name": "class_weight", "groups": 3}, "for 'sample_weight' only"),
        ({"name": "sample_weight", "groups": [0.5, 1.0]}, "whole numbers from 0"),
        ({"name": "sample_weight", "groups": [0, -1]}, "whole numbers from 0"),
        ({"name": "sample_weight", "groups": 0}, "whole number of at least 1"),
        ({"name": "sample_weight", "shape": (2, 0)}, "whole number of at least 1"),
        ({"name": "sample_weight", "shape": 3, "initial": [1.0, 2.0]}, "3 values for all buckets"),
        ({"name": "sample_weight", "shape": 3, "initial": -1.0}, "must lie between"),
        ({"name": "sample_weight", "shape": 3, "groups": [0, 1]}, "3 values, .* have 2 values"),
    ],
)
def test_bad_arguments_get_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_fds.Hyperparameter(**arguments)


def test_numbers_of_an_optimizer_are_no_vectors():
    with pytest.raises(ValueError, match="'momentum' of SGD is one number"):
        make_model(keras_fds.Hyperparameter("momentum", shape=3))
    with pytest.raises(ValueError, match="Lion"):
        keras_fds.HyperOptimizer(
            keras.optimizers.Lion(), [keras_fds.Hyperparameter("sample_weight", shape=3)]
        )


def test_groups_must_be_those_of_the_examples():
    model = make_model(keras_fds.Hyperparameter("sample_weight", groups=np.arange(7)))
    with pytest.raises(ValueError, match="7 groups for 200 examples"):
        fit(model)


class OfArrays(keras.utils.PyDataset):
    """The training examples of `arrays`, with other labels."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, index):
        chosen = slice(50 * index, 50 * index + 50)
        return self.x[chosen], self.y[chosen]


@pytest.mark.parametrize("kind", ["arrays", "dataset", "py_dataset"])
def test_a_label_without_a_weight_is_refused_wherever_it_comes(kind):
    x, y = arrays()
    y[-1] = 7
    data = {
        "arrays": (x, y),
        "dataset": (tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH),),
        "py_dataset": (OfArrays(x, y),),
    }[kind]
    with pytest.raises(ValueError, match="label from 0 to 2: .* with 3 values. Received: 7"):
        keras_fds.fit(
            make_model(keras_fds.Hyperparameter("class_weight")),
            *data,
            validation_data=arrays(),
            outer_steps=1,
            verbose=0,
        )


def test_the_fourth_part_of_a_batch_is_a_whole_number_with_a_weight():
    x, y = arrays()

    def hypergradients(numbers):
        model = make_model(keras_fds.Hyperparameter("sample_weight", groups=4))
        of_batches = (x, y, np.ones(len(x)), numbers)
        data = tf.data.Dataset.from_tensor_slices(of_batches).batch(BATCH)
        validation = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
        return keras_fds.hypergradients(model, data, validation)

    numbers = np.arange(len(x)) % 4
    found = hypergradients(numbers)["sample_weight"]
    np.testing.assert_allclose(hypergradients(numbers.astype("uint8"))["sample_weight"], found)
    for other in (numbers.astype("float32"), numbers.astype("int64")[:, None, None]):
        with pytest.raises(ValueError, match="number of each example|for every example"):
            hypergradients(other)
    for wrong in (np.arange(len(x)) % 5, np.where(np.arange(len(x)) == 150, 4, 0)):
        with pytest.raises(ValueError, match="group from 0 to 3: .* Received: 4"):
            hypergradients(wrong)


def test_the_model_tells_the_number_of_classes():
    with pytest.raises(ValueError, match="learned with 2 values, but model and data have 3"):
        fit(make_model(keras_fds.Hyperparameter("class_weight", shape=2)))


def test_groups_are_numbered_without_gaps():
    with pytest.raises(ValueError, match="Received: 3 examples, and the group 1000000000"):
        keras_fds.Hyperparameter("sample_weight", groups=[0, 1, 10**9])


def test_start_values_out_of_range_are_said_to_be_the_models():
    model = make_model(keras_fds.Hyperparameter("sample_weight", max_value=0.5))
    with pytest.raises(ValueError, match=r"between 0.0 and 0.5.*Received: \[1.0\], as the model"):
        fit(model)


def test_config_round_trip():
    learned = keras_fds.Hyperparameter("sample_weight", 2, groups=[0, 2, 1, 1])
    again = keras_fds.Hyperparameter.from_config(learned.get_config())
    assert again.get_config() == learned.get_config()
    assert again.shape == (3,) and again.groups == 3
    learned = keras_fds.Hyperparameter(
        "*.kernel_regularizer.l2", each=True, shape=2, initial=[[1, 2]]
    )
    again = keras_fds.Hyperparameter.from_config(learned.get_config())
    assert again.each and again.get_config() == learned.get_config()
    np.testing.assert_array_equal(again.initial_values, [[1.0, 2.0]])
