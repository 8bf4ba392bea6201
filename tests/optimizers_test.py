"""`keras_fds.optimizers.SGD` against hand-computed steps and an independent numpy program."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds

SGD = keras_fds.optimizers.SGD

CLIPPINGS = ({}, {"clipvalue": 0.5}, {"clipnorm": 0.8}, {"global_clipnorm": 1.1})


def clipped(gradients, clipvalue=None, clipnorm=None, global_clipnorm=None):
    """Keras's three ways to clip, in numpy."""
    if clipvalue is not None:
        return [np.clip(g, -clipvalue, clipvalue) for g in gradients]
    if clipnorm is not None:
        return [g * min(1.0, clipnorm / np.linalg.norm(g)) for g in gradients]
    if global_clipnorm is not None:
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        return [g * min(1.0, global_clipnorm / norm) for g in gradients]
    return gradients


# --------------------------------------------------------------------------------------- values
def test_three_steps_by_hand(float64):
    weight = keras.Variable([2.0], dtype="float64")
    optimizer = SGD(momentum=0.5, weight_decay=0.125)
    # v ← 0.5·v + g + 0.125·w, then w ← w − rate·v:
    #   v = 0         + 1 + 0.25        = 1.25           w = 2        − 0.1·v = 1.875
    #   v = 0.625     + 2 + 0.234375    = 2.859375       w = 1.875    − 0.2·v = 1.303125
    #   v = 1.4296875 − 1 + 0.162890625 = 0.592578125    w = 1.303125 − 0.3·v = 1.1253515625
    steps = ((1.0, 0.1, 1.875), (2.0, 0.2, 1.303125), (-1.0, 0.3, 1.1253515625))
    for gradient, rate, expected in steps:
        optimizer.learning_rate = rate
        optimizer.apply([tf.constant([gradient], "float64")], [weight])
        np.testing.assert_allclose(weight.numpy(), [expected], rtol=1e-14)


@pytest.mark.parametrize("clipping", CLIPPINGS, ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.875])
@pytest.mark.parametrize(
    ("weight_decay", "exclude"), [(None, False), (0.0, False), (0.0625, False), (0.0625, True)]
)
def test_equals_numpy_over_100_steps(float64, momentum, weight_decay, exclude, clipping):
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=(3, 2)), rng.normal(size=2)]
    velocities = [np.zeros((3, 2)), np.zeros(2)]
    decays = [weight_decay or 0.0, 0.0 if exclude else weight_decay or 0.0]
    variables = [keras.Variable(weights[0], name="kernel"), keras.Variable(weights[1], name="bias")]
    optimizer = SGD(momentum=momentum, weight_decay=weight_decay, **clipping)
    if exclude:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables)
    apply = tf.function(lambda *gradients: optimizer.apply(list(gradients), variables))

    for step in range(100):
        rate = 0.2 * rng.random()
        gradients = [rng.normal(size=w.shape) for w in weights]
        optimizer.learning_rate = rate
        apply(*map(tf.constant, gradients))
        for i, gradient in enumerate(clipped(gradients, **clipping)):
            velocities[i] = momentum * velocities[i] + gradient + decays[i] * weights[i]
            weights[i] = weights[i] - rate * velocities[i]
            np.testing.assert_allclose(
                variables[i].numpy(), weights[i], rtol=1e-11, atol=1e-12, err_msg=f"step {step}"
            )
    assert int(optimizer.iterations) == 100


