"""Batches of arrays and datasets: every example once per pass, and clear refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.data.batches import Numbered, numbers, pack, plain, unpack
from keras_fds.data.datasets import DatasetBatches
from keras_fds.data.sources import get_batch, map_structure

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")


def numbered(length):
    """Examples that can be told apart: x = 0, 1, …; y = 10·x; sample_weight = 100·x."""
    number = np.arange(length, dtype="float32")
    return as_arrays(number, 10 * number, 100 * number)


def one_pass(batches):
    """All batches of a pass, as nested numpy arrays."""
    source = batches.start()
    return [
        map_structure(lambda tensor: tensor.numpy(), get_batch(source, position))
        for position in range(batches.num_batches)
    ]


def values_of_x(batches):
    return [x.tolist() for x, _, _ in one_pass(batches)]


# --------------------------------------------------------------------------------- ArrayBatches
@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    seed=st.none() | st.integers(0, 2**32),
    data=st.data(),
)
def test_every_example_exactly_once_a_pass(length, batch_size, seed, data):
    chosen = data.draw(st.none() | st.sets(st.integers(0, length - 1), min_size=1))
    generator = None if seed is None else np.random.default_rng(seed)
    examples = None if chosen is None else np.array(sorted(chosen))
    batches = ArrayBatches(numbered(length), batch_size, examples, generator)
    expected = sorted(range(length) if chosen is None else chosen)
    for _ in range(2):
        passed = one_pass(batches)
        sizes = [len(x) for x, _, _ in passed]
        seen = np.concatenate([x for x, _, _ in passed])
        assert sorted(seen) == expected
        if seed is None:
            assert list(seen) == expected
        assert all(size == batch_size for size in sizes[:-1])
        assert 1 <= sizes[-1] <= batch_size
        for x, y, sample_weight in passed:
            np.testing.assert_array_equal(y, 10 * x)
            np.testing.assert_array_equal(sample_weight, 100 * x)


def test_last_batch_may_be_smaller():
    assert values_of_x(ArrayBatches(numbered(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]


def test_shuffles_anew_every_pass_and_repeats_with_the_seed():
    def two_passes(seed):
        batches = ArrayBatches(numbered(50), 50, generator=np.random.default_rng(seed))
        return [values_of_x(batches)[0] for _ in range(2)]

    first, second = two_passes(0)
    assert first != second
    assert first != sorted(first)
    assert [first, second] == two_passes(0)
    assert [first, second] != two_passes(1)


def test_without_a_generator_the_order_given_is_kept():
    batches = ArrayBatches(numbered(9), 2, examples=np.array([5, 1, 8]))
    assert values_of_x(batches) == values_of_x(batches) == [[5, 1], [8]]


def test_subset_of_the_same_arrays():
    whole = ArrayBatches(numbered(9), 4)
    assert values_of_x(whole.subset(np.array([2, 7, 3]))) == [[2, 7, 3]]
    assert values_of_x(whole.subset(np.array([2, 7, 3]), batch_size=2)) == [[2, 7], [3]]
    shuffled = whole.subset(np.arange(9), generator=np.random.default_rng(0))
    assert np.concatenate(values_of_x(shuffled)).tolist() != list(range(9))
    assert sorted(np.concatenate(values_of_x(shuffled))) == list(range(9))
    assert values_of_x(whole) == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert whole.subset(np.array([2, 7, 3])).num_examples == 9


@pytest.mark.parametrize("batch_size", [0, -2, 2.5])
def test_bad_batch_size(batch_size):
    with pytest.raises(ValueError, match=rf"`batch_size`.*Received: batch_size={batch_size}"):
        ArrayBatches(numbered(9), batch_size)


# --------------------------------------------------------------------------------- in the graph
@tf.function(autograph=False, reduce_retracing=True)
def weighted_sum(source, num_batches):
    """Σ position · Σ x·y in a compiled loop, as the unroll takes its batches."""

    def body(position, total):
        x, y, _ = get_batch(source, position)
        weight = tf.cast(position + 1, "float32")
        return position + 1, total + weight * tf.reduce_sum(x * y)

    start = [tf.constant(0, "int64"), tf.constant(0.0)]
    return tf.while_loop(lambda i, _: i < num_batches, body, start)[1]


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_take_in_a_compiled_loop(kind):
    number = np.arange(7, dtype="float32")
    if kind == "arrays":
        batches = ArrayBatches(as_arrays(number, number, None), 3)
    else:
        batches = DatasetBatches(tf.data.Dataset.from_tensor_slices((number, number)).batch(3))
    total = weighted_sum(batches.start(), tf.constant(batches.num_batches, "int64"))
    assert float(total) == 1 * (0 + 1 + 4) + 2 * (9 + 16 + 25) + 3 * 36


# ------------------------------------------------------------------------------- DatasetBatches
def test_a_pass_over_a_dataset_begins_anew():
    batches = DatasetBatches(tf.data.Dataset.range(7).batch(3))
    assert batches.num_batches == 3
    for _ in range(2):
        assert values_of_x(batches) == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_endless_dataset_goes_on_where_the_last_pass_ended():
    batches = DatasetBatches(tf.data.Dataset.range(5).batch(1).repeat(), num_batches=3)
    assert batches.num_batches == 3
    assert values_of_x(batches) == [[0], [1], [2]]
    assert values_of_x(batches) == [[3], [4], [0]]


def test_a_part_of_a_dataset():
    batches = DatasetBatches(tf.data.Dataset.range(7).batch(3), num_batches=2)
    assert batches.num_batches == 2
    assert values_of_x(batches) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (np.arange(4), ([0, 1, 2, 3], None, None)),
        ((np.arange(4), np.arange(4) + 5), ([0, 1, 2, 3], [5, 6, 7, 8], None)),
        ((np.arange(4),) * 3, ([0, 1, 2, 3],) * 3),
    ],
    ids=["x", "x_y", "x_y_sample_weight"],
)
def test_batches_of_a_dataset_are_triples(elements, expected):
    batches = DatasetBatches(tf.data.Dataset.from_tensors(elements))
    ((x, y, sample_weight),) = one_pass(batches)
    for value, expected_value in zip((x, y, sample_weight), expected):
        np.testing.assert_array_equal(value, expected_value)
    assert [spec is None for spec in batches.spec] == [value is None for value in expected]


def finite(length):
    return tf.data.Dataset.range(length)


def unknown(length):
    return finite(length).filter(lambda _: True)


@pytest.mark.parametrize(
    ("dataset", "num_batches", "message"),
    [
        (unknown(5), None, r"^`v` has unknown length. Pass `validation_steps`, the number"),
        (finite(5).repeat(), None, r"^`v` has infinite length. Pass `validation_steps`, the"),
        (finite(0), None, r"^`v` is empty"),
        (finite(0), 3, r"^`v` is empty"),
        (finite(5), 6, r"^`v` has only 5 batches. Received: validation_steps=6"),
        (finite(5), 0, r"`validation_steps`.*Received: validation_steps=0"),
        (finite(5), -1, r"`validation_steps`.*Received: validation_steps=-1"),
        (finite(5), 2.5, r"`validation_steps`.*Received: validation_steps=2.5"),
        (finite(5).repeat(), 0, r"`validation_steps`.*Received: validation_steps=0"),
        (finite(5).repeat(), -1, r"`validation_steps`.*Received: validation_steps=-1"),
    ],
    ids=[
        "unknown",
        "infinite",
        "empty",
        "empty_3",
        "short",
        "finite_0",
        "finite_-1",
        "finite_2.5",
        "infinite_0",
        "infinite_-1",
    ],
)
def test_datasets_that_do_not_tell_their_length_or_hold_too_little(dataset, num_batches, message):
    with pytest.raises(ValueError, match=message):
        DatasetBatches(dataset, num_batches, what=("`v`", "validation_steps"))


def test_all_of_a_dataset_may_be_asked_for():
    assert DatasetBatches(finite(5), 5).num_batches == 5


def test_a_dataset_of_unknown_length_that_ends_early_is_told_so():
    x, y = np.random.rand(8, 2).astype("float32"), np.random.rand(8, 1).astype("float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(
        keras_fds.HyperOptimizer(
            keras_fds.optimizers.SGD(), [keras_fds.Hyperparameter("learning_rate")]
        ),
        loss="mse",
    )
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).filter(lambda x, y: True)
    with pytest.raises(ValueError, match=r"`?steps_per_epoch`?"):
        keras_fds.fit(
            model, dataset, steps_per_epoch=5, validation_data=(x, y), outer_steps=1, verbose=0
        )


# ------------------------------------------------------------------------------------ structure
def test_dict_inputs_stay_together():
    number = np.arange(5, dtype="float32")
    inputs = {"image": number[:, None] * np.ones(3, "float32"), "age": number}
    arrays = ArrayBatches(as_arrays(inputs, {"a": 2 * number, "b": -number}, None), 2)
    elements = (inputs, {"a": 2 * number, "b": -number})
    dataset = DatasetBatches(tf.data.Dataset.from_tensor_slices(elements).batch(2))
    for batches in (arrays, dataset):
        passed = one_pass(batches)
        assert [len(x["age"]) for x, _, _ in passed] == [2, 2, 1]
        for x, y, sample_weight in passed:
            np.testing.assert_array_equal(x["image"], x["age"][:, None] * np.ones(3))
            np.testing.assert_array_equal(y["a"], 2 * x["age"])
            np.testing.assert_array_equal(y["b"], -x["age"])
            assert sample_weight is None
        x_spec, y_spec, sample_weight_spec = batches.spec
        assert x_spec["image"].shape.as_list() == [None, 3]
        assert x_spec["age"].dtype == y_spec["b"].dtype == "float32"
        assert sample_weight_spec is None


def test_targets_and_sample_weights_may_be_missing():
    batches = ArrayBatches(as_arrays(np.ones((3, 2)), None, None), 2)
    assert [(y, sample_weight) for _, y, sample_weight in one_pass(batches)] == [(None, None)] * 2
    assert batches.spec[1:] == (None, None)


# ------------------------------------------------------------------------------------ as_arrays
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float64", "float32"),
        ("float16", "float32"),
        ("float32", "float32"),
        ("int64", "int64"),
        ("uint8", "uint8"),
        ("bool", "bool"),
    ],
)
@pytest.mark.parametrize("form", [np.asarray, tf.constant])
def test_floats_become_floatx_and_whole_numbers_stay(dtype, expected, form):
    x, _, _ = as_arrays(form(np.ones((2, 3), dtype)), None, None)
    assert x.dtype == expected
    np.testing.assert_array_equal(x, np.ones((2, 3)))


def test_floats_stay_exact_where_floatx_is_float64(float64):
    x, y, sample_weight = as_arrays(np.array([0.1]), np.array([0.2]), np.array([0.3]))
    assert (float(x[0]), float(y[0]), float(sample_weight[0])) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(4), np.ones(3), None), r"validation must hold arrays of the same.*\[4, 3\]"),
        ((np.ones(4), None, np.ones(5)), r"validation must hold arrays of the same.*\[4, 5\]"),
        (
            ({"a": np.ones(4), "b": np.ones(2)}, None, None),
            r"validation must hold arrays.*\[4, 2\]",
        ),
        ((np.ones((0, 3)), np.ones(0), None), r"^validation is empty"),
        ((3.0, None, None), r"one entry per example.*numpy.asarray. Received: .*3"),
        (([1.0, 2.0], None, None), r"one entry per example.*numpy.asarray. Received: .*1"),
    ],
    ids=["y", "sample_weight", "inputs", "empty", "scalar", "list"],
)
def test_bad_arrays(arguments, message):
    with pytest.raises(ValueError, match=message):
        as_arrays(*arguments, what="validation")


# --------------------------------------------------------------------------------- class_weight
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=20),
    class_weight=st.dictionaries(st.integers(0, 9), st.integers(0, 50)),
    form=st.sampled_from(["flat", "column", "one_hot", "float", "uint8", "tensor"]),
)
def test_class_weight_becomes_sample_weight(labels, class_weight, form):
    number = np.array(labels)
    y = {
        "flat": number,
        "column": number[:, None],
        "one_hot": np.eye(7)[number],
        "float": number.astype("float32"),
        "uint8": number.astype("uint8"),
        "tensor": tf.constant(number),
    }[form]
    _, _, sample_weight = as_arrays(number, y, None, class_weight)
    assert sample_weight.dtype == "float32"
    assert sample_weight.numpy().tolist() == [class_weight.get(label, 1) for label in labels]


@pytest.mark.parametrize("class_weight", [{1: 5.0}, {0: 2.0, -1: 0.0}])
def test_class_weight_with_an_ignored_class_of_minus_one(class_weight):
    labels = np.array([0, 1, -1, 1])
    _, _, sample_weight = as_arrays(labels, labels, None, class_weight)
    assert sample_weight.numpy().tolist() == [class_weight.get(n, 1.0) for n in labels]


@pytest.mark.parametrize(
    ("y", "sample_weight", "message"),
    [
        (np.zeros(4), np.ones(4), r"either `class_weight` or `sample_weight`, not both"),
        (None, None, r"`class_weight`"),
        ({"a": np.zeros(4), "b": np.zeros(4)}, None, r"`class_weight`"),
        (np.zeros((4, 3, 3)), None, r"`class_weight`"),
    ],
    ids=["sample_weight", "no_targets", "several_outputs", "3_dimensional"],
)
def test_class_weight_where_it_has_no_meaning(y, sample_weight, message):
    with pytest.raises(ValueError, match=message):
        as_arrays(np.ones(4), y, sample_weight, {0: 2.0})


def test_class_weight_of_no_examples():
    with pytest.raises(ValueError, match=r"^validation is empty"):
        as_arrays(np.ones((0, 3)), np.ones(0), None, {0: 2.0}, what="validation")


# ------------------------------------------------------------------- numbers of examples
@pytest.mark.parametrize("element", [("x", "y"), ("x", "y", "w"), ("x", "y", "w", "n")])
def test_unpacking_and_packing(element):
    assert pack(*unpack(element)) == element
    assert plain(unpack(element)) == (*element[:3], None)[:3]
    assert numbers(unpack(element)) == (element[3] if len(element) > 3 else None)


def test_weights_may_be_missing():
    data = tf.data.Dataset.range(4).batch(2).map(lambda i: (i, i, None, i))
    assert unpack(data.element_spec)[2].sample_weight is None
    _, _, found = unpack(next(iter(data)))
    assert found.sample_weight is None
    np.testing.assert_array_equal(found.number, [0, 1])
    assert isinstance(found, Numbered)
