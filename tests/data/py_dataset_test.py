"""`keras.utils.PyDataset`: the batches, hooks and hypergradients that it stands for."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.datasets import DatasetBatches
from keras_fds.data.sources import get_batch
from tests.small_problem import arrays, make_model

MODES = pytest.mark.parametrize("differentiation", ["forward", "reverse"])


class Slices(keras.utils.PyDataset):
    """Batches cut from arrays as views, and the calls that it gets."""

    def __init__(self, *data, batch_size=7, seed=None, endless=False):
        super().__init__()
        self.data, self.batch_size, self.endless, self.calls = data, batch_size, endless, []
        self.generator = None if seed is None else np.random.default_rng(seed)
        self.number = -(-len(keras.tree.flatten(data)[0]) // batch_size)

    @property
    def num_batches(self):
        return None if self.endless else self.number

    def __getitem__(self, index):
        self.calls.append(index)
        first = index % self.number * self.batch_size
        batch = keras.tree.map_structure(lambda a: a[first : first + self.batch_size], self.data)
        return batch[0] if len(batch) == 1 else batch

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")
        if self.generator is not None:
            order = self.generator.permutation(len(self.data[0]))
            for array in self.data:
                array[:] = array[order]


def passes(batches, number=1):
    """All batches of some passes, as nested NumPy arrays."""
    taken = []
    for _ in range(number):
        source = batches.start()
        taken += [get_batch(source, position) for position in range(batches.num_batches)]
    return tf.nest.map_structure(lambda t: None if t is None else t.numpy(), taken)


def own_arrays():
    """Arrays of one's own, in the computation's type, `(x, one-hot y, sample_weight)`."""
    x, y = arrays()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(x))
    return x.astype("float64"), np.eye(3)[y], weights


@functools.cache
def made(floatx):
    keras.utils.set_random_seed(5)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = make_model(initial=0.1, loss=loss)
    return model, model.get_weights()


def model_with_one_hot_targets():
    """The same model for all tests, as it was made. So a step is traced once."""
    model, weights = made(keras.config.floatx())
    model.set_weights(weights)
    model.optimizer.coordinates = model.optimizer.buckets.initial_coordinates()
    return model


def fitted(x, y=None, *, differentiation="forward", **arguments):
    """The hypergradients of one outer step from the same weights."""
    model = model_with_one_hot_targets()
    arguments = {"outer_steps": 1, "initial_weights": "same", "shuffle": False, **arguments}
    keras_fds.fit(model, x, y, differentiation=differentiation, verbose=0, **arguments)
    return model.optimizer.hypergradients


def assert_equal(actual, expected, tolerance=1e-10):
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=tolerance)
        assert np.abs(values).max() > 1e-6


# ------------------------------------------------------------------------------- hypergradients
@pytest.mark.sweep("True-reverse")
@MODES
@pytest.mark.parametrize("weighted", [False, True])
def test_gives_the_hypergradients_of_the_same_arrays(float64, differentiation, weighted):
    x, y, weights = own_arrays()
    data = (x, y, weights) if weighted else (x, y)
    arguments = {"epochs": 2, "differentiation": differentiation}
    expected = fitted(
        x,
        y,
        sample_weight=weights if weighted else None,
        batch_size=7,
        validation_data=(x, y),
        validation_batch_size=9,
        **arguments,
    )
    validation = Slices(x, y, batch_size=9)
    assert_equal(fitted(Slices(*data), validation_data=validation, **arguments), expected)


@pytest.mark.sweep("reverse")
@MODES
def test_reshuffling_at_the_end_of_a_pass_is_replayed(float64, differentiation):
    x, y, _ = own_arrays()
    reshuffled = Slices(x.copy(), y.copy(), seed=3)
    found = fitted(reshuffled, epochs=3, validation_data=(x, y), differentiation=differentiation)
    generator, passed = np.random.default_rng(3), []
    for _ in range(3):
        passed.append(tf.data.Dataset.from_tensor_slices((x, y)).batch(7))
        order = generator.permutation(len(x))
        x, y = x[order], y[order]
    train = passed[0].concatenate(passed[1]).concatenate(passed[2])
    validation = tf.data.Dataset.from_tensor_slices(own_arrays()[:2]).batch(32)
    model = model_with_one_hot_targets()
    assert_equal(found, keras_fds.hypergradients(model, train, validation))


@pytest.mark.sweep("None-forward")
@MODES
@pytest.mark.parametrize("dtype", [None, "float64"])
def test_hypergradients_takes_it(differentiation, dtype):
    x, y, _ = own_arrays()
    datasets = [tf.data.Dataset.from_tensor_slices((x, y)).batch(size) for size in (7, 9)]
    slices = [Slices(x, y, batch_size=size) for size in (7, 9)]
    found, expected = (
        keras_fds.hypergradients(
            model_with_one_hot_targets(), *data, differentiation=differentiation, dtype=dtype
        )
        for data in (slices, datasets)
    )
    assert_equal(found, expected, 1e-10 if dtype else 1e-3)


# ------------------------------------------------------------------------------ batches and hooks
@pytest.mark.parametrize("number", [1, 2, 3])
def test_batches_are_triples_and_the_last_may_be_smaller(number):
    data = [np.arange(9.0), np.arange(9), np.ones(9)][:number]
    batches = DatasetBatches(Slices(*data, batch_size=4))
    found = passes(batches)
    assert [len(x) for x, _, _ in found] == [4, 4, 1]
    for position, array in enumerate(data):
        np.testing.assert_array_equal(np.concatenate([each[position] for each in found]), array)
    assert all(each[number:] == (None,) * (3 - number) for each in found)
    assert found[0][0].dtype == "float32"
    assert [spec is None for spec in batches.spec] == [n >= number for n in range(3)]


def test_dict_and_list_inputs_stay_together():
    number = np.arange(5)
    x = {"image": number[:, None] * np.ones(3), "parts": [number, -number]}
    found = passes(DatasetBatches(Slices(x, {"a": 2 * number}, batch_size=2)))
    assert [len(each["image"]) for each, _, _ in found] == [2, 2, 1]
    for each, y, _ in found:
        np.testing.assert_array_equal(each["image"][:, 0], each["parts"][0])
        np.testing.assert_array_equal(each["parts"][1], -each["parts"][0])
        np.testing.assert_array_equal(y["a"], 2 * each["parts"][0])


def test_hooks_are_called_around_every_pass():
    slices = Slices(np.arange(6), batch_size=2)
    batches = DatasetBatches(slices)
    slices.calls.clear()
    passes(batches, 2)
    assert slices.calls == ["begin", 0, 1, 2, "end"] * 2


def test_a_part_of_it_ends_its_pass():
    slices = Slices(np.arange(6), batch_size=2)
    batches = DatasetBatches(slices, 2, continues=False)
    slices.calls.clear()
    passes(batches, 2)
    assert slices.calls == ["begin", 0, 1, "end"] * 2


def test_endless_ones_go_on_from_pass_to_pass():
    slices = Slices(np.arange(6), batch_size=2, endless=True)
    batches = DatasetBatches(slices, 2)
    slices.calls.clear()
    assert [x.tolist() for x, _, _ in passes(batches, 2)] == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert slices.calls[:8] == ["begin", 0, 1, "end", "begin", 2, 3, "end"]


def test_a_pass_that_is_given_up_ends_before_the_next():
    slices = Slices(np.arange(600), batch_size=2)
    batches = DatasetBatches(slices)
    slices.calls.clear()
    get_batch(batches.start(), 0)
    passes(batches)
    last = len(slices.calls) - 1 - slices.calls[::-1].index("begin")
    assert slices.calls.count("begin") == slices.calls.count("end") == 2
    assert slices.calls[last - 1] == "end"
    assert slices.calls[last:] == ["begin", *range(300), "end"]


def test_fit_shuffles_the_order_of_batches_as_keras_does():
    x, y, _ = own_arrays()
    orders = []
    for shuffle in (True, True, False):
        slices = Slices(x, y)
        keras.utils.set_random_seed(0)
        fitted(slices, epochs=2, validation_data=(x, y), shuffle=shuffle)
        indices = [call for call in slices.calls if call not in ("begin", "end")]
        orders.append([indices[-18:-9], indices[-9:]])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]
    assert sorted(orders[0][0]) == list(range(9))
    assert orders[2] == [list(range(9))] * 2


class Growing(Slices):
    """Examples of 1, 2, 3, … parts."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return np.repeat(x[:, None], 1 + index, axis=1), y


