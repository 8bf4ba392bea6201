"""Which bucket an inner step falls in, and what a `Hyperparameter` accepts."""

import collections
import fractions
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_fds import Hyperparameter
from keras_fds.hyperparameters import Buckets

settings.register_profile("keras_fds", deadline=None, derandomize=True)
settings.load_profile("keras_fds")

DECAYS = ("momentum", "beta_1", "beta_2", "rho", "ema_momentum", "adam_beta_1", "adam_beta_2")
OTHERS = ("learning_rate", "weight_decay", "epsilon")


def exact_bucket(num_buckets, inner_step, horizon):
    """floor(K·t/T), in exact arithmetic."""
    return math.floor(fractions.Fraction(num_buckets * inner_step, horizon))


def attributes(hyperparameter):
    names = (
        "name",
        "num_buckets",
        "step_size",
        "min_value",
        "max_value",
        "scale",
        "interpolation",
    )
    values = {name: getattr(hyperparameter, name) for name in names}
    return {**values, "initial_values": hyperparameter.initial_values.tolist()}


# -------------------------------------------------------------------------------------- buckets
@given(num_buckets=st.integers(1, 40), horizon=st.integers(1, 200))
def test_buckets_opening_steps_and_lengths_agree_at_every_step(num_buckets, horizon):
    hyperparameter = Hyperparameter("learning_rate", num_buckets)
    expected = [exact_bucket(num_buckets, t, horizon) for t in range(horizon)]
    count = collections.Counter(expected)
    lengths = hyperparameter.bucket_lengths(horizon)
    opening = hyperparameter.opening_steps(horizon)

    assert [hyperparameter.shares(t, horizon)[0] for t in range(horizon)] == expected
    lower, upper, fraction = hyperparameter.shares(np.arange(horizon), horizon)
    assert lower.tolist() == upper.tolist() == expected and fraction is None
    assert lengths.tolist() == [count[bucket] for bucket in range(num_buckets)]
    assert lengths.sum() == horizon
    for bucket in count:
        assert opening[bucket] == expected.index(bucket)
    assert opening.dtype == lengths.dtype == "int64"


@given(num_buckets=st.integers(1, 300), surplus=st.integers(0, 10**6))
def test_no_bucket_is_empty_when_there_are_enough_steps(num_buckets, surplus):
    lengths = Hyperparameter("learning_rate", num_buckets).bucket_lengths(num_buckets + surplus)
    assert len(lengths) == num_buckets
    assert lengths.min() >= 1
    assert lengths.max() - lengths.min() <= 1


@given(num_buckets=st.integers(2, 10**4), horizon=st.integers(10**4, 10**10))
def test_borders_are_exact_on_long_horizons(num_buckets, horizon):
    hyperparameter = Hyperparameter("learning_rate", num_buckets)
    opening = hyperparameter.opening_steps(horizon)
    last = np.append(opening[1:], horizon) - 1
    assert hyperparameter.shares(opening, horizon)[0].tolist() == list(range(num_buckets))
    assert hyperparameter.shares(last, horizon)[0].tolist() == list(range(num_buckets))


@pytest.mark.parametrize(
    ("num_buckets", "horizon", "lengths"),
    [
        (7, 10, [2, 1, 2, 1, 2, 1, 1]),
        (5, 10, [2, 2, 2, 2, 2]),
        (1, 469, [469]),
        (3, 3, [1, 1, 1]),
        (3, 10, [4, 3, 3]),
    ],
)
def test_lengths_worked_out_by_hand(num_buckets, horizon, lengths):
    hyperparameter = Hyperparameter("learning_rate", num_buckets)
    assert hyperparameter.bucket_lengths(horizon).tolist() == lengths


@pytest.mark.parametrize("interpolation", ["constant", "linear"])
def test_shares_of_a_tensor_in_a_graph(interpolation):
    hyperparameter = Hyperparameter("learning_rate", 7, interpolation=interpolation)
    expected = hyperparameter.shares(np.arange(12), 10)
    row = tf.function(hyperparameter.shares)(tf.range(12, dtype="int64"), tf.constant(10, "int64"))
    assert row[0].dtype == row[1].dtype == "int64"
    assert [each is None for each in row] == [each is None for each in expected]
    for actual, wanted in zip(row, expected):
        assert actual is None or actual.numpy().tolist() == wanted.tolist()


# ---------------------------------------------------------------------------------------- knots
def sharing_matrix(hyperparameter, horizon):
    """`[horizon, num_buckets]`, from the numbers of single steps."""
    unit = np.eye(hyperparameter.num_buckets)
    columns = [Buckets([hyperparameter]).at_steps(row, horizon)["learning_rate"] for row in unit]
    return np.stack(columns, 1)


