"""Numbers of the model, its loss and its layers are learned: exactly, or refused."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.functional.learned_numbers import LearnedScalar, locate, substituted
from keras_fds.functional.rebuild import build_compiled
from tests.differentiation import reference

HORIZON = 6


def arrays(outputs=1, num_classes=3, sample_weight=False):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 4))
    labels = np.eye(num_classes)[rng.integers(0, num_classes, 60)]
    weight = rng.uniform(0.5, 2.0, 60) if sample_weight else None
    y = labels if outputs == 1 else tuple(labels for _ in range(outputs))
    return x, y, weight


def batches(data):
    train = ArrayBatches(as_arrays(*data), 6, np.arange(6 * HORIZON))
    return train, train.subset(np.arange(6 * HORIZON, 60), 12)


def network(**dense_arguments):
    """Two dense layers, each with a regularizer of its own."""
    hidden, output = (copy.deepcopy(dense_arguments) for _ in range(2))
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh", name="hidden", **hidden),
            keras.layers.Dense(3, name="output", **output),
        ]
    )


def optimizer(*hyperparameters, wrapped=None):
    rate = keras_fds.Hyperparameter("learning_rate", 2, [0.3, 0.2])
    wrapped = wrapped or keras.optimizers.SGD(momentum=0.5, weight_decay=0.02)
    return keras_fds.HyperOptimizer(wrapped, [rate, *hyperparameters])


def assert_exact(model, data, rtol=1e-6, **options):
    forward, differences = reference.forward_and_differences(model, *batches(data), **options)
    for name, values in forward.items():
        scale = np.abs(differences[name]).max()
        assert scale > 1e-7, f"{name} has no influence"
        np.testing.assert_allclose(values, differences[name], rtol=0, atol=rtol * scale)


CROSSENTROPY = keras.losses.CategoricalCrossentropy


@pytest.mark.sweep("*.kernel_regularizer.l2-initial1", "loss.label_smoothing-initial2")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("name", "initial"),
    [
        ("hidden.kernel_regularizer.l2", [0.03, 0.01]),
        ("*.kernel_regularizer.l2", [0.03, 0.01]),
        ("loss.label_smoothing", [0.1, 0.05]),
        ("output.learning_rate_multiplier", [0.5, 1.5]),
        ("*.learning_rate_multiplier", [0.5, 1.5]),
    ],
)
def test_hypergradients_of_the_model_and_its_loss(name, initial):
    model = network(kernel_regularizer=keras.regularizers.L2(1e-3))
    learned = keras_fds.Hyperparameter(name, 2, initial)
    model.compile(optimizer(learned), loss=CROSSENTROPY(from_logits=True))
    assert_exact(model, arrays())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["L1", "L1L2"])
def test_hypergradients_of_other_regularizers(kind):
    regularizer = keras.regularizers.get({"class_name": kind, "config": {"l1": 1e-3}})
    model = network(kernel_regularizer=regularizer)
    learned = keras_fds.Hyperparameter("hidden.kernel_regularizer.l1", 1, 0.03)
    model.compile(optimizer(learned), loss=CROSSENTROPY(from_logits=True))
    assert_exact(model, arrays())


@pytest.mark.sweep("nadam")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("wrapped", ["adamw", "nadam", "rmsprop"])
def test_factors_on_learning_rates_under_other_optimizers(wrapped):
    model = network()
    learned = [keras_fds.Hyperparameter("hidden.learning_rate_multiplier", 2, [0.7, 1.3])]
    learned.append(keras_fds.Hyperparameter("*.learning_rate_multiplier", 1, 0.9))
    wrapped = {
        "adamw": lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1, epsilon=1e-2),
        "nadam": lambda: keras.optimizers.Nadam(0.02, epsilon=1e-2),
        "rmsprop": lambda: keras.optimizers.RMSprop(0.02, weight_decay=0.1, epsilon=1e-2),
    }[wrapped]()
    model.compile(keras_fds.HyperOptimizer(wrapped, learned), loss=CROSSENTROPY(from_logits=True))
    assert_exact(model, arrays())


def two_outputs():
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(5, activation="tanh", name="hidden")(inputs)
    outputs = [keras.layers.Dense(3, name=name)(hidden) for name in ("first", "second")]
    return keras.Model(inputs, outputs)


@pytest.mark.sweep("weighted")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weights", [None, [0.5, 2.0]], ids=["unweighted", "weighted"])
def test_hypergradients_of_the_losses_of_several_outputs(weights):
    model = two_outputs()
    learned = [
        keras_fds.Hyperparameter("loss_weights.first", 2, [0.5, 1.5]),
        keras_fds.Hyperparameter("loss_weights.*", 1, 0.8),
        keras_fds.Hyperparameter("loss.second.label_smoothing", 1, 0.1),
    ]
    losses = [CROSSENTROPY(from_logits=True), CROSSENTROPY(from_logits=True)]
    model.compile(optimizer(learned[0], learned[2]), loss=losses, loss_weights=weights)
    assert_exact(model, arrays(outputs=2))
    model.compile(optimizer(learned[1]), loss=losses, loss_weights=weights)
    assert_exact(model, arrays(outputs=2))


class Mixing(keras.Model):
    """Examples come from two sources, told by `x["source"]`; the second one has a weight."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(5, activation="tanh")
        self.head = keras.layers.Dense(3)
        self.second_source = 1.0
        self.temperature = 1.0

    def call(self, inputs):
        return self.head(self.hidden(inputs["features"])) / self.temperature

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        weight = 1.0 + tf.cast(x["source"], y_pred.dtype) * (self.second_source - 1.0)
        return super().compute_loss(x, y, y_pred, weight, training)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [False, True])
