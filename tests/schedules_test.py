"""Bucketed schedules: their values, their use in stock Keras, and their file."""

import fractions
import json
import math
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keras_fds import BucketedSchedule, load_schedules, save_schedules

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")

finite_floats = st.floats(allow_nan=False, allow_infinity=False)
values_lists = st.lists(finite_floats, min_size=1, max_size=12)

VERSION_1_FILE = """\
{
  "format": "keras_fds.schedules",
  "version": 1,
  "schedules": {
    "learning_rate": {"values": [0.1, 0.30000000000000004], "horizon": 10},
    "momentum": {"values": [0.9], "horizon": 10}
  }
}
"""


def exact_value(values, horizon, step):
    bucket = math.floor(fractions.Fraction(len(values) * step, horizon))
    return values[min(bucket, len(values) - 1)]


def content(schedules):
    return {name: (s.values.tolist(), s.horizon) for name, s in schedules.items()}


# --------------------------------------------------------------------------------------- values
@given(
    values=st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=12),
    horizon=st.integers(1, 60),
)
def test_values_over_all_steps(values, horizon):
    schedule = BucketedSchedule(values, horizon)
    expected = [exact_value(values, horizon, step) for step in range(horizon)]
    assert schedule.per_step().tolist() == expected
    steps = tf.range(horizon + 5, dtype="int64")
    assert schedule(steps).numpy().tolist() == expected + [values[-1]] * 5


@pytest.mark.parametrize("horizon", [1, 2, 7, 100])
def test_two_knots_are_the_linear_decay_of_keras(horizon):
    schedule = BucketedSchedule([0.8, 0.1], horizon, interpolation="linear")
    stock = keras.optimizers.schedules.PolynomialDecay(0.8, horizon, 0.1)
    steps = range(horizon + 3)
    expected = [float(stock(step)) for step in steps]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], expected, rtol=1e-6)
    np.testing.assert_allclose(schedule.per_step(), expected[:horizon], rtol=1e-6)
    assert schedule.stretched(3).interpolation == "linear"


def test_lines_are_kept_in_a_file_of_their_version(tmp_path):
    schedules = {
        "learning_rate": BucketedSchedule([0.5, 0.1, 0.0], 10, interpolation="linear"),
        "momentum": BucketedSchedule([0.9], 10),
    }
    save_schedules(tmp_path / "schedules.json", schedules)
    assert json.loads((tmp_path / "schedules.json").read_text())["version"] == 2
    loaded = load_schedules(tmp_path / "schedules.json")
    assert [s.get_config() for s in loaded.values()] == [s.get_config() for s in schedules.values()]
    # Without lines, older versions can read it.
    save_schedules(tmp_path / "schedules.json", {"momentum": schedules["momentum"]})
    assert json.loads((tmp_path / "schedules.json").read_text())["version"] == 1


@pytest.mark.parametrize(
    "step",
    [4, np.int64(4), tf.constant(4), tf.constant(4, "int64"), tf.Variable(4), tf.constant(4.0)],
    ids=lambda step: type(step).__name__,
)
def test_step_may_be_any_scalar(step):
    value = BucketedSchedule([0.5, 0.25, 0.125], horizon=10)(step)
    assert value.shape == ()
    assert value.dtype == "float32"
    assert float(value) == 0.25


def test_keeps_the_last_value_beyond_the_horizon():
    schedule = BucketedSchedule([0.5, 0.25], horizon=10)
    assert [float(schedule(step)) for step in (9, 10, 11, 10**12)] == [0.25] * 4


def test_int32_steps_do_not_overflow():
    schedule = BucketedSchedule([1.0, 2.0, 3.0, 4.0], horizon=2**31)
    assert float(schedule(tf.constant(2**30, "int32"))) == 3.0


def test_value_is_exact_in_float64(float64):
    value = BucketedSchedule([0.1], horizon=1)(0)
    assert value.dtype == "float64"
    assert float(value) == 0.1


@given(values=values_lists, horizon=st.integers(1, 50), longer=st.integers(1, 300))
def test_stretched_has_the_same_buckets_over_another_horizon(values, horizon, longer):
    schedule = BucketedSchedule(values, horizon)
    stretched = schedule.stretched(longer)
    assert stretched.horizon == longer
    assert stretched.per_step().tolist() == [exact_value(values, longer, t) for t in range(longer)]
    assert content({"a": stretched.stretched(horizon)}) == content({"a": schedule})
    assert schedule.horizon == horizon


