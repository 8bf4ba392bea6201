"""Rounds of outer steps, with the mode made of NumPy and two workers that take turns.

`tests/distribute_test.py` has real processes.
"""

import concurrent.futures
import itertools
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.callbacks import Checkpoint
from keras_fds.differentiation import Forward, Replicas
from keras_fds.outer import BayesianOptimization, SignDescent
from keras_fds.search import arguments
from keras_fds.search.state import Search
from tests.distribute_problem import InRounds
from tests.numpy_mode import NumpyMode, arrays, make_model


class Worker(Replicas):
    """One of two workers, threads of which one runs at a time; sums are meetings of both."""

    def __init__(self, process, parts, turn, meeting):
        super().__init__()
        self.count = self.processes = 2
        self.process = self.first = process
        self.is_chief, self.is_one_process = process == 0, False
        self.parts, self.turn, self.meeting = parts, turn, meeting

    def sum_over_processes(self, array):
        self.parts[self.process] = np.array(array, "float64")
        self.turn.release()
        try:
            self.meeting.wait(60)
            total = self.parts[0] + self.parts[1]
            self.meeting.wait(60)
        finally:
            self.turn.acquire()
        return total


def search(callbacks=(), outer=None, parallel="outer_steps", **options):
    """`(model, history)` of a search."""
    x, y = arrays()
    keras.utils.set_random_seed(0)
    model = make_model(outer=outer)
    history = keras_fds.fit(
        model,
        x,
        y,
        batch_size=4,
        validation_split=0.2,
        differentiation=NumpyMode(),
        parallel=parallel,
        callbacks=list(callbacks),
        seed=1,
        verbose=0,
        **{"epochs": 5, "budget": 6, **options},
    )
    return model, history


@pytest.fixture
def by_two(monkeypatch):
    """A function that runs `search` in two workers; what each returned or raised."""
    here = threading.local()
    monkeypatch.setattr(Replicas, "of", lambda model: getattr(here, "worker", None) or Replicas())
    monkeypatch.setattr(arguments, "check_parallel", lambda *_: None)

    def run(callbacks=lambda process: (), **options):
        shared = {}, threading.Lock(), threading.Barrier(2)

        def work(process):
            _, turn, meeting = shared
            with turn:
                here.worker = Worker(process, *shared)
                try:
                    return search(callbacks(process), **options)
                except BaseException as error:
                    meeting.abort()
                    return error

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(work, (0, 1)))

    return run


def described(model, history):
    """All that a search has found."""
    found = model.optimizer.search
    return {
        "history": history.history,
        "records": [vars(each) for each in found.records],
        "observations": [vars(each) for each in found.observations],
        "best": vars(found.best),
        "weights": model.get_weights(),
        "values": model.optimizer.values,
        "position": vars(found.position),
    }


@pytest.fixture(scope="module")
def one_after_another():
    return described(*search(outer=InRounds(), parallel=None))


def borders(observed):
    """How many outer steps there are before each round."""
    found = [0]
    model, _ = observed
    search, rule = model.optimizer.search, BayesianOptimization()
    problem = keras_fds.outer.Problem(
        model.optimizer.buckets, search.first, 60, budget=6.0, cost=lambda _: 2.0, seed=search.seed
    )
    while found[-1] < len(search.observations):
        proposals = rule.propose_several(search.observations[: found[-1]], problem, 2)
        found.append(found[-1] + len(proposals))
    return found


def test_both_find_what_one_finds_in_such_rounds(by_two, one_after_another):
    found = by_two()
    assert len(one_after_another["records"]) > len(borders(found[0])) > 4
    for each in found:
        np.testing.assert_equal(described(*each), one_after_another)