@pytest.mark.parametrize("interpolation", ["constant", "linear"])
@given(num_buckets=st.integers(1, 12), surplus=st.integers(0, 60))
def test_one_sharing_matrix_stands_behind_all(interpolation, num_buckets, surplus):
    horizon = num_buckets + surplus
    hyperparameter = Hyperparameter("learning_rate", num_buckets, interpolation=interpolation)
    matrix, buckets = sharing_matrix(hyperparameter, horizon), Buckets([hyperparameter])
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-14)
    of_steps = np.random.default_rng(0).normal(size=horizon)
    np.testing.assert_allclose(buckets.sums(of_steps[:, None]), matrix.T @ of_steps, atol=1e-12)
    np.testing.assert_allclose(buckets.lengths(horizon), matrix.sum(0), rtol=1e-12)
    assert (matrix.sum(0) > 0).all()
    assert buckets.opening_steps(horizon).tolist() == (matrix > 0).argmax(0).tolist()


def test_lines_between_knots_by_hand():
    hyperparameter = Hyperparameter("learning_rate", 3, interpolation="linear")
    values = Buckets([hyperparameter]).at_steps(np.array([0.0, 4.0, 1.0]), 8)["learning_rate"]
    assert values.tolist() == [0, 1, 2, 3, 4, 3.25, 2.5, 1.75]
    # Before and after the horizon the ends stay.
    lower, upper, fraction = hyperparameter.shares(np.array([-3, 8, 20]), 8)
    assert (lower + fraction * (upper - lower)).tolist() == [0, 2, 2]


# ------------------------------------------------------------------------- start values, ranges
@pytest.mark.parametrize("initial", [0.25, np.float32(0.25), np.array(0.25), 1, True])
def test_one_start_value_serves_every_bucket(initial):
    values = Hyperparameter("learning_rate", 3, initial=initial).initial_values
    assert values.dtype == "float64"
    assert values.tolist() == [float(initial)] * 3


@pytest.mark.parametrize("container", [list, tuple, np.array, tf.constant])
def test_start_values_one_a_bucket(container):
    values = Hyperparameter("momentum", 3, initial=container([0.5, 0.25, 0.75])).initial_values
    assert values.tolist() == [0.5, 0.25, 0.75]


def test_start_values_are_kept_apart_from_the_callers_arrays():
    given_values = np.array([0.1, 0.2])
    hyperparameter = Hyperparameter("learning_rate", 2, initial=given_values)
    given_values[0] = 9.0
    hyperparameter.initial_values[1] = 9.0
    assert hyperparameter.initial_values.tolist() == [0.1, 0.2]


def test_defaults_are_one_bucket_that_starts_at_zero():
    assert attributes(Hyperparameter("learning_rate")) == {
        "name": "learning_rate",
        "num_buckets": 1,
        "step_size": 0.1,
        "min_value": 0.0,
        "max_value": np.inf,
        "scale": "linear",
        "interpolation": "constant",
        "initial_values": [0.0],
    }


# ------------------------------------------------------------------------------- where to search
@pytest.mark.parametrize(
    ("arguments", "scale", "low", "high"),
    [
        (("learning_rate", 7), "log", 1e-5, 10.0),
        (("momentum",), "complement", 0.0, 0.98),
        (("beta_2",), "complement", 0.5, 0.999),
        (("dense.kernel_regularizer.l2",), "log", 1e-7, 0.1),
        (("loss.label_smoothing",), "linear", 0.0, 0.5),
        (("model.temperature",), "log", 1e-4, 100.0),
        (("model.temperature", 1, 3.0), "log", 1e-4, 300.0),
        (("learning_rate", 1, 1e-5), "log", 1e-7, 10.0),
        (("learning_rate", 1, 0.1, 0.1, 0.01, 0.5), "log", 0.01, 0.5),
        (("learning_rate", 1, 0.0, 0.1, 0.0, 1e-7), "log", 1e-11, 1e-7),
        (("learning_rate", 1, None, 0.1, 20.0), "log", 20.0, 20000.0),
        (("learning_rate", 1, 1e7, 0.1, 1e6), "log", 1e6, 1e8),
        (("model.shift", 1, 0.0, 0.1, -2.0, 3.0), "linear", -2.0, 3.0),
        (("model.part", 1, 0.5, 0.1, None, None, "logit"), "logit", 1e-4, 1 - 1e-4),
        (("momentum", 1, 0.9, 0.1, None, None, "logit"), "logit", 1e-4, 0.98),
        (("beta_1", 1, 0.9, 0.1, None, None, "log"), "log", 0.98e-4, 0.98),
        (("loss.label_smoothing", 1, 0.1), "linear", 0.0, 0.5),
        (("epsilon",), "log", 1e-9, 0.1),
        (("clipnorm",), "log", 0.01, 100.0),
    ],
)
def test_where_values_are_searched(arguments, scale, low, high):
    hyperparameter = Hyperparameter(*arguments)
    found = hyperparameter.searched
    assert found[0] == scale
    np.testing.assert_allclose(hyperparameter.from_searched(np.array(found[1:])), [low, high])
    between = np.array([low + 0.4 * (high - low)])
    np.testing.assert_allclose(
        hyperparameter.from_searched(hyperparameter.to_searched(between)), between
    )