def test_hypergradients_of_numbers_of_a_subclassed_model(training):
    x, y, _ = arrays()
    model = Mixing()
    learned = [
        keras_fds.Hyperparameter("model.second_source", 2, [0.5, 1.5]),
        keras_fds.Hyperparameter("model.temperature", 1, 1.2),
    ]
    model.compile(optimizer(*learned), loss=CROSSENTROPY(from_logits=True))
    source = np.random.default_rng(2).integers(0, 2, len(x))
    assert_exact(model, ({"features": x, "source": source}, y, None), training=training)


@pytest.mark.usefixtures("float64")
def test_hypergradients_of_a_layers_number():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.GaussianNoise(0.2, name="noise"),
            keras.layers.Dense(3),
        ]
    )
    learned = [
        keras_fds.Hyperparameter("norm.epsilon", 1, 0.2),
        keras_fds.Hyperparameter("noise.stddev", 1, 0.3),
    ]
    model.compile(optimizer(*learned), loss=CROSSENTROPY(from_logits=True))
    assert_exact(model, arrays(sample_weight=True))


@pytest.mark.sweep("logit-0.03-<lambda>")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("scale", "initial", "chain"),
    [("log", 0.03, lambda x: x), ("logit", 0.03, lambda x: x * (1 - x))],
)
def test_hypergradients_are_by_the_coordinate(scale, initial, chain):
    by_scale = {}
    for each in ("linear", scale):
        keras.utils.set_random_seed(3)
        model = network(kernel_regularizer=keras.regularizers.L2(1e-3))
        name = "hidden.kernel_regularizer.l2"
        learned = keras_fds.Hyperparameter(name, 2, [initial, 2 * initial], scale=each)
        model.compile(optimizer(learned), loss=CROSSENTROPY(from_logits=True))
        assert_exact(model, arrays())
        np.testing.assert_allclose(
            model.optimizer.schedules[name].values, [initial, 2 * initial], rtol=1e-12
        )
        train, validation = batches(arrays())
        forward, _ = reference.forward_and_differences(model, train, validation)
        by_scale[each] = forward[name]
    values = np.array([initial, 2 * initial])
    np.testing.assert_allclose(by_scale[scale], by_scale["linear"] * chain(values), rtol=1e-5)


