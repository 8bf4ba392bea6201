"""Two devices share the work of a step, and find what one device finds."""

import contextlib
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.differentiation import Forward
from keras_fds.differentiation.replicas import Replicas, Rows
from keras_fds.differentiation.tangents import Tangents
from tests import small_problem

L = keras.layers
DEVICES = ["CPU:0", "CPU:1"]


def two_devices():
    return tf.distribute.MirroredStrategy(DEVICES)


def made(layers, strategy=None, loss=None, optimizer=keras_fds.optimizers.SGD, dtype=None):
    """A model of these layers, built in the scope of a strategy."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,), dtype=dtype), *layers(), L.Dense(3)])
        optimizer = keras_fds.HyperOptimizer(
            optimizer(),
            [
                keras_fds.Hyperparameter("learning_rate", 2, 0.1),
                keras_fds.Hyperparameter("weight_decay", 1, 1e-2),
            ],
        )
        if loss is None:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss=loss, metrics=["accuracy"])
    return model


def batches(inputs=None, num_examples=13, shape=()):
    """Batches of four and a last one of one, which one of two replicas has no row of."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_examples, 4)) if inputs is None else inputs(rng, num_examples)
    y = rng.integers(0, 3, (num_examples, *shape))
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def hypergradients(model, mode, data=None):
    data = batches() if data is None else data
    return keras_fds.hypergradients(model, data, data, differentiation=mode)


def assert_close(found, expected, tolerance=1e-12):
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance)


# -------------------------------------------------------------------------- what they compute
def words(rng, number):
    """Words of which many come twice in a batch."""
    return rng.integers(0, 5, (number, 4))


@pytest.mark.parametrize(
    ("mode", "reduction"),
    [
        ("forward", "sum_over_batch_size"),
        ("reverse", "sum_over_batch_size"),
        ("forward", "sum"),
        ("reverse", "none"),
    ],
)
def test_hypergradients_are_those_of_one_device(float64, mode, reduction):
    penalty = None if reduction == "none" else "l2"  # Keras cannot add it to a vector.

    def layers():
        return [L.Embedding(5, 2), L.Flatten(), L.Dense(4, "tanh", kernel_regularizer=penalty)]

    def found(strategy):
        model = made(
            layers,
            strategy,
            loss=keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction),
            optimizer=keras.optimizers.Adagrad,
            dtype="int32",
        )
        return hypergradients(model, mode, batches(words))

    assert_close(found(two_devices()), found(None))


def test_a_search_is_that_of_one_device_and_leaves_the_same_on_all(float64):
    x, y = small_problem.arrays()

    def search(strategy):
        model = made(lambda: [L.Dense(4, "tanh")], strategy)
        history = keras_fds.fit(
            model,
            x,
            y,
            batch_size=25,
            validation_split=0.2,
            outer_steps=2,
            differentiation="reverse",
            seed=0,
            verbose=0,
        )
        return model, history.history

    (model, history), (expected, expected_history) = search(two_devices()), search(None)
    assert_close(history, expected_history)
    assert_close(model.optimizer.values, expected.optimizer.values)
    for weight, value in zip(model.weights, expected.get_weights()):
        for copy in weight.value.values:
            np.testing.assert_allclose(copy.numpy(), value, rtol=0, atol=1e-12)
    told = float(model.get_metrics_result()["loss"])
    assert told == pytest.approx(history["val_loss"][-1], abs=1e-12)
    # Stock Keras goes on with the model.
    found = model.evaluate(x, y, batch_size=20, verbose=0, return_dict=True)
    told = expected.evaluate(x, y, batch_size=20, verbose=0, return_dict=True)
    assert found == pytest.approx(told, abs=1e-12)


def test_random_layers_draw_the_same_again_in_both_modes(float64):
    def found(mode, strategy):
        return hypergradients(made(lambda: [L.Dropout(0.5)], strategy), mode)

    forward = found("forward", two_devices())
    assert_close(found("reverse", two_devices()), forward)
    other = found("forward", None)  # Where all rows have masks of one seed.
    assert np.abs(forward["learning_rate"] - other["learning_rate"]).max() > 1e-6


def test_replicas_draw_other_numbers_and_divide_rows_evenly():
    batch = tf.reshape(tf.range(14.0), [7, 2]), tf.range(7), None
    parts = [Rows(batch, replica, 3) for replica in range(3)]
    assert [part.batch[1].numpy().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5, 6]]
    states = {tuple(part.own_seed(tf.constant([7, 1], "uint32")).numpy()) for part in parts}
    assert len(states) == 3
    assert (7, 1) in states
    together = tf.add_n([part.in_place(part.batch[0]) for part in parts])
    np.testing.assert_array_equal(together, batch[0])


def test_moving_statistics_are_the_means_of_those_of_the_replicas(float64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 4)), rng.integers(0, 3, 7)
    model = made(lambda: [L.BatchNormalization(momentum=0.5)], two_devices())
    keras_fds.fit(
        model,
        x,
        y,
        batch_size=7,
        validation_data=(x, y),
        shuffle=False,
        outer_steps=1,
        epochs=2,
        differentiation="forward",
        seed=0,
        verbose=0,
    )
    layer = model.layers[0]
    parts = [(3 / 7, x[:3]), (4 / 7, x[3:])]
    mean, variance = np.zeros(4), np.ones(4)
    for _ in range(2):
        mean = 0.5 * mean + 0.5 * sum(share * rows.mean(0) for share, rows in parts)
        variance = 0.5 * variance + 0.5 * sum(share * rows.var(0) for share, rows in parts)
    for copy in range(2):
        np.testing.assert_allclose(layer.moving_mean.value.values[copy], mean, atol=1e-12)
        np.testing.assert_allclose(layer.moving_variance.value.values[copy], variance, atol=1e-12)


