"""All modes fulfil one contract, and keep what they compiled."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data import ArrayBatches, as_arrays
from keras_fds.differentiation import Forward, Reverse
from tests import numpy_mode

BATCH, HORIZON = 10, 5
MODES = {
    "forward": Forward,
    "forward in chunks": lambda: Forward(tangent_chunk_size=2),
    "reverse": Reverse,
    "reverse from checkpoints": lambda: Reverse(memory=1),
    "numpy": numpy_mode.NumpyMode,
}
LEARNED = {"learning_rate": [0.1, 0.2], "momentum": [0.4]}


@pytest.fixture(params=MODES)
def problem(request, float64):
    """`(bound mode, train, validation, start)` of the linear problem, in float64."""
    model = numpy_mode.make_model()
    x, y = numpy_mode.arrays()
    data = as_arrays(x[:50], y[:50], None)
    train = ArrayBatches(data, BATCH)
    validation = ArrayBatches(as_arrays(x[50:], y[50:], None), 4)
    mode = MODES[request.param]().bind(model, train.spec)
    start = np.array([[0.3], [0.1], [-0.2]])
    return model, mode, train, validation, start


def measured(problem, coordinates):
    """`(loss, error, hypergradients)` of a run from the same start, by the values."""
    model, mode, train, validation, start = problem
    model.trainable_variables[0].assign(start)
    model.optimizer.coordinates = coordinates
    mode.reset(HORIZON)
    source = train.start()
    assert mode.run(source, 0, 0, 2) == (2, True)
    assert mode.run(source, 2, 2, 3) == (3, True)
    loss, error = mode.validate(validation.start(), validation.num_batches)
    return loss, error, mode.hypergradients()


def test_hypergradients_are_the_derivatives_of_the_validation_loss(problem):
    mode = problem[1]
    coordinates = mode.buckets.join(LEARNED)
    loss, error, found = measured(problem, coordinates)
    assert isinstance(loss, float) and error > 0
    for k, step in enumerate(np.eye(len(coordinates)) * 1e-5):
        ends = [measured(problem, coordinates + sign * step)[0] for sign in (1, -1)]
        assert found[k] == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


def test_the_contract(problem):
    model, mode, train, *_ = problem
    measured(problem, mode.buckets.join(LEARNED))
    assert isinstance(mode.name, str) and mode.horizon == HORIZON
    assert mode.supports(train) == ""
    assert mode.cost(HORIZON) > 1
    assert np.shape(mode.work(HORIZON)) == (HORIZON,)
    assert all(size > 0 for _, size in mode.memory(HORIZON))
    assert mode.protected_variables[0] is model.trainable_variables[0]
    assert [id(v) for v in mode.trained_variables] == [id(v) for v in model.trainable_variables]
    assert list(mode.outside_variables) == []
    assert isinstance(mode.break_down_reason, str)
    mode.check_trainable()
    mode.release()
    again = type(mode).from_config(mode.get_config())
    assert again.get_config() == mode.get_config()


def test_hypergradients_of_single_steps_add_up(problem):
    mode = problem[1]
    if not mode.goes_back:
        measured(problem, mode.buckets.join(LEARNED))
        with pytest.raises(ValueError, match="differentiation='reverse'"):
            mode.per_step()
        return
    _, _, found = measured(problem, mode.buckets.join(LEARNED))
    np.testing.assert_allclose(mode.buckets.sums(mode.per_step()), found, rtol=1e-12)


def test_a_run_goes_on_from_its_checkpoint_variables(problem):
    model, mode, train, validation, start = problem
    coordinates = mode.buckets.join(LEARNED)
    expected = measured(problem, coordinates)
    if mode.checkpoint_variables is None:
        return
    model.trainable_variables[0].assign(start)
    mode.reset(HORIZON)
    mode.run(train.start(), 0, 0, 3)
    variables = [*model.variables, *model.optimizer.variables, *mode.checkpoint_variables]
    saved = [variable.numpy() for variable in variables]
    measured(problem, coordinates)  # Something else comes between.
    mode.reset(HORIZON)
    for variable, value in zip(variables, saved):
        variable.assign(value)
    mode.run(train.start(), 3, 3, 2)
    loss, _ = mode.validate(validation.start(), validation.num_batches)
    assert loss == expected[0]
    np.testing.assert_array_equal(mode.hypergradients(), expected[2])


# --------------------------------------------------------------------------- what is compiled
class Counting(keras.layers.Layer):
    """Counts how often it is traced."""

    traces = 0

    def call(self, x):
        Counting.traces += not tf.executing_eagerly()
        return x


def counting_model():
    model = keras.Sequential([keras.Input((3,)), Counting(), keras.layers.Dense(1)])
    rate = keras_fds.Hyperparameter("learning_rate", 2, 0.1)
    model.compile(keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), [rate]), loss="mse")
    return model


def datasets():
    x, y = numpy_mode.arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    return data.take(4), data.skip(4)


def fit(model):
    x, y = numpy_mode.arrays()
    keras_fds.fit(
        model,
        x,
        y,
        batch_size=BATCH,
        validation_split=0.2,
        outer_steps=2,
        initial_weights="same",
        verbose=0,
    )


CALLS = {
    "fit": fit,
    "hypergradients": lambda model: keras_fds.hypergradients(model, *datasets()),
    "in reverse mode": lambda model: keras_fds.hypergradients(
        model, *datasets(), differentiation="reverse"
    ),
    "in float64": lambda model: keras_fds.hypergradients(model, *datasets(), dtype="float64"),
    "check": lambda model: keras_fds.check_hypergradients(model, *datasets(), verbose=False),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_second_call_traces_nothing(call):
    model = counting_model()
    CALLS[call](model)
    before = Counting.traces
    CALLS[call](model)
    assert Counting.traces == before
    model.compile(model.optimizer, loss="mae")  # Another loss, so it must be traced again.
    CALLS[call](model)
    assert Counting.traces > before


def test_a_deleted_model_is_collected():
    model = counting_model()
    for call in CALLS.values():
        call(model)
    seen = weakref.ref(model)
    del model
    keras.utils.clear_session(free_memory=False)
    gc.collect()
    assert seen() is None


@pytest.mark.sweep()
def test_many_calls_leave_memory_flat():
    psutil = pytest.importorskip("psutil")
    model, process = counting_model(), psutil.Process()

    def used_after(calls):
        for _ in range(calls):
            CALLS["hypergradients"](model)
        gc.collect()
        return process.memory_info().rss

    used_after(20)
    first = used_after(20)
    assert used_after(100) - first < 8 * 2**20