# ------------------------------------------------------------------------------ in stock training
def test_stock_fit_trains_with_the_learned_numbers():
    x, y, _ = arrays()
    strength = 0.4

    def train(learned, l2):
        keras.utils.set_random_seed(4)
        model = network(kernel_regularizer=keras.regularizers.L2(l2))
        model.compile(
            keras_fds.HyperOptimizer(keras.optimizers.SGD(0.1), learned),
            loss=CROSSENTROPY(from_logits=True),
        )
        model.fit(x, y, batch_size=20, shuffle=False, verbose=0)
        return model

    names = ["*.kernel_regularizer.l2", "output.learning_rate_multiplier"]
    learned = [keras_fds.Hyperparameter(n, 2, v) for n, v in zip(names, ([0.0, strength], 0.0))]
    expected = train([learned[1]], strength)
    actual = train(learned, 0.0)
    assert not np.allclose(actual.get_weights()[0], expected.get_weights()[0])
    np.testing.assert_array_equal(actual.get_weights()[2], expected.get_weights()[2])
    actual.optimizer.schedules = {
        **actual.optimizer.schedules,
        names[0]: keras_fds.BucketedSchedule([strength, strength], 3),
    }
    keras.utils.set_random_seed(4)
    fresh = network(kernel_regularizer=keras.regularizers.L2(0.0))
    actual.set_weights(fresh.get_weights())
    actual.fit(x, y, batch_size=20, shuffle=False, verbose=0)
    np.testing.assert_allclose(actual.get_weights()[0], expected.get_weights()[0], rtol=1e-5)
    assert actual.layers[0].kernel_regularizer.l2 == 0.0


def test_learned_numbers_survive_save_and_load(tmp_path):
    x, y, _ = arrays()
    model = network(kernel_regularizer=keras.regularizers.L2(1e-3))
    learned = keras_fds.Hyperparameter("*.kernel_regularizer.l2", 2, 0.01, 0.5, scale="log")
    model.compile(optimizer(learned), loss=CROSSENTROPY(from_logits=True))
    keras_fds.fit(model, x, y, batch_size=20, outer_steps=2, validation_split=0.2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    name = "*.kernel_regularizer.l2"
    expected = model.optimizer.schedules[name].values
    np.testing.assert_array_equal(loaded.optimizer.schedules[name].values, expected)
    for each in (model, loaded):
        each.fit(x, y, batch_size=20, shuffle=False, verbose=0)
    np.testing.assert_allclose(loaded.get_weights()[0], model.get_weights()[0], rtol=1e-6)


# ------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.kernel_regularizer.l2", "hidden.kernel_regularizer.l2"),
        ("hidden.bias_regularizer.l2", "no number"),
        ("loss.margin", "loss.label_smoothing"),
        ("loss_weights.third", "no number"),
        ("model.temperature", "no number"),
        ("drop.rate", "GaussianDropout"),
        ("nowhere.learning_rate_multiplier", "'hidden', 'drop', 'output'"),
    ],
)
def test_a_name_that_leads_nowhere_is_refused_with_what_there_is(name, message):
    model = network(kernel_regularizer=keras.regularizers.L2(1e-3))
    layers = [model.layers[0], keras.layers.Dropout(0.5, name="drop"), model.layers[1]]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer(keras_fds.Hyperparameter(name)), loss=CROSSENTROPY(from_logits=True))
    x, y, _ = arrays()
    with pytest.raises(ValueError, match=message):
        keras_fds.fit(model, x, y, validation_split=0.2, verbose=0)