def test_axes_may_vary_in_forward_mode(capsys):
    layers = [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((None, 4)), *layers])
    stock, _ = made.__wrapped__(keras.config.floatx())
    model.compile(stock.optimizer, loss=stock.loss)
    x, y, _ = own_arrays()
    data = Growing(x, y)
    keras_fds.fit(model, data, validation_data=data, outer_steps=1, verbose=2)
    assert "forward: batches whose shapes may differ" in " ".join(capsys.readouterr().out.split())
    assert np.isfinite(model.optimizer.hypergradients["learning_rate"]).all()
    with pytest.raises(ValueError, match="cannot be joined.*differentiation='forward'"):
        keras_fds.hypergradients(model, data, data, differentiation="reverse")


# ------------------------------------------------------------------------------ what is refused
class Changing(Slices):
    """A PyDataset whose batch number 4 is another one."""

    def __init__(self, other):
        super().__init__(*own_arrays()[:2])
        self.other = other

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return self.other(x, y) if index == 4 else (x, y)


@pytest.mark.sweep("shape-forward", "dict-reverse")
@MODES
@pytest.mark.parametrize(
    "other",
    [
        lambda x, y: x,
        lambda x, y: (x, y, np.ones(len(x))),
        lambda x, y: ({"x": x}, y),
        lambda x, y: (x[:, :3], y),
        lambda x, y: (x, y[:, 0]),
        lambda x, y: (x, y.astype("complex64")),
    ],
    ids=["no_y", "sample_weight", "dict", "shape", "rank", "kind"],
)
def test_batches_that_change_are_refused(other, differentiation):
    validation = own_arrays()[:2]
    with pytest.raises(ValueError, match="The training data must have batches of one structure"):
        fitted(Changing(other), validation_data=validation, differentiation=differentiation)