def test_values_are_kept_apart_from_the_callers_array():
    values = np.array([0.5, 0.25])
    schedule = BucketedSchedule(values, horizon=2)
    stretched = schedule.stretched(4)
    values[0] = 9.0
    assert schedule.values.tolist() == stretched.values.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("values", []),
        ("values", None),
        ("values", [0.1, np.nan]),
        ("values", [np.inf]),
        ("values", "abc"),
        ("values", [[0.1, 0.2], [0.3]]),
        ("horizon", 0),
        ("horizon", -3),
        ("horizon", np.nan),
        ("horizon", np.inf),
        ("horizon", "ten"),
        ("horizon", None),
    ],
    ids=repr,
)
def test_bad_input_is_named_with_what_was_received(argument, value):
    with pytest.raises(ValueError) as raised:
        BucketedSchedule(**{"values": [0.1], "horizon": 10, argument: value})
    assert f"`{argument}`" in str(raised.value)
    assert f"Received: {argument}={value!r}" in str(raised.value)


# ------------------------------------------------------------------------------- in stock Keras
@pytest.mark.parametrize("optimizer_class", [keras.optimizers.SGD, keras.optimizers.Adam])
def test_stock_optimizers_follow_the_schedule(optimizer_class):
    # With a gradient of one, each step of either optimizer is just the learning rate.
    schedule = BucketedSchedule([0.5, 0.0, 0.25], horizon=7)
    optimizer = optimizer_class(learning_rate=schedule)
    weight = keras.Variable([0.0])
    rates = [*schedule.per_step(), 0.25, 0.25]
    for step, expected in enumerate(-np.cumsum(rates)):
        optimizer.apply([tf.ones([1])], [weight])
        np.testing.assert_allclose(weight.numpy(), [expected], rtol=1e-4, err_msg=f"step {step}")


def test_training_goes_on_along_the_schedule_after_save_and_load(tmp_path):
    x, y = np.random.rand(8, 3), np.random.rand(8, 1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    schedule = BucketedSchedule([0.1, 0.5, 0.0], horizon=6)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.5), loss="mse")
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for trained in (model, loaded):
        trained.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
    at_end = [w.copy() for w in loaded.get_weights()]
    for weights, loaded_weights in zip(model.get_weights(), at_end):
        np.testing.assert_array_equal(weights, loaded_weights)
    assert float(loaded.optimizer.learning_rate) == 0.0


@given(values=values_lists, horizon=st.integers(1, 10**12))
def test_serialization_round_trip(values, horizon):
    schedule = BucketedSchedule(values, horizon)
    expected = content({"a": schedule})
    assert content({"a": BucketedSchedule.from_config(schedule.get_config())}) == expected
    serialized = json.loads(json.dumps(keras.optimizers.schedules.serialize(schedule)))
    restored = keras.optimizers.schedules.deserialize(serialized)
    assert isinstance(restored, BucketedSchedule)
    assert content({"a": restored}) == expected


def test_repr_makes_the_same_object():
    schedule = BucketedSchedule([0.1, 1e-30], horizon=3)
    assert content({"a": eval(repr(schedule))}) == content({"a": schedule})


# ------------------------------------------------------------------------------------- the file
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("schedules")


@given(
    schedules=st.dictionaries(
        st.text(max_size=10),
        st.builds(BucketedSchedule, values_lists, st.integers(1, 10**12)),
        max_size=4,
    )
)
def test_file_round_trip(folder, schedules):
    path = folder / "schedules.json"
    save_schedules(path, schedules)
    restored = load_schedules(str(path))
    assert list(restored) == list(schedules)
    assert content(restored) == content(schedules)


def test_reads_a_file_of_version_1(tmp_path):
    path = tmp_path / "schedules.json"
    path.write_text(VERSION_1_FILE)
    assert content(load_schedules(path)) == {
        "learning_rate": ([0.1, 0.1 + 0.2], 10),
        "momentum": ([0.9], 10),
    }


def test_file_is_json_that_others_can_read(tmp_path):
    path = tmp_path / "schedules.json"
    save_schedules(
        path,
        {
            "learning_rate": BucketedSchedule([0.1, 0.1 + 0.2], 10),
            "momentum": BucketedSchedule([0.9], 10),
        },
    )
    assert json.loads(path.read_text()) == json.loads(VERSION_1_FILE)
    assert len(path.read_text().splitlines()) > 5


