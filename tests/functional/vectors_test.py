"""Vectors are learned exactly, in both modes, from shapes that model and data tell."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data import ArrayBatches, Numbered, as_arrays
from keras_fds.differentiation import Reverse
from keras_fds.search import settle
from tests.differentiation import reference

HORIZON, BATCH, GROUPS = 6, 6, 5
NUM_TRAIN = HORIZON * BATCH


class CostSensitive(keras.losses.Loss):
    """Mean squared error, where each class has a cost of its own."""

    def __init__(self):
        super().__init__()
        self.class_costs = np.array([1.0, 2.0, 0.5])

    def call(self, y_true, y_pred):
        return keras.ops.sum(self.class_costs * keras.ops.square(y_true - y_pred), axis=-1)


class Temperatures(keras.layers.Layer):
    """Divides every feature by a temperature."""

    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.temperatures = np.array([1.0, 2.0, 0.5, 1.5, 0.8])

    def call(self, inputs):
        return inputs / self.temperatures


def arrays(one_hot=True):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 60)
    return rng.normal(size=(60, 4)), np.eye(3)[labels] if one_hot else labels


def numbers():
    return np.random.default_rng(2).permutation(np.arange(NUM_TRAIN) % GROUPS)


def network(hyperparameters, loss=None, wrapped=None):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                5,
                activation="tanh",
                name="hidden",
                kernel_regularizer=keras.regularizers.L2(0.02),
            ),
            Temperatures(name="warm"),
            keras.layers.Dense(3, name="output", kernel_regularizer=keras.regularizers.L2(0.01)),
        ]
    )
    rate = keras_fds.Hyperparameter("learning_rate", 2, [0.1, 0.2])
    optimizer = keras_fds.HyperOptimizer(
        wrapped or keras.optimizers.SGD(momentum=0.5), [rate, *hyperparameters]
    )
    model.compile(optimizer, loss=loss or keras.losses.CategoricalCrossentropy(from_logits=True))
    return model


def batches(one_hot=True):
    x, y = arrays(one_hot)
    part = as_arrays(x[:NUM_TRAIN], y[:NUM_TRAIN], None)
    train = ArrayBatches((*part[:2], Numbered(None, tf.constant(numbers()))), BATCH)
    return train, ArrayBatches(as_arrays(x[NUM_TRAIN:], y[NUM_TRAIN:], None), 12)


LEARNED = {
    "groups": lambda: keras_fds.Hyperparameter("sample_weight", 2, groups=GROUPS),
    "on lines": lambda: keras_fds.Hyperparameter(
        "sample_weight", 3, groups=GROUPS, interpolation="linear"
    ),
    "classes": lambda: keras_fds.Hyperparameter("class_weight", 2),
    "layers": lambda: keras_fds.Hyperparameter("*.kernel_regularizer.l2", 2, each=True),
    "factors": lambda: keras_fds.Hyperparameter("*.learning_rate_multiplier", 2, each=True),
    "array of a layer": lambda: keras_fds.Hyperparameter("warm.temperatures", 2, min_value=0.1),
    "array of the loss": lambda: keras_fds.Hyperparameter("loss.class_costs", 2, scale="log"),
}
SIZES = {"groups": 5, "on lines": 5, "classes": 3, "layers": 2, "factors": 2}


@pytest.mark.sweep("groups", "layers", "array of the loss")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("learned", LEARNED)
def test_hypergradients_are_exact_in_both_modes(learned):
    model = network([LEARNED[learned]()], CostSensitive() if "loss" in learned else None)
    train, validation = batches()
    settle(model, train)
    optimizer = model.optimizer
    name = optimizer.names[1]
    assert optimizer.values[name].shape[1:] == (SIZES.get(learned, 3 if "loss" in learned else 5),)
    rng = np.random.default_rng(3)
    optimizer.coordinates += 0.05 * rng.uniform(size=optimizer.buckets.size)
    start = model.get_weights()
    forward, differences = reference.forward_and_differences(model, train, validation)
    scale = np.abs(differences[name]).max()
    assert scale > 1e-7
    np.testing.assert_allclose(forward[name], differences[name], rtol=0, atol=1e-6 * scale)
    for mode in (Reverse(), Reverse(memory=1)):
        model.set_weights(start)
        bound = mode.bind(model, train.spec)
        bound.reset(HORIZON)
        bound.run(train.start(), 0, 0, 2)
        bound.run(train.start(), 2, 2, HORIZON - 2)
        _, found = reference.measured(bound, validation.start(), validation.num_batches)
        found = optimizer.buckets.split(found)
        for each, values in forward.items():
            np.testing.assert_allclose(found[each], values, rtol=1e-8, atol=1e-12)


def test_labels_may_be_numbers():
    found = []
    for one_hot in (True, False):
        losses = keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy
        keras.utils.set_random_seed(0)
        learned = keras_fds.Hyperparameter("class_weight", shape=3, initial=[[0.5, 1.0, 2.0]])
        model = network([learned], losses[one_hot](from_logits=True))
        train, validation = batches(one_hot)
        bound = Reverse().bind(model, train.spec)
        bound.reset(HORIZON)
        bound.run(train.start(), 0, 0, HORIZON)
        bound.validate(validation.start(), validation.num_batches)
        found.append(bound.hypergradients())
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-7)


def test_a_pattern_without_each_ties_its_matches():
    tied = network([keras_fds.Hyperparameter("*.kernel_regularizer.l2", initial=0.1)])
    settle(tied, batches()[0])
    assert tied.optimizer.values["*.kernel_regularizer.l2"].shape == (1,)
    each = network([keras_fds.Hyperparameter("*.kernel_regularizer.l2", each=True)])
    settle(each, batches()[0])
    np.testing.assert_allclose(each.optimizer.values["*.kernel_regularizer.l2"], [[0.02, 0.01]])


def test_vectors_start_from_what_the_model_holds():
    model = network([keras_fds.Hyperparameter("warm.temperatures", 2)])
    settle(model, batches()[0])
    expected = np.tile([1.0, 2.0, 0.5, 1.5, 0.8], (2, 1))
    np.testing.assert_array_equal(model.optimizer.values["warm.temperatures"], expected)
    model = network([keras_fds.Hyperparameter("warm.temperatures", initial=3.0)])
    settle(model, batches()[0])
    np.testing.assert_array_equal(model.optimizer.values["warm.temperatures"], np.full((1, 5), 3.0))


@pytest.mark.parametrize(
    ("learned", "message"),
    [
        (lambda: keras_fds.Hyperparameter("hidden.bias_regularizer.l2", each=True), "no number"),
        (lambda: keras_fds.Hyperparameter("warm.temperatures", shape=4), "learned with 4 values"),
        (lambda: keras_fds.Hyperparameter("warm.temperatures", max_value=1.0), "must lie between"),
        (lambda: keras_fds.Hyperparameter("sample_weight"), "groups=number_of_groups"),
    ],
)
def test_what_does_not_fit_is_refused(learned, message):
    model = network([learned()])
    x, y = arrays()
    with pytest.raises(ValueError, match=message):
        data = tf.data.Dataset.from_tensor_slices((x, y, np.ones(60), np.arange(60))).batch(6)
        keras_fds.hypergradients(model, data.take(3), data.take(2))


def test_datasets_tell_the_number_of_each_example():
    x, y = arrays()
    model = network([keras_fds.Hyperparameter("sample_weight", groups=GROUPS)])
    data = tf.data.Dataset.from_tensor_slices(
        (x[:NUM_TRAIN], y[:NUM_TRAIN], np.ones(NUM_TRAIN), numbers())
    ).batch(BATCH)
    validation = tf.data.Dataset.from_tensor_slices((x[NUM_TRAIN:], y[NUM_TRAIN:])).batch(12)
    by_modes = [
        keras_fds.hypergradients(model, data, validation, differentiation=mode, dtype="float64")
        for mode in ("forward", "reverse")
    ]
    assert by_modes[0]["sample_weight"].shape == (1, GROUPS)
    np.testing.assert_allclose(*(each["sample_weight"] for each in by_modes), rtol=1e-8)
    with pytest.raises(ValueError, match="fourth part"):
        keras_fds.hypergradients(model, validation, validation)
    with pytest.raises(ValueError, match="are vectors"):
        keras_fds.hypergradients(model, data, validation, per_step=True)


@pytest.mark.parametrize("shuffle", [True, "batch"])
@pytest.mark.parametrize("resample", [None, "outer_step"])
def test_weights_follow_their_examples_however_they_are_shuffled(shuffle, resample):
    """Examples of weight zero have no influence, whatever their labels."""
    x, y = arrays()
    wrong = np.arange(60) % 3 == 0
    found = []
    for labels in (y, np.where(wrong[:, None], y[:, ::-1] + 7.0, y)):
        learned = keras_fds.Hyperparameter(
            "sample_weight", shape=60, initial=np.where(wrong, 0.0, 1.0)
        )
        keras.utils.set_random_seed(0)
        model = network([learned], keras.losses.MeanSquaredError())
        history = keras_fds.fit(
            model,
            x,
            labels,
            batch_size=8,
            epochs=2,
            outer_steps=1,
            shuffle=shuffle,
            resample_validation=resample,
            validation_split=0.25,
            seed=0,
            verbose=0,
        )
        found.append((model.get_weights(), history.history["loss"]))
    for one, other in zip(found[0][0], found[1][0]):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


def test_the_validation_loss_has_no_learned_weights():
    x, y = arrays()
    model = network([keras_fds.Hyperparameter("class_weight", initial=0.0)])
    history = keras_fds.fit(
        model, x, y, epochs=1, outer_steps=1, validation_split=0.2, verbose=0, batch_size=8
    )
    assert history.history["val_loss"][0] > 0.1


def test_given_sample_weights_are_multiplied():
    x, y = arrays()
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 60)
    ends = []
    for given, learned in ((weights, 2.0), (2 * weights, 1.0)):
        keras.utils.set_random_seed(0)
        model = network([keras_fds.Hyperparameter("sample_weight", initial=learned)])
        keras_fds.fit(
            model,
            x,
            y,
            sample_weight=given,
            epochs=1,
            outer_steps=1,
            validation_split=0.2,
            verbose=0,
            seed=0,
        )
        ends.append(model.get_weights())
    for one, other in zip(*ends):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_forward_mode_refuses_what_the_machine_cannot_hold(monkeypatch):
    monkeypatch.setattr("keras_fds.differentiation.forward.memory_of_machine", lambda: 10_000)
    x, y = arrays()
    model = network([keras_fds.Hyperparameter("sample_weight")])
    with pytest.raises(ValueError, match="62 tangents, .* need .* GiB; this machine has"):
        keras_fds.fit(model, x, y, validation_split=0.2, differentiation="forward", verbose=0)


def test_stock_fit_uses_class_weights_and_asks_for_sample_weights():
    x, y = arrays()
    ends = []
    for learned, given in (([2.0, 0.5, 0.0], None), ([1.0] * 3, dict(enumerate([2.0, 0.5, 0.0])))):
        keras.utils.set_random_seed(0)
        model = network([keras_fds.Hyperparameter("class_weight", shape=3, initial=learned)])
        model.fit(x, y, epochs=1, verbose=0, shuffle=False, class_weight=given)
        ends.append(model.get_weights())
    for one, other in zip(*ends):
        np.testing.assert_allclose(one, other, atol=1e-6)
    model = network([keras_fds.Hyperparameter("sample_weight", shape=60)])
    with pytest.raises(ValueError, match="Pass the learned weights yourself"):
        model.fit(x, y, verbose=0)
    model.fit(x, y, sample_weight=model.optimizer.values["sample_weight"][-1], verbose=0)


def test_check_hypergradients_samples_a_long_vector():
    x, y = arrays()
    model = network([keras_fds.Hyperparameter("sample_weight", groups=NUM_TRAIN)])
    parts = x[:NUM_TRAIN], y[:NUM_TRAIN], np.ones(NUM_TRAIN), np.arange(NUM_TRAIN)
    data = tf.data.Dataset.from_tensor_slices(parts).batch(12)
    validation = tf.data.Dataset.from_tensor_slices((x[NUM_TRAIN:], y[NUM_TRAIN:])).batch(24)
    check = keras_fds.check_hypergradients(model, data, validation, verbose=False)
    assert check.passed, check
    assert check.forward["sample_weight"].shape == (12,)
    assert check.forward["learning_rate"].shape == (2,)
    assert len(set(check.positions["sample_weight"])) == 12
    assert str(check).count("sample_weight") == 12


class Unweighted(keras.Sequential):
    """Its own loss leaves sample weights out."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(keras.ops.square(y - y_pred))


