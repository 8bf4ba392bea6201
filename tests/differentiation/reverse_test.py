"""Adjoint mode gives the hypergradients of forward mode, from kept states or from checkpoints."""

import weakref

import keras
import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.data.sources import size_in_bytes
from keras_fds.differentiation import checkpoints
from keras_fds.differentiation.forward import Forward
from keras_fds.differentiation.reverse import Reverse
from tests.differentiation import forward_test, reference

pytestmark = pytest.mark.usefixtures("float64")
HORIZON = forward_test.HORIZON
ALL, CHECKPOINTS = 2**30, 1


def backward(model, train, validation, memory, training=False, counts=(1, 3, 1)):
    reverse = Reverse(memory).bind(model, train.spec)
    reverse.reset(HORIZON)
    if memory == CHECKPOINTS:
        reverse.plan = checkpoints.plan(HORIZON, 5)
        reverse.stops = [0, *reverse.plan.kept_on_the_way()]
    source, done = train.start(), 0
    for count in counts:
        steps, finite = reverse.run(source, done, done, count)
        assert (steps, finite) == (count, True)
        done += steps
    loss, hypergradients = reference.measured(
        reverse, validation.start(), validation.num_batches, training
    )
    return reverse, loss, hypergradients


@pytest.mark.sweep("paper_sgd-True")
@pytest.mark.parametrize(("kind", "training"), [("paper_sgd", True), ("adamw", False)])
def test_equals_forward_mode(kind, training):
    unroll, restart, run = forward_test.compiled_unroll(kind, clipvalue=0.02)
    forward_loss, forward = run(training=training)
    after = [variable.numpy() for variable in unroll.step.model.model.variables]
    train, validation = forward_test.data()
    for memory in (ALL, CHECKPOINTS):
        restart()
        model = unroll.step.model.model
        reverse, loss, hypergradients = backward(model, train, validation, memory, training)
        assert reverse.keeps_all == (memory == ALL)
        assert loss == pytest.approx(forward_loss, rel=1e-12)
        assert forward_test.relative_error(hypergradients, forward) <= 1e-8
        for variable, expected in zip(model.variables, after):
            np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-12)


def scalar_model():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(4, "tanh", kernel_regularizer="l2", name="hidden"),
            keras.layers.Dense(3),
        ]
    )
    learned = {
        "learning_rate": 0.1,
        "hidden.kernel_regularizer.l2": 0.05,
        "loss.label_smoothing": 0.1,
        "hidden.learning_rate_multiplier": 0.8,
    }
    model.compile(
        keras_fds.HyperOptimizer(
            keras.optimizers.Adam(epsilon=1e-2),
            [keras_fds.Hyperparameter(n, 2, v, scale="log") for n, v in learned.items()],
        ),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    return model


def digits_network():
    """`trainers.networks.digits_cnn` with dropout and regularizers."""
    layers = [keras.Input((8, 8, 1))]
    for number, filters, strides in ((1, 16, 1), (2, 32, 2)):
        layers += [
            keras.layers.Conv2D(
                filters,
                3,
                strides,
                "same",
                use_bias=False,
                kernel_regularizer=keras.regularizers.L2(0.01),
                name=f"convolution_{number}",
            ),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    dense = keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.01), name="dense")
    return keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dropout(0.3), dense])


LOSSES = {
    "label_smoothing": keras.losses.CategoricalCrossentropy,
    "label_smoothing gamma alpha": keras.losses.CategoricalFocalCrossentropy,
    "label_smoothing binary": keras.losses.BinaryCrossentropy,
}


