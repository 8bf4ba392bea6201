"""All modes fulfil one contract, and keep what they compiled."""

import gc
import pathlib
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data import ArrayBatches, as_arrays
from keras_fds.differentiation import Forward, Reverse
from tests import numpy_mode

ROOT = pathlib.Path(__file__).parents[2]
BATCH = 10
HORIZON = 5
MODES = {
    "forward": Forward,
    "forward in chunks": lambda: Forward(tangent_chunk_size=2),
    "reverse": Reverse,
    "reverse from checkpoints": lambda: Reverse(memory=1),
    "numpy": numpy_mode.NumpyMode,
}
LEARNED = {"learning_rate": [0.1, 0.2], "momentum": [0.4]}


@pytest.fixture(params=["constant", "linear"])
def interpolation(request):
    return request.param


@pytest.fixture(params=MODES)
def problem(request, interpolation, float64):
    """`(bound mode, train, validation, start)` of the linear problem, in float64."""
    model = numpy_mode.make_model(interpolation=interpolation)
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


class Scaled(keras.Model):
    def __init__(self):
        super().__init__()
        self.normalization = keras.layers.Normalization()
        self.dense = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.01))
        self.scale = 1.0

    def call(self, x):
        return self.scale * self.dense(self.normalization(x))


def stronger(model):
    model.dense.kernel_regularizer.l2 = 1.0


def adapted(model):
    model.normalization.adapt(3.0 + 2.0 * numpy_mode.arrays()[0])


CHANGES = {
    "a regularizer": stronger,
    "adapted statistics": adapted,
    "the optimizer": lambda model: setattr(model.optimizer.optimizer, "clipnorm", 1e-3),
    "the model": lambda model: setattr(model, "scale", 3.0),
    "the loss": lambda model: model.loss._fn_kwargs.update(delta=0.01),
}


def functional_model():
    """A model of the same kind that Keras can rebuild in float64."""
    dense = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.01))
    model = keras.Sequential([keras.Input((3,)), dense])
    model.dense = dense
    return model


def compiled_with_huber(model):
    rate = keras_fds.Hyperparameter("learning_rate", 2, 0.1)
    stock = keras_fds.optimizers.SGD(clipnorm=10.0)
    model.compile(keras_fds.HyperOptimizer(stock, [rate]), loss=keras.losses.Huber())
    return model


def check_that_a_change_is_seen(model, change, dtype):
    def hypergradients():
        found = keras_fds.hypergradients(model, *datasets(), dtype=dtype)
        return found["learning_rate"]

    before = hypergradients()
    CHANGES[change](model)
    after = hypergradients()
    vars(model).pop("_kept_by_keras_fds")
    np.testing.assert_allclose(after, hypergradients(), rtol=1e-6)
    assert np.abs(after - before).max() > 1e-4


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_two_calls_is_seen(change):
    x = numpy_mode.arrays()[0]
    model = Scaled()
    model.normalization.adapt(x)
    compiled_with_huber(model)
    model(x[:2])
    check_that_a_change_is_seen(model, change, None)


@pytest.mark.parametrize("change", ["a regularizer", "the optimizer", "the loss"])
def test_so_is_it_in_float64(change):
    model = compiled_with_huber(functional_model())
    check_that_a_change_is_seen(model, change, "float64")


def test_hypergradients_asked_for_within_a_search_do_not_disturb_it():
    class Ask(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                x, y = numpy_mode.arrays()
                data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
                keras_fds.hypergradients(self.model, data, data)

    found = []
    for callbacks in (
        [keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)],
        [Ask()],
    ):
        keras.utils.set_random_seed(1)
        model = counting_model()
        x, y = numpy_mode.arrays()
        keras_fds.fit(
            model,
            x,
            y,
            batch_size=BATCH,
            validation_split=0.2,
            outer_steps=1,
            initial_weights="same",
            shuffle=False,
            callbacks=callbacks,
            differentiation="forward",
            verbose=0,
        )
        found.append(model.optimizer.hypergradients["learning_rate"])
    np.testing.assert_array_equal(found[0], found[1])


def test_a_mode_of_ones_own_is_used():
    class Mine(Forward):
        def hypergradients(self):
            return 1000 * super().hypergradients()

    model = counting_model()
    stock = keras_fds.hypergradients(model, *datasets())["learning_rate"]
    mine = keras_fds.hypergradients(model, *datasets(), differentiation=Mine())["learning_rate"]
    np.testing.assert_allclose(mine, 1000 * stock, rtol=1e-6)


def test_a_deleted_model_is_collected():
    """In a process of its own: here the graphs of all other tests would be collected, too."""
    program = f"from {__name__} import use_and_delete_a_model as f; f()"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300, cwd=ROOT)


def use_and_delete_a_model():
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
