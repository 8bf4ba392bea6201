"""The state of a search survives being written, to the last bit."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_fds.outer import Observation, Proposal
from keras_fds.search.state import Best, PartialOuterStep, Position, Record, Search

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
BY_NAME = st.dictionaries(st.sampled_from(["learning_rate", "momentum"]), st.lists(FLOATS))
COUNTS = st.lists(st.lists(st.integers(0, 100)), min_size=2, max_size=2)


def same(a, b):
    return json.dumps(a) == json.dumps(b)


def record(horizon=10, logs=None, values=None):
    return Record(
        outer_step=1,
        horizon=horizon,
        status="measured",
        outcome="best",
        logs=logs or {},
        values=values or {},
        hypergradients=None,
        val_loss_error=None,
        spent=1.0,
    )


@given(
    seed=st.integers(0, 2**63),
    records=st.lists(st.builds(record, logs=BY_NAME, values=BY_NAME), max_size=3),
    position=st.builds(Position, st.integers(0, 9), st.integers(0, 99), COUNTS, COUNTS),
    start=st.none() | st.lists(st.integers(0, 3).map(np.zeros), max_size=3),
    observations=st.lists(
        st.builds(
            Observation,
            st.integers(0, 3).map(np.ones),
            st.integers(1, 9),
            st.none() | FLOATS,
            hypergradients=st.none() | st.integers(0, 3).map(np.ones),
        ),
        max_size=3,
    ),
)
def test_what_is_written_is_read(seed, records, position, start, observations):
    search = Search(seed, "reverse", start=start)
    search.records, search.position, search.observations = records, position, observations
    entries = {"0": np.ones(2), **search.to_arrays()}
    read = Search.taken_out_of(entries)
    assert list(entries) == ["0"]
    assert (read.seed, read.mode, read.position) == (seed, "reverse", position)
    assert same(list(map(dataclasses.asdict, read.records)), list(map(dataclasses.asdict, records)))
    assert read.best is None and read.partial is None
    assert [w.tolist() for w in read.start or []] == [w.tolist() for w in start or []]
    np.testing.assert_equal(
        [vars(each) for each in read.observations], [vars(each) for each in observations]
    )


@given(loss=st.floats(allow_nan=False), values=st.lists(FLOATS, max_size=4))
def test_the_best_outer_step_is_read_as_written(loss, values):
    rng = np.random.default_rng(0)
    search, weights = Search(0, "forward"), [rng.normal(size=(2, 3)).astype("float32"), np.ones(())]
    search.best = Best(loss, 4, 10, np.array(values, "float64"), weights)
    best = Search.taken_out_of(search.to_arrays()).best
    assert (best.loss, best.outer_step, best.horizon) == (loss, 4, 10)
    np.testing.assert_array_equal(best.coordinates, values)
    for read, written in zip(best.weights, weights, strict=True):
        np.testing.assert_array_equal(read, written)
        assert read.dtype == written.dtype


def test_a_partial_outer_step_is_read_as_written():
    search = Search(0, "forward")
    state = [np.ones((2, 3), "float32"), np.array(5)]
    proposal = Proposal(np.array([0.1, 0.2]), 100, False)
    search.partial = PartialOuterStep(proposal, ["loss"], state)
    entries = search.to_arrays()
    read = Search.taken_out_of(entries).partial
    assert read.is_of(proposal) and read.metrics == ["loss"] and not entries
    assert not read.is_of(Proposal(np.array([0.1, 0.2]), 100, True))
    assert not read.is_of(Proposal(np.array([0.1, 0.3]), 100, False))
    for one, other in zip(read.state, state, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_a_position_at_the_start_of_an_outer_step_forgets_what_it_consumed():
    position = Position(2, 7, [[5, 5], [1]], [[5, 2], []])
    assert position.start_of_outer_step() == Position(2, 0, [[5, 5], [1]], [[], []])
    assert position.next_outer_step() == Position(3, 0, [[5, 5, 5, 2], [1]], [[], []])


def test_other_entries_hold_no_search():
    entries = {"0": np.ones(2)}
    assert Search.taken_out_of(entries) is None
    assert list(entries) == ["0"]


@pytest.mark.parametrize(("version", "age"), [(99, "a newer"), (5, "an older")])
def test_another_version_is_refused(version, age):
    entries = Search(0, "forward").to_arrays()
    other = json.loads(entries["search"].tobytes()) | {"version": version}
    entries["search"] = np.frombuffer(json.dumps(other).encode(), "uint8")
    with pytest.raises(ValueError, match=f"version {version}, of {age} keras_fds"):
        Search.taken_out_of(entries)


def test_the_randomness_of_an_outer_step_depends_on_seed_and_step_alone():
    drawn = {}
    for seed in (0, 1):
        for outer_step in (0, 1):
            generator, _, of_weights = Search(seed, "forward").randomness(outer_step)
            again, _, of_weights_again = Search(seed, "reverse").randomness(outer_step)
            numbers = generator.integers(2**60, size=3).tolist()
            assert again.integers(2**60, size=3).tolist() == numbers
            assert of_weights == of_weights_again and 0 <= of_weights < 2**32
            drawn[seed, outer_step] = (*numbers, of_weights)
    assert len(set(drawn.values())) == 4


@pytest.mark.parametrize(
    ("settings", "horizons", "message"),
    [
        ({"seed": 5, "batch_size": 8}, [3, 4, 4], None),
        ({"seed": None, "batch_size": 8}, [3, 4, 9], None),
        ({"seed": 6, "batch_size": 8}, [3, 4], "seed=5, now 6"),
        ({"seed": 5, "batch_size": 9}, [3, 4], "batch_size=8, now 9"),
        ({"seed": 5, "batch_size": 8}, [3, 5], r"horizons=\[3, 4\], now \[3, 5\]"),
    ],
)
def test_goes_on_with_its_own_settings_only(settings, horizons, message):
    begun = Search(5, "forward", settings={"seed": None, "batch_size": 8})
    begun.records = [record(3), record(4)]
    begun = Search.taken_out_of(begun.to_arrays())
    now = Search(7, "forward", horizons, settings=settings)
    if message is None:
        begun.check_same(now)
    else:
        with pytest.raises(ValueError, match=f"other settings.*{message}"):
            begun.check_same(now)


def test_of_settings_that_differ_only_what_differs_is_told():
    def searched(rate, norm):
        hyperparameters = [{"name": "a", "num_buckets": rate}, {"name": "b"}]
        optimizer = {"hyperparameters": hyperparameters, "clipnorm": norm}
        return Search(0, "forward", settings={"hyper_optimizer": optimizer, "seed": None})

    searched(3, 1.0).check_same(searched(3, 1.0))
    with pytest.raises(ValueError) as raised:
        searched(3, 1.0).check_same(searched(4, None))
    assert str(raised.value).endswith(
        "It began with hyper_optimizer.clipnorm=1.0, now None; "
        "hyper_optimizer.hyperparameters[0].num_buckets=3, now 4"
    )