@pytest.mark.sweep()
@pytest.mark.parametrize("numbers", LOSSES)
def test_equals_forward_mode_for_numbers_of_loss_and_layers_of_the_digits_network(numbers):
    model, loss = digits_network(), LOSSES[numbers](from_logits=True, label_smoothing=0.1)
    learned = {
        "learning_rate": 0.3,
        "momentum": 0.8,
        "weight_decay": 0.02,
        "dense.kernel_regularizer.l2": 0.01,
        "convolution_*.kernel_regularizer.l2": 0.01,
        "convolution_1.learning_rate_multiplier": 0.7,
        "dense.learning_rate_multiplier": 1.5,
    } | {f"loss.{n}": getattr(loss, n) for n in numbers.split() if n != "binary"}
    model.compile(
        keras_fds.HyperOptimizer(
            keras_fds.optimizers.SGD(clipvalue=0.02),
            [keras_fds.Hyperparameter(name, 2, value) for name, value in learned.items()],
        ),
        loss=loss,
    )
    digits = sklearn.datasets.load_digits()
    x, y = digits.images[:150, ..., None] / 16.0, np.eye(10)[digits.target[:150]]
    train = ArrayBatches(as_arrays(x, y, None), 20, np.arange(20 * HORIZON))
    validation = train.subset(np.arange(20 * HORIZON, 150))
    unroll = Forward().bind(model, train.spec)
    start = [variable.numpy() for variable in model.variables]
    unroll.reset(HORIZON)
    unroll.run(train.start(), 0, 0, HORIZON)
    expected = model.optimizer.buckets.split(reference.measured(unroll, validation.start(), 3)[1])
    for memory in (ALL, CHECKPOINTS):
        for variable, value in zip(model.variables, start):
            variable.assign(value)
        found = model.optimizer.buckets.split(backward(model, train, validation, memory)[2])
        for name, values in expected.items():
            assert np.abs(values).min() > 0, name
            assert forward_test.relative_error(found[name], values) <= 1e-8, name


def datasets(num_train=31):
    (x, y, _), rng = forward_test.data()[0].data, np.random.default_rng(4)
    dataset = tf.data.Dataset.from_tensor_slices((x, tf.one_hot(y, 3, dtype="float64")))
    train = dataset.take(num_train).shuffle(50, seed=int(rng.integers(99)))
    return train.batch(5), dataset.skip(num_train).batch(8)


def test_batches_of_a_dataset_are_replayed_even_when_it_shuffles_anew():
    model, (train, validation) = scalar_model(), datasets()
    batches = list(train.as_numpy_iterator())
    fixed = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=train.element_spec
    ).apply(tf.data.experimental.assert_cardinality(len(batches)))
    before = model.get_weights()
    forward = keras_fds.hypergradients(model, fixed, validation)
    reverse = keras_fds.hypergradients(model, fixed, validation, differentiation="reverse")
    for name, expected in forward.items():
        np.testing.assert_allclose(reverse[name], expected, rtol=1e-8, atol=1e-12)
    assert len(batches) == 7
    assert len(batches[-1][0]) == 1
    per_step = keras_fds.hypergradients(model, fixed, validation, per_step=True)
    for hyperparameter in model.optimizer.hyperparameters:
        name, lengths = hyperparameter.name, hyperparameter.bucket_lengths(7)
        means = np.add.reduceat(per_step[name], [0, lengths[0]]) / lengths
        np.testing.assert_allclose(means, forward[name], rtol=1e-8, atol=1e-12)
    for variable, expected in zip(model.get_weights(), before):
        np.testing.assert_array_equal(variable, expected)
    shuffled = keras_fds.hypergradients(model, train, validation, differentiation="reverse")
    assert all(np.isfinite(values).all() for values in shuffled.values())


@pytest.mark.sweep()
def test_older_names_of_reverse_mode_still_work():
    model = scalar_model()
    with pytest.warns(DeprecationWarning, match="is now `reverse_memory`"):
        older = keras_fds.hypergradients(
            model, *datasets(), differentiation="adjoint", adjoint_memory=2**20
        )
    newer = keras_fds.hypergradients(
        model, *datasets(), differentiation="reverse", reverse_memory=2**20
    )
    for name, expected in newer.items():
        np.testing.assert_array_equal(older[name], expected)


def test_searches_are_the_same_in_either_mode(capsys):
    x, y, _ = forward_test.data()[0].data
    losses = {}
    for differentiation in ("forward", "reverse", "auto"):
        keras.utils.set_random_seed(1)
        history = keras_fds.fit(
            scalar_model(),
            x,
            tf.one_hot(y, 3),
            batch_size=8,
            outer_steps=2,
            validation_split=0.2,
            differentiation=differentiation,
            verbose=2,
        )
        losses[differentiation] = history.history["val_loss"]
        why = "plain training steps" if differentiation == "auto" else "as asked for"
        assert why in capsys.readouterr().out
    assert losses["reverse"] == pytest.approx(losses["forward"], rel=1e-6)
    assert losses["auto"] == pytest.approx(losses["forward"], rel=1e-6)


