"""The state of a search survives being written, to the last bit."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_fds._search import Search, Within

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
BY_NAME = st.dictionaries(st.sampled_from(["learning_rate", "momentum"]), st.lists(FLOATS))


def same(a, b):
    return json.dumps(a) == json.dumps(b)


@given(
    seed=st.integers(0, 2**63),
    records=st.lists(st.fixed_dictionaries({"logs": BY_NAME, "values": BY_NAME}), max_size=3),
    passes=st.lists(st.lists(st.integers(0, 100)), min_size=2, max_size=2),
    start=st.none() | st.lists(st.integers(0, 3).map(np.zeros), max_size=3),
)
def test_what_is_written_is_read(seed, records, passes, start):
    search = Search(seed, "adjoint", start)
    search.records, search.passes = records, passes
    entries = {"0": np.ones(2), **search.to_arrays()}
    read = Search.taken_out_of(entries)
    assert list(entries) == ["0"]
    assert (read.seed, read.mode, read.passes) == (seed, "adjoint", passes)
    assert same(read.records, records)
    assert read.best == {"loss": math.inf}
    assert [w.tolist() for w in read.start or []] == [w.tolist() for w in start or []]


@given(loss=st.floats(allow_nan=False), values=st.lists(FLOATS, max_size=4))
def test_the_best_outer_step_is_read_as_written(loss, values):
    rng = np.random.default_rng(0)
    search, weights = Search(0, "forward"), [rng.normal(size=(2, 3)).astype("float32"), np.ones(())]
    search.best = {"loss": loss, "outer_step": 4, "horizon": 10, "weights": weights}
    search.best["values"] = np.array(values, "float64")
    best = Search.taken_out_of(search.to_arrays()).best
    assert (best["loss"], best["outer_step"], best["horizon"]) == (loss, 4, 10)
    np.testing.assert_array_equal(best["values"], values)
    for read, written in zip(best["weights"], weights, strict=True):
        np.testing.assert_array_equal(read, written)
        assert read.dtype == written.dtype


def test_how_far_an_outer_step_has_come_is_read_as_written():
    search = Search(0, "forward")
    assert Search.taken_out_of(search.to_arrays()).within is None
    state = [np.ones((2, 3), "float32"), np.array(5)]
    search.within = Within(4, 20, 100, ["loss"], state)
    entries = search.to_arrays()
    read = Search.taken_out_of(entries).within
    assert read[:4] == search.within[:4] and not entries
    for one, other in zip(read.state, state, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


def test_version_1_counted_passes():
    search = Search(0, "forward")
    search.passes = [2, 1]
    assert Search.taken_out_of(search.to_arrays()).passes == [[1, 1], [1]]


@pytest.mark.parametrize("resplit", [True, False])
def test_before_version_3_what_was_held_out_was_drawn_at_random(resplit):
    entries = Search(0, "forward", settings={"validation_split": 0.2}).to_arrays()
    old = json.loads(entries["search"].tobytes()) | {"version": 2, "resplit": resplit}
    del old["resample"]
    entries["search"] = np.frombuffer(json.dumps(old).encode(), "uint8")
    search = Search.taken_out_of(entries)
    assert search.resample == resplit
    expected = "outer_step" if resplit else "once"
    assert search.settings["resample_validation"] == expected
    now = Search(0, "forward", settings={"validation_split": 0.2, "resample_validation": None})
    with pytest.raises(ValueError, match=f"resample_validation='{expected}', now None"):
        search.check_same(now, [])


def test_other_entries_hold_no_search():
    entries = {"0": np.ones(2)}
    assert Search.taken_out_of(entries) is None
    assert list(entries) == ["0"]


def test_a_newer_version_is_refused():
    entries = Search(0, "forward").to_arrays()
    newer = json.loads(entries["search"].tobytes()) | {"version": 99}
    entries["search"] = np.frombuffer(json.dumps(newer).encode(), "uint8")
    with pytest.raises(ValueError, match="version 99.*up to 3. Install a newer keras_fds."):
        Search.taken_out_of(entries)


def test_the_randomness_of_an_outer_step_depends_on_seed_and_step_alone():
    drawn = {}
    for seed in (0, 1):
        for outer_step in (0, 1):
            generator, _, of_weights = Search(seed, "forward").randomness(outer_step)
            again, _, of_weights_again = Search(seed, "adjoint").randomness(outer_step)
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
    begun.records = [{"horizon": 3}, {"horizon": 4}]
    begun = Search.taken_out_of(begun.to_arrays())
    now = Search(7, "forward", settings=settings)
    if message is None:
        begun.check_same(now, horizons)
    else:
        with pytest.raises(ValueError, match=f"other settings.*{message}"):
            begun.check_same(now, horizons)