@pytest.mark.parametrize("argument", ["learning_rate", "momentum", "weight_decay"])
def test_hyperparameters_keep_their_digits_in_float64(float64, argument):
    weight = keras.Variable([1.0], dtype="float64")
    arguments = {"learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0, argument: 0.1}
    optimizer = SGD(**arguments)
    # After gradients 1 and 0 (0 alone for the decay) a step is exactly the value asked for.
    for gradient in (1.0, 0.0) if argument == "momentum" else (float(argument != "weight_decay"),):
        before = weight.numpy()
        optimizer.apply([tf.constant([gradient], "float64")], [weight])
    np.testing.assert_allclose(before - weight.numpy(), [0.1], rtol=1e-14)


def test_equals_stock_sgd_while_the_learning_rate_is_constant():
    rng = np.random.default_rng(1)
    start = rng.normal(size=5).astype("float32")
    mine, stock = keras.Variable(start), keras.Variable(start)
    optimizers = (SGD(0.1, momentum=0.8), keras.optimizers.SGD(0.1, momentum=0.8))
    for step in range(20):
        gradient = tf.constant(rng.normal(size=5), "float32")
        for optimizer, variable in zip(optimizers, (mine, stock)):
            optimizer.apply([gradient], [variable])
        np.testing.assert_allclose(
            mine.numpy(), stock.numpy(), rtol=1e-5, atol=1e-6, err_msg=f"step {step}"
        )


def test_velocity_does_not_shrink_with_the_learning_rate(float64):
    # A step at rate 0 leaves the weight but fills the velocity, which the next step uses.
    weight = keras.Variable([1.0], dtype="float64")
    optimizer = SGD(learning_rate=keras_fds.BucketedSchedule([0.0, 0.1], 2), momentum=0.5)
    for expected in (1.0, 1.0 - 0.1 * 0.5 * 4.0):
        gradient = 4.0 if optimizer.iterations == 0 else 0.0
        optimizer.apply([tf.constant([gradient], "float64")], [weight])
        np.testing.assert_allclose(weight.numpy(), [expected], rtol=1e-14)


def test_sparse_gradients_count_as_dense():
    start = np.arange(8.0, dtype="float32").reshape(4, 2)
    slices = tf.IndexedSlices(tf.ones([3, 2]), tf.constant([1, 3, 1]), tf.constant([4, 2]))
    results = []
    for gradient in (slices, tf.convert_to_tensor(slices)):
        optimizer, variable = SGD(0.1, momentum=0.9, weight_decay=0.01), keras.Variable(start)
        for _ in range(3):
            optimizer.apply([gradient], [variable])
        results.append(variable.numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert np.all(results[0][2] != start[2])


# --------------------------------------------------------------------------------------- config
CONFIGS = (
    {},
    {"learning_rate": 0.3, "momentum": 0.9, "weight_decay": 5e-4},
    {"momentum": 0.5, "weight_decay": None, "clipvalue": 0.3, "name": "inner"},
    {"clipnorm": 0.7},
    {"learning_rate": keras_fds.BucketedSchedule([0.3, 0.1], 4), "global_clipnorm": 0.5},
)


def trajectory(optimizer):
    rng = np.random.default_rng(2)
    variable = keras.Variable(rng.normal(size=3))
    path = []
    for _ in range(4):
        optimizer.apply([tf.constant(rng.normal(size=3), variable.dtype)], [variable])
        path.append(variable.numpy())
    return path


@pytest.mark.parametrize("arguments", CONFIGS, ids=str)
def test_config_round_trip(arguments):
    optimizer = SGD(**arguments)
    serialized = keras.optimizers.serialize(optimizer)
    copies = [
        SGD.from_config(optimizer.get_config()),
        keras.optimizers.deserialize(serialized),
        keras.optimizers.get(serialized),
    ]
    expected = trajectory(optimizer)
    for copy in copies:
        assert type(copy) is SGD
        assert copy.get_config() == optimizer.get_config()
        np.testing.assert_array_equal(trajectory(copy), expected)


def test_training_goes_on_after_save_and_load(tmp_path):
    x, y = np.random.rand(8, 3), np.random.rand(8, 1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(SGD(0.1, momentum=0.9, weight_decay=0.01, clipvalue=1.0), loss="mse")
    model.fit(x, y, epochs=3, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 3
    for trained in (model, loaded):
        trained.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for weights, loaded_weights in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_allclose(weights, loaded_weights, rtol=1e-6)


# ------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5, np.nan, np.inf, None, "0.9"])
def test_bad_momentum(momentum):
    with pytest.raises(ValueError, match=r"`momentum` must lie in \[0, 1\)") as raised:
        SGD(momentum=momentum)
    assert f"Received: momentum={momentum!r}" in str(raised.value)