# ----------------------------------------------------------------------- what can be kept, refused
def test_short_calls_share_checkpoints():
    unroll, restart, _ = forward_test.compiled_unroll("paper_sgd")
    restart()
    model = unroll.step.model.model
    train, validation = forward_test.data()
    reverse, *_ = backward(model, train, validation, CHECKPOINTS, counts=(1,) * HORIZON)
    assert reverse.stops == [0, 2, 4] and len(reverse.pieces) == HORIZON
    assert all(not piece.states for piece in reverse.pieces)


def test_checkpoints_are_about_twice_the_root_of_the_horizon():
    model = scalar_model()
    spec = forward_test.data()[0].spec
    spec = (spec[0], tf.TensorSpec([None, 3], "float64"), None)
    size = size_in_bytes(Reverse().bind(model, spec).step.variables)
    reverse = Reverse(1000 * size).bind(model, spec)
    assert reverse.states_kept(1000) == (1000, None)
    assert reverse.states_kept(10000)[0] == 200
    batches = forward_test.data()[0]
    reverse.check_memory(batches, 10000)
    tight = Reverse(10 * size).bind(model, spec)
    with pytest.raises(ValueError, match="14 copies of the state"):
        tight.check_memory(batches, 100000)


@pytest.fixture(scope="module")
def long_run():
    """A reverse mode over thirty steps, its batches, and a function that restarts it."""
    keras.backend.set_floatx("float64")
    rng = np.random.default_rng(0)
    arrays = as_arrays(rng.normal(size=(64, 3)), rng.normal(size=(64, 1)), None)
    train = ArrayBatches(arrays, 2, np.arange(60))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    learned = keras_fds.Hyperparameter("learning_rate", 2, 0.1)
    model.compile(
        keras_fds.HyperOptimizer(keras.optimizers.SGD(momentum=0.5), [learned]), loss="mse"
    )
    reverse = Reverse().bind(model, train.spec)
    start = model.get_weights()

    def run(horizon, plan=None):
        model.set_weights(start)
        reverse.reset(horizon)
        if plan is not None:
            reverse.plan, reverse.stops = plan, [0, *plan.kept_on_the_way()]
        half = horizon // 2
        reverse.run(train.start(), 0, 0, half)
        reverse.run(train.start(), half, half, horizon - half)
        return reference.measured(reverse, train.subset(np.arange(60, 64)).start(), 2)[1]

    yield reverse, run
    keras.backend.set_floatx("float32")


@pytest.mark.parametrize("horizon", [2, 5, 12, 30])
@pytest.mark.parametrize("states", [3, 4, 6, 9])
def test_any_number_of_states_gives_the_same_hypergradients(long_run, monkeypatch, horizon, states):
    reverse, run = long_run
    expected, plan = run(horizon), checkpoints.plan(horizon, states)
    kept, held, state, again = [], [], reverse._state, reverse._run_again

    def keep_state():
        found = state()
        kept.append(weakref.ref(found[0]))
        return found

    def run_again(*arguments):
        count, keeps_all = int(arguments[3]), arguments[5]
        alive = sum(reference() is not None for reference in kept)
        held.append(alive + (count if keeps_all else 0))
        return again(*arguments)

    monkeypatch.setattr(reverse, "_state", keep_state)
    monkeypatch.setattr(reverse, "_run_again", run_again)
    np.testing.assert_allclose(run(horizon, plan), expected, rtol=1e-12)
    assert max(held) <= max(plan.states, 3)
    reverse.hypergradients()  # As found; after another validation it would need the run again.
    reverse.validation_gradients = list(reverse.validation_gradients)
    with pytest.raises(RuntimeError, match="used up"):
        reverse.hypergradients()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"differentiation": "backward"}, "'auto', 'forward', 'reverse'"),
        ({"reverse_memory": 0}, "`reverse_memory` must be a number above 0"),
        (
            {"differentiation": "reverse", "reverse_memory": 2000},
            r"Allow it more \(`reverse_memory`",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_fds.hypergradients(scalar_model(), *datasets(), **arguments)


def test_clipped_tangents_need_forward_mode():
    model = scalar_model()
    model.optimizer.tangent_clipvalue = 1.0  # As an older program passes it.
    with pytest.raises(ValueError, match="`tangent_clipvalue`.*differentiation='forward'"):
        keras_fds.hypergradients(model, *datasets(), differentiation="reverse")
    keras_fds.hypergradients(model, *datasets(), differentiation="auto")