@pytest.mark.parametrize(
    "changes",
    [
        {"schedules": None},
        {"schedules": [1]},
        {"schedules": {"momentum": 0.9}},
        {"schedules": {"momentum": {}}},
        {"schedules": {"momentum": {"values": [0.9]}}},
        {"schedules": {"momentum": {"values": [], "horizon": 10}}},
        {"schedules": {"momentum": {"values": [None], "horizon": 10}}},
        {"schedules": {"momentum": {"values": ["a"], "horizon": 10}}},
        {"schedules": {"momentum": {"values": [math.nan], "horizon": 10}}},
        {"schedules": {"momentum": {"values": [0.9], "horizon": 0}}},
        {"schedules": {"momentum": {"values": [0.9], "horizon": "ten"}}},
        {"schedules": {"momentum": {"values": [0.9], "horizon": math.inf}}},
        {"schedules": {"momentum": {"values": [10**400], "horizon": 10}}},
        {"version": None},
        {"version": "1"},
        {"version": 0},
    ],
    ids=str,
)
def test_broken_content_is_called_corrupt(tmp_path, changes):
    path = tmp_path / "schedules.json"
    path.write_text(json.dumps({**json.loads(VERSION_1_FILE), **changes}))
    with pytest.raises(ValueError, match=r"schedules.json.*corrupt") as raised:
        load_schedules(path)
    assert "newer" not in str(raised.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    place=st.sampled_from(["format", "version", "schedules", "momentum", "values", "horizon"]),
    value=json_values,
)
@example("horizon", math.inf)
@example("values", [10**400])
def test_whatever_the_content_the_file_is_read_or_refused_by_name(folder, place, value):
    document = json.loads(VERSION_1_FILE)
    schedules = document["schedules"]
    for holder in (document, schedules, schedules["momentum"]):
        if place in holder:
            holder[place] = value
    path = folder / "changed.json"
    path.write_text(json.dumps(document))
    try:
        restored = load_schedules(path)
    except ValueError as error:
        assert "changed.json" in str(error)
    else:
        assert all(isinstance(schedule, BucketedSchedule) for schedule in restored.values())


def test_every_truncated_file_is_called_corrupt(tmp_path):
    path = tmp_path / "schedules.json"
    for length in range(len(VERSION_1_FILE.rstrip())):
        path.write_text(VERSION_1_FILE[:length])
        with pytest.raises(ValueError, match=r"schedules.json.*corrupt"):
            load_schedules(path)


def test_binary_file_is_called_corrupt(tmp_path):
    path = tmp_path / "schedules.json"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"schedules.json.*corrupt"):
        load_schedules(path)


@pytest.mark.parametrize("document", [[], {}, {"format": "other", "version": 1}, 3, None])
def test_foreign_file(tmp_path, document):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"config.json.*is not a schedule file"):
        load_schedules(path)


def test_file_of_a_newer_version(tmp_path):
    path = tmp_path / "schedules.json"
    document = {**json.loads(VERSION_1_FILE), "version": 4, "schedules": "another form"}
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"schedules.json.*version 4.*up to 3.*newer keras_fds"):
        load_schedules(path)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"absent.json.*No such file.*a search wrote"):
        load_schedules(tmp_path / "absent.json")


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"Is a directory"):
        load_schedules(tmp_path)


# ------------------------------------------------------------------------------------ replacing
def numbered(number, num_buckets=1000):
    return {"learning_rate": BucketedSchedule([float(number)] * num_buckets, 10**6)}


def test_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "schedules.json"
    save_schedules(path, numbered(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # A disk that is full after 4 kB.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OSError):
            save_schedules(path, numbered(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(load_schedules(path)) == content(numbered(1))
    save_schedules(path, numbered(3))
    assert content(load_schedules(path)) == content(numbered(3))
    assert list(tmp_path.iterdir()) == [path]


def test_who_is_reading_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "schedules.json"
    save_schedules(path, numbered(1))
    whole = path.read_text()
    with path.open() as reader:
        start = reader.read(10)
        save_schedules(path, numbered(2, num_buckets=3))
        assert start + reader.read() == whole


def test_schedules_that_cannot_be_written_leave_the_old_file(tmp_path):
    path = tmp_path / "schedules.json"
    save_schedules(path, numbered(1))
    with pytest.raises((AttributeError, TypeError, ValueError)):
        save_schedules(path, {"learning_rate": 0.1})
    assert content(load_schedules(path)) == content(numbered(1))