@MODES
def test_its_own_errors_are_raised(differentiation):
    def fail(x, y):
        raise KeyError("no such file")

    with pytest.raises(KeyError, match="no such file"):
        fitted(Changing(fail), validation_data=own_arrays()[:2], differentiation=differentiation)


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (Slices(np.ones(6), endless=True), {}, "infinite length. Pass `steps_per_epoch`"),
        (Slices(np.ones(0)), {}, "The training data is empty"),
        (Slices(np.ones(6)), {"steps_per_epoch": 2}, "has only 1 batches"),
        (Slices(np.ones(6)), {"y": np.ones(6)}, "holds its own `y`"),
        (
            Slices(np.ones((6, 4))),
            {"validation_data": None},
            "needs arrays. With a dataset pass `validation_data`",
        ),
    ],
    ids=["endless", "empty", "short", "y", "split"],
)
def test_what_cannot_be_done_is_refused(data, arguments, message):
    arguments = {"validation_data": own_arrays()[:2], "validation_split": 0.2, **arguments}
    with pytest.raises(ValueError, match=message):
        fitted(data, **arguments)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((np.ones(3), None, np.ones(3)), "sample weights without targets"),
        ((np.ones(3), [1, 2, 3]), "arrays with one entry per example"),
        ((tf.sparse.eye(3), np.ones(3)), "ragged ones must come as a tf.data.Dataset"),
    ],
    ids=["no_targets", "list", "sparse"],
)
def test_batches_that_are_no_arrays_are_refused(batch, message):
    slices = Slices(np.ones(3))
    slices.__class__ = type("Constant", (Slices,), {"__getitem__": lambda self, index: batch})
    with pytest.raises(ValueError, match=message):
        DatasetBatches(slices)