def test_a_loss_without_sample_weights_is_refused():
    x, y = arrays()
    model = Unweighted([keras.Input((4,)), keras.layers.Dense(3)])
    learned = keras_fds.Hyperparameter("sample_weight")
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), [learned]), loss="mse")
    with pytest.raises(ValueError, match="does not use sample weights"):
        keras_fds.fit(model, x, y, validation_split=0.2, verbose=0)


def test_every_output_may_have_a_loss_weight_of_its_own():
    inputs = keras.Input((4,))
    outputs = [keras.layers.Dense(3, name=name)(inputs) for name in ("first", "second")]
    model = keras.Model(inputs, outputs)
    learned = keras_fds.Hyperparameter("loss_weights.*", each=True, initial=1.0)
    optimizer = keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), [learned])
    model.compile(optimizer, loss=[keras.losses.MeanSquaredError() for _ in range(2)])
    x, y = arrays()
    data = tf.data.Dataset.from_tensor_slices((x, (y, 1 - y))).batch(20)
    found = [
        keras_fds.hypergradients(
            model, data.take(2), data.skip(2), differentiation=mode, dtype="float64"
        )["loss_weights.*"]
        for mode in ("forward", "reverse")
    ]
    assert found[0].shape == (1, 2) and np.all(found[0] != 0)
    np.testing.assert_allclose(*found, rtol=1e-8)


def test_schedules_of_vectors_can_be_set_before_fit():
    learned = keras_fds.Hyperparameter("warm.temperatures", 2)
    model, values = network([learned]), np.arange(1.0, 11.0).reshape(2, 5)
    rate = keras_fds.BucketedSchedule([0.1, 0.1], 10)
    schedules = {
        "learning_rate": rate,
        "warm.temperatures": keras_fds.BucketedSchedule(values, 10),
    }
    model.optimizer.schedules = schedules
    settle(model, batches()[0])
    np.testing.assert_array_equal(model.optimizer.values["warm.temperatures"], values)
    with pytest.raises(ValueError, match="`schedules` must hold"):
        vector = keras_fds.BucketedSchedule([[0.1], [0.1]], 10)
        model.optimizer.schedules = {**schedules, "learning_rate": vector}