def test_a_number_that_no_step_uses_is_refused():
    model = network()
    model.unused = 0.3
    model.compile(
        optimizer(keras_fds.Hyperparameter("model.unused")), loss=CROSSENTROPY(from_logits=True)
    )
    x, y, _ = arrays()
    with pytest.raises(ValueError, match="'model.unused' cannot be learned: no training step"):
        keras_fds.fit(model, x, y, validation_split=0.2, verbose=0)


def test_outputs_that_share_a_loss_object_share_its_numbers():
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    for name, message in (
        ("loss.first.label_smoothing", "share one"),
        ("loss.label_smoothing", ""),
    ):
        model = two_outputs()
        model.compile(optimizer(keras_fds.Hyperparameter(name)), loss=[loss, loss])
        spec = tf.TensorSpec([None, 4]), (tf.TensorSpec([None, 3]),) * 2, None
        build_compiled(model, spec)
        if message:
            with pytest.raises(ValueError, match=message):
                locate(model, name)
        else:
            assert len(locate(model, name)) == 1


def test_names_of_layers_may_hold_dots():
    regularizer = keras.regularizers.L2(0.1)
    layer = keras.layers.Dense(3, name="de.nse", kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(loss="mse")
    assert locate(model, "de.nse.kernel_regularizer.l2") == [(vars(regularizer), "l2")]


def test_batches_can_be_trained_on_one_by_one_after_a_search():
    x, y, _ = arrays()
    model = network(kernel_regularizer=keras.regularizers.L2(1e-3))
    learned = keras_fds.Hyperparameter("*.kernel_regularizer.l2", 2, 0.01, 0.5, scale="log")
    model.compile(optimizer(learned), loss=CROSSENTROPY(from_logits=True))
    keras_fds.fit(model, x, y, batch_size=20, outer_steps=2, validation_split=0.2, verbose=0)
    before = model.get_weights()[0]
    assert np.isfinite(model.train_on_batch(x[:8], y[:8]))
    assert np.abs(model.get_weights()[0] - before).max() > 0


@keras.saving.register_keras_serializable("tests")
class Repeating(keras.layers.Layer):
    repeats = 2

    def call(self, inputs):
        for _ in range(self.repeats):
            inputs = 0.5 * inputs
        return inputs


@pytest.mark.parametrize("name", ["repeating.repeats", "leaky.negative_slope"])
def test_a_number_that_python_needs_is_refused(name):
    repeating = Repeating(name="repeating")
    leaky = keras.layers.LeakyReLU(name="leaky")
    model = keras.Sequential([keras.Input((4,)), repeating, leaky, keras.layers.Dense(3)])
    model.compile(
        optimizer(keras_fds.Hyperparameter(name, 1, 2.0)), loss=CROSSENTROPY(from_logits=True)
    )
    x, y, _ = arrays()
    with pytest.raises(ValueError, match=f"'{name}' cannot be learned.*used as a Python number"):
        keras_fds.fit(model, x, y, validation_split=0.2, verbose=0)


def test_a_custom_loop_without_fit_cannot_know_the_layers():
    model = network()
    model.compile(optimizer(keras_fds.Hyperparameter("output.learning_rate_multiplier")))
    model.optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match=r"model\.fit"):
        model.optimizer.apply([tf.zeros(v.shape) for v in model.trainable_variables])


def test_numbers_are_as_before_after_a_substitution():
    regularizer = keras.regularizers.L2(0.25)
    place = {"a": [(vars(regularizer), "l2")]}
    with (
        pytest.raises(RuntimeError),
        substituted(place, {"a": tf.constant(2.0)}) as scalars,
    ):
        assert float(regularizer(tf.ones(3))) == 6.0
        assert scalars["a"].used
        raise RuntimeError
    assert regularizer.l2 == 0.25


def test_a_number_takes_the_type_of_the_tensor_that_it_multiplies():
    number = LearnedScalar(tf.constant(2.0))
    product = tf.constant(1.5, "bfloat16") * number
    assert product.dtype == tf.bfloat16 and float(product) == 3.0