def test_without_a_start_value_it_is_zero_or_the_middle_of_what_is_searched():
    for arguments, expected in (
        ({}, 0.0),
        ({"min_value": 1e-3, "max_value": 1e-1}, 1e-2),
        ({"min_value": 20.0}, 200.0),
        ({"min_value": 1e6, "max_value": 1e12}, 1e7),
        ({"scale": "log"}, 1e-2),
        ({"name": "epsilon"}, 1e-5),
    ):
        start = Hyperparameter(**{"name": "learning_rate", **arguments}).initial_values
        np.testing.assert_allclose(start, expected)


def test_where_there_is_no_end_the_range_is_finite():
    for arguments in ({"min_value": -np.inf}, {"min_value": -1.0}, {"scale": "complement"}):
        _, low, high = Hyperparameter("model.number", **arguments).searched
        assert np.isfinite([low, high]).all() and low < high


def test_what_older_versions_saved_is_read_and_what_they_took_is_deprecated():
    config = {**Hyperparameter("momentum").get_config(), "smoothing_window": 0.5}
    assert "smoothing_window" not in Hyperparameter.from_config(config).get_config()
    with pytest.warns(DeprecationWarning, match="needs no `smoothing_window`"):
        Hyperparameter("momentum", smoothing_window=1.0)
    with pytest.warns(DeprecationWarning, match="needs no `smoothing_window`"):
        Hyperparameter("momentum", breadth=1.0)


@pytest.mark.parametrize("name", DECAYS)
def test_exponential_decays_stay_below_one_by_default(name):
    assert Hyperparameter(name).min_value == 0.0
    assert Hyperparameter(name).max_value == 0.999
    assert Hyperparameter(name, initial=0.999).initial_values.tolist() == [0.999]
    with pytest.raises(ValueError, match=r"initial.*0\.0 and 0\.999.*Received: initial=1"):
        Hyperparameter(name, initial=1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_other_values_have_no_upper_bound_by_default(name):
    assert Hyperparameter(name, initial=1e6).max_value == np.inf


def test_ranges_can_be_chosen_and_include_their_ends():
    hyperparameter = Hyperparameter(
        "momentum", 2, initial=[-0.5, 0.9999], min_value=-0.5, max_value=0.9999
    )
    assert (hyperparameter.min_value, hyperparameter.max_value) == (-0.5, 0.9999)


# --------------------------------------------------------------------------------------- config
@st.composite
def hyperparameters(draw):
    minimum = draw(st.none() | st.floats(-5, 0))
    maximum = draw(st.none() | st.floats(0.5, 10))
    start = st.floats(0.0 if minimum is None else minimum, 0.5)
    num_buckets = draw(st.integers(1, 9))
    several = st.lists(start, min_size=num_buckets, max_size=num_buckets)
    return Hyperparameter(
        draw(st.sampled_from(DECAYS + OTHERS)),
        num_buckets=num_buckets,
        initial=draw(start | several),
        step_size=draw(st.floats(1e-12, 1e3)),
        min_value=minimum,
        max_value=maximum,
    )


def assert_survives_configs(hyperparameter):
    expected = attributes(hyperparameter)
    config = hyperparameter.get_config()
    assert attributes(Hyperparameter.from_config(config)) == expected
    serialized = keras.saving.serialize_keras_object(hyperparameter)
    serialized = json.loads(json.dumps(serialized))
    assert attributes(keras.saving.deserialize_keras_object(serialized)) == expected


@given(hyperparameters())
def test_config_round_trip(hyperparameter):
    assert_survives_configs(hyperparameter)
    json.dumps(hyperparameter.get_config(), allow_nan=False)


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "momentum", "max_value": np.inf},
        {"name": "learning_rate", "max_value": np.inf},
        {"name": "weight_decay", "min_value": -np.inf, "initial": -1.0},
    ],
    ids=str,
)
def test_config_round_trip_of_infinite_bounds(arguments):
    assert_survives_configs(Hyperparameter(**arguments))


def test_repr_makes_the_same_object():
    hyperparameter = Hyperparameter("momentum", 2, initial=[0.1, 0.2], step_size=0.3, min_value=0.1)
    assert attributes(eval(repr(hyperparameter))) == attributes(hyperparameter)