def test_shared_tangents_are_those_of_one_device_for_any_layer(float64):
    def layers():
        return [L.BatchNormalization(synchronized=True), L.Dropout(0.3)]

    expected = hypergradients(made(layers), "forward")
    mode = Forward(parallel="tangents")
    assert_close(hypergradients(made(layers, two_devices()), mode), expected)


def test_a_device_may_have_no_tangent_or_none_that_is_open_yet():
    variables = [tf.zeros([2])], [], []
    opening = np.array([0, 4, 0])
    parts = [Tangents(variables, 3, number, 4) for number in range(4)]
    for part in parts:
        part.reset(opening)
    assert [part.order.numpy().tolist() for part in parts] == [[0], [2], [1], []]
    assert [part.number for part in parts] == [1, 1, 1, 0]
    assert parts[2].moving(1).numpy().tolist() == [0]  # TensorFlow needs one; it is zero.


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: tf.distribute.OneDeviceStrategy("CPU:0"),
        lambda: tf.distribute.MirroredStrategy(["CPU:0"]),
    ],
    ids=["one_device", "mirrored"],
)
def test_one_replica_computes_the_same_to_the_bit(strategy):
    expected = hypergradients(made(lambda: [L.Dense(4, "tanh")]), "forward")
    found = hypergradients(made(lambda: [L.Dense(4, "tanh")], strategy()), "forward")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_model_built_outside_of_the_scope_trains_within_it(float64):
    def fresh():
        return made(lambda: [L.Dense(4, "tanh")], optimizer=keras.optimizers.Adam)

    expected, model = hypergradients(fresh(), "reverse"), fresh()
    with two_devices().scope():
        assert_close(hypergradients(model, "reverse"), expected)


def test_a_float64_twin_is_shared_too():
    def found(strategy):
        model = made(lambda: [L.Dense(4, "tanh")], strategy)
        data = batches()
        return keras_fds.hypergradients(model, data, data, dtype="float64")

    assert_close(found(two_devices()), found(None))


# ------------------------------------------------------------------------------- what is refused
def test_unknown_strategies_are_refused():
    strategy = tf.distribute.experimental.CentralStorageStrategy(DEVICES)
    with pytest.raises(ValueError, match="MirroredStrategy.*Received: CentralStorage"):
        hypergradients(made(list, strategy), "forward")


def test_devices_that_are_absent_are_told():
    strategy = tf.distribute.OneDeviceStrategy("GPU:7")
    model = made(list)
    with strategy.scope(), pytest.raises(ValueError, match="GPU:7, which this machine does not"):
        hypergradients(model, "forward")


def test_batches_smaller_than_the_replicas_are_refused():
    x, y = small_problem.arrays()
    with pytest.raises(ValueError, match="A batch of 1 examples is smaller than the 2 replicas"):
        keras_fds.fit(
            made(list, two_devices()), x, y, batch_size=1, validation_split=0.2, verbose=0
        )


def mean_of_weights():
    return keras.losses.SparseCategoricalCrossentropy(True, reduction="mean_with_sample_weight")


@pytest.mark.parametrize(
    ("layers", "arguments", "match"),
    [
        (lambda: [L.BatchNormalization(synchronized=True)], {}, "has synchronized=True"),
        (list, {"loss": mean_of_weights()}, "all means over the examples"),
        (lambda: [L.Reshape((2, 2)), L.Masking()], {}, "outputs of the model are masked"),
    ],
    ids=["synchronized", "mean_with_sample_weight", "masked"],
)
def test_what_does_not_divide_is_refused(layers, arguments, match):
    with pytest.raises(ValueError, match=match):
        data = batches(shape=(2,)) if "masked" in match else None
        hypergradients(made(layers, two_devices(), **arguments), "forward", data)


def test_workers_that_differ_are_told(monkeypatch):
    workers = Replicas()
    workers.is_one_process, workers.count, workers.processes = False, 2, 2
    checksum = zlib.crc32(b"seed=0")
    monkeypatch.setattr(workers, "sum_over_processes", lambda own: np.add(own, [0, checksum]))
    workers.check_alike("what they compute", lambda: "seed=0")
    with pytest.raises(ValueError, match="do not agree on what they compute. Start the same"):
        workers.check_alike("what they compute", lambda: "seed=1")


def test_checks_are_for_one_device():
    model = made(list, two_devices())
    with pytest.raises(ValueError, match="check_hypergradients computes on one device"):
        keras_fds.check_hypergradients(model, batches(), batches())


@pytest.mark.parametrize("made_in_scope", ["model", "optimizer"])
def test_a_model_and_an_optimizer_of_different_strategies_are_refused(made_in_scope):
    scope = two_devices().scope
    with scope() if made_in_scope == "model" else contextlib.nullcontext():
        model = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    with scope() if made_in_scope == "optimizer" else contextlib.nullcontext():
        optimizer = keras_fds.HyperOptimizer(
            keras_fds.optimizers.SGD(), [keras_fds.Hyperparameter("learning_rate")]
        )
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match="made in the scope of the same tf.distribute strategy"):
        keras_fds.hypergradients(model, batches(), batches())


def test_a_distributed_dataset_is_refused():
    strategy = two_devices()
    model = made(lambda: [], strategy)
    distributed = strategy.experimental_distribute_dataset(batches())
    with pytest.raises(ValueError, match="must be a tf.data.Dataset .* DistributedDataset"):
        keras_fds.hypergradients(model, distributed, batches())
    with pytest.raises(ValueError, match="must be arrays, a tf.data.Dataset .* DistributedDataset"):
        keras_fds.fit(model, distributed, validation_data=batches(), outer_steps=1)