def test_callbacks_see_every_outer_step_in_its_order_with_its_weights(by_two):
    class Spy(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.ends, self.steps = [], {}

        def on_epoch_begin(self, epoch, logs=None):
            self.steps[epoch] = self.params["steps"]

        def on_epoch_end(self, epoch, logs=None):
            record = self.model.optimizer.search.records[-1]
            assert self.steps[epoch] == self.params["steps"] == record.horizon
            assert record.logs == dict(sorted(logs.items()))
            self.ends.append((record.outer_step, epoch + 1, self.model.get_weights()[0].tolist()))

    spies = Spy(), Spy()
    (model, _), _ = by_two(lambda process: [spies[process]])
    assert spies[0].ends == spies[1].ends
    assert [end[:2] for end in spies[0].ends] == [(i + 1, i + 1) for i in range(len(spies[0].ends))]
    assert (
        spies[0].ends[model.optimizer.search.best.outer_step][2] == model.get_weights()[0].tolist()
    )


def test_what_is_saved_never_holds_half_a_round(by_two):
    class Save(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.saved = []

        def on_epoch_end(self, epoch, logs=None):
            search = Search.taken_out_of(self.model.optimizer.search.to_arrays())
            numbers = len(search.records), len(search.observations), search.position.outer_step
            assert len(set(numbers)) == 1
            self.saved.append(numbers[0])

    saves = Save(), Save()
    found = by_two(lambda process: [saves[process]])
    expected = borders(found[0])
    assert set(saves[0].saved) - {0} == set(expected) - {0}
    assert saves[0].saved == saves[1].saved


class Interrupt(keras.callbacks.Callback):
    """Raises at the end of an outer step, or within it."""

    def __init__(self, outer_step, within):
        super().__init__()
        self.outer_step, self.within, self.present = outer_step, within, None

    def on_epoch_begin(self, epoch, logs=None):
        self.present = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.within and self.present == self.outer_step:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        if not self.within and epoch == self.outer_step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("process", "outer_step", "within"),
    [(0, 2, True), (1, 3, True), (0, 2, False), (1, 2, False), (1, 6, False)],
)
def test_it_ends_the_same_wherever_it_was_interrupted(
    by_two, one_after_another, process, outer_step, within, tmp_path
):
    callbacks = [Checkpoint(tmp_path)], [Checkpoint(tmp_path)]
    callbacks[process].append(Interrupt(outer_step, within))
    ended = by_two(lambda process: callbacks[process])
    assert isinstance(ended[process], KeyboardInterrupt)
    for each in by_two(lambda process: [Checkpoint(tmp_path)]):
        np.testing.assert_equal(described(*each), one_after_another)


def test_one_worker_goes_on_where_two_have_ended(by_two, one_after_another, tmp_path):
    by_two(lambda process: [Checkpoint(tmp_path), Interrupt(4, False)])
    found = described(*search([Checkpoint(tmp_path)], parallel=None))
    for name in ("records", "observations"):
        np.testing.assert_equal(found[name][:4], one_after_another[name][:4])
    assert len(found["records"]) > 4
    assert found["records"][-1]["spent"] <= 6.0


def test_checkpoints_of_some_outer_steps_are_written_at_the_ends_of_rounds(by_two, tmp_path):
    found = by_two(lambda process: [Checkpoint(tmp_path, every=3)])
    done = borders(found[0])
    written = [after for before, after in itertools.pairwise(done) if before // 3 < after // 3]
    names = [f"outer_step_{number:06d}.npz" for number in written[-2:]]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_callback_that_stops_an_outer_step_leaves_its_round_out(by_two):
    class Stop(Interrupt):
        def on_train_batch_end(self, batch, logs=None):
            if self.present == self.outer_step:
                self.model.stop_training = True

    found = by_two(lambda process: [Stop(3, True)] if process else [])
    assert [len(model.optimizer.search.records) for model, _ in found] == [2, 2]
    both = [described(*each) for each in found]
    for each in both:
        del each["history"]  # Each has told what it had interrupted.
    np.testing.assert_equal(*both)


@pytest.mark.filterwarnings("ignore:Outer step 4")
def test_all_record_an_outer_step_that_breaks_down_in_one(by_two):
    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                self.model.set_weights([np.nan * each for each in self.model.get_weights()])

    found = by_two(lambda process: [Break()])
    for model, history in found:
        record = model.optimizer.search.records[3]
        assert (record.status, record.outcome) == ("broke_down", "rejected")
        assert np.isnan(history.history["val_loss"][3])
    np.testing.assert_equal(described(*found[0]), described(*found[1]))


# ------------------------------------------------------------------------------------- refusals
def check(parallel="outer_steps", strategy=None, devices=(None,), mode="auto", outer=None):
    if strategy is None:
        strategy = object.__new__(tf.distribute.MultiWorkerMirroredStrategy)
    optimizer = types.SimpleNamespace(outer=outer or BayesianOptimization())
    model = types.SimpleNamespace(distribute_strategy=strategy, optimizer=optimizer)
    replicas = types.SimpleNamespace(devices=devices, count=2 * len(devices))
    arguments.check_parallel(parallel, model, replicas, mode)


def test_several_workers_are_needed():
    with pytest.raises(ValueError, match="is for several workers.* under _DefaultDistribution"):
        search()
    with pytest.raises(ValueError, match="is for several workers"):
        check(strategy=tf.distribute.OneDeviceStrategy("CPU:0"))


def test_what_does_not_go_together_is_refused():
    check()
    with pytest.raises(ValueError, match="must be None or 'outer_steps'. Received: parallel='all'"):
        check("all")
    with pytest.raises(ValueError, match="one device each"):
        check(devices=("CPU:0", "CPU:1"))
    with pytest.raises(ValueError, match="cannot share tangents"):
        check(mode=Forward(parallel="tangents"))
    with pytest.raises(ValueError, match="has no `propose_several`"):
        check(outer=object())


def test_a_rule_that_goes_step_by_step_is_told():
    with pytest.warns(RuntimeWarning, match="SignDescent proposes one outer step at a time"):
        check(outer=SignDescent())