# --------------------------------------------------------------------------------------- scales
@given(
    scale=st.sampled_from(["linear", "log", "logit"]),
    value=st.floats(1e-9, 0.99),
)
def test_coordinates_are_undone_and_derivatives_are_theirs(scale, value):
    hyperparameter = Hyperparameter("weight_decay", initial=value, scale=scale)
    values = np.array([value])
    coordinates = hyperparameter.coordinates(values)
    again = np.array(hyperparameter.values(coordinates))
    np.testing.assert_allclose(again, values, rtol=1e-12)
    ends = [np.array(hyperparameter.values(coordinates + h)) for h in (1e-5, -1e-5)]
    differences = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(hyperparameter.derivatives(values), differences, rtol=1e-6)


def test_scales_meet_at_their_definitions():
    log = Hyperparameter("epsilon", initial=1.0, scale="log")
    logit = Hyperparameter("momentum", initial=0.5, scale="logit")
    np.testing.assert_allclose(log.coordinates(np.array([1.0, np.e])), [0.0, 1.0], rtol=1e-15)
    np.testing.assert_allclose(logit.coordinates(np.array([0.5, 0.75])), [0.0, np.log(3.0)])


def test_range_of_a_logit_ends_at_one():
    assert Hyperparameter("a", initial=0.5, scale="logit").max_value == 1.0
    assert Hyperparameter("momentum", initial=0.5, scale="logit").max_value == 0.999


@pytest.mark.parametrize(
    "arguments",
    [
        {"scale": "log", "initial": 0.0},
        {"scale": "logit", "initial": 0.0},
        {"scale": "logit", "initial": 1.0},
        {"scale": "logit", "initial": 0.5, "max_value": 2.0},
        {"scale": "log", "initial": 0.5, "min_value": -1.0},
        {"scale": "log", "num_buckets": 2, "initial": [0.1, 0.0]},
    ],
    ids=str,
)
def test_what_a_scale_does_not_have_is_refused(arguments):
    with pytest.raises(ValueError, match=r"'a' on the scale '\w+' lie .*scale='linear'.*Received:"):
        Hyperparameter("a", **arguments)


@pytest.mark.parametrize(
    "name",
    [
        "loss.label_smoothing",
        "loss_weights.first_output",
        "model.temperature",
        "dense_1.kernel_regularizer.l2",
        "*.kernel_regularizer.l2",
        "conv-[12]?.epsilon",
    ],
)
def test_numbers_of_a_model_have_dotted_names(name):
    assert Hyperparameter(name).name == name
    assert_survives_configs(Hyperparameter(name))


# ------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("name", ""),
        ("name", "learning rate"),
        ("name", None),
        ("name", "dense."),
        ("name", "*"),
        ("name", "a..b"),
        ("scale", "cubic"),
        ("scale", None),
        ("name", 3),
        ("num_buckets", 0),
        ("num_buckets", -1),
        ("num_buckets", 2.5),
        ("num_buckets", True),
        ("num_buckets", "7"),
        ("num_buckets", "seven"),
        ("num_buckets", None),
        ("num_buckets", [3]),
        ("num_buckets", np.nan),
        ("num_buckets", np.inf),
        ("initial", -0.5),
        ("initial", np.nan),
        ("initial", np.inf),
        ("initial", [0.1, 0.2, 0.3]),
        ("initial", [[0.1, 0.2]]),
        ("initial", [0.1, np.nan]),
        ("initial", [0.1, -0.2]),
        ("initial", []),
        ("initial", "zero"),
        ("initial", "0.5"),
        ("interpolation", "cubic"),
        ("initial", ["a", "b"]),
        ("initial", [[0.1], [0.2, 0.3]]),
        ("step_size", 0),
        ("step_size", -0.1),
        ("step_size", np.nan),
        ("step_size", np.inf),
        ("step_size", None),
        ("step_size", "small"),
        ("step_size", [0.1, 0.2]),
        ("min_value", np.nan),
        ("min_value", "low"),
        ("min_value", np.inf),
        ("max_value", np.nan),
        ("max_value", "high"),
        ("max_value", -1.0),
        ("max_value", 0.0),
    ],
    ids=lambda value: repr(value),
)
def test_bad_input_is_named_with_what_was_received(argument, value):
    arguments = {"name": "learning_rate", "num_buckets": 2, argument: value}
    with pytest.raises(ValueError) as raised:
        Hyperparameter(**arguments)
    message = str(raised.value)
    assert "Received:" in message
    assert f"{argument}={value!r}" in message
    if argument != "name":
        assert "'learning_rate'" in message


def test_start_value_above_the_range():
    with pytest.raises(ValueError, match=r"`initial` of 'a' must lie between 0.0 and 0.5.*=0.6"):
        Hyperparameter("a", initial=0.6, max_value=0.5)
