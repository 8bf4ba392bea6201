"""Keras's internals are where `keras_fds/internals` expects them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fds.internals import keras_layers, keras_models, keras_optimizers

OPTIMIZER_METHODS = (
    "assign",
    "assign_add",
    "assign_sub",
    "stateless_apply",
    "add_variable_from_reference",
    "_apply_weight_decay",
    "_backend_update_step",
    "_var_key",
)
MEND = "Keras has changed: mend keras_fds/internals, which relies on "


def has(owner, name):
    assert hasattr(owner, name), f"{MEND}`{name}` of {owner!r}."


@pytest.mark.parametrize("method", OPTIMIZER_METHODS)
def test_optimizers_methods_have_a_form_without_distribution(method):
    for kind in (keras_optimizers.TFOptimizer, keras_optimizers.BaseOptimizer):
        assert method in vars(kind), f"{MEND}`{method}` of {kind.__name__}."
    assert (
        getattr(keras_optimizers.PureMixin, method) is vars(keras_optimizers.BaseOptimizer)[method]
    )


@pytest.mark.parametrize(
    "name", ["_trainable_variables", "_learning_rate", "_var_key", "_use_weight_decay"]
)
def test_optimizers_have(name):
    optimizer = keras.optimizers.SGD()
    optimizer.build([keras.Variable(1.0)])
    has(optimizer, name)


@pytest.mark.parametrize(
    "name",
    [
        "_losses_override",
        "_compute_loss",
        "_symbolic_build",
        "_flatten_layers",
        "_call_has_training_arg",
        "_compile_loss",
        "_loss_tracker",
    ],
)
def test_compiled_models_have(name):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    has(model, name)


def test_modules_have():
    for name in ("sqrt", "power"):
        has(keras_optimizers.keras_numpy, name)
    has(keras_optimizers.keras_linalg, "norm")
    assert isinstance(keras_optimizers.CommonVariable.value, property), f"{MEND}`Variable.value`."
    has(keras_layers.keras_backend, "lstm")
    has(keras_layers.keras_backend, "gru")
    has(keras_layers.keras_backend, "compute_output_spec")


def test_optimizers_take_roots_where_we_replace_them():
    weight = keras.Variable(np.ones(2, "float32"))
    optimizer = keras.optimizers.Adam()
    optimizer.build([weight])
    taken = []

    def root(x):
        taken.append("sqrt")
        return tf.sqrt(x)

    def power(x1, x2):
        taken.append("power")
        return tf.pow(x1, x2)

    def norm(x, **_):
        taken.append("norm")
        return tf.norm(x)

    with (
        keras_layers.replaced(keras_optimizers.keras_numpy, sqrt=root, power=power),
        keras_layers.replaced(keras_optimizers.keras_linalg, norm=norm),
    ):
        optimizer.apply([tf.ones(2)])
        keras.ops.norm(tf.ones(2))
    assert {"sqrt", "power", "norm"} <= set(taken), f"{MEND}what `keras.ops` calls, not {taken}."


def test_compiled_losses_have_a_name_a_loss_and_a_weight():
    inputs = keras.Input((2,))
    outputs = [keras.layers.Dense(1, name=name)(inputs) for name in "ab"]
    model = keras.Model(inputs, outputs)
    loss = keras.losses.BinaryCrossentropy(label_smoothing=0.1)
    model.compile(loss=[loss, "mse"], loss_weights=[0.5, 2.0])
    assert keras_models.compiled_losses(model) == []
    spec = tf.TensorSpec([None, 2]), [tf.TensorSpec([None, 1])] * 2, None
    keras_models.build_model(model, spec)
    losses = keras_models.compiled_losses(model)
    assert [each.name for each in losses] == ["a", "b"], f"{MEND}`CompileLoss._flat_losses`."
    assert [each.loss_weights for each in losses] == [0.5, 2.0]
    assert keras_models.loss_arguments(losses[0].loss)["label_smoothing"] == 0.1
    assert keras_models.loss_arguments(lambda y, p: 0.0) is None


def test_stock_keras_is_as_before_outside_an_unroll():
    stock = tf.nn.moments, keras.layers.Layer.__call__
    with keras_layers.twice_differentiable():
        assert tf.nn.moments is not stock[0]
    assert (tf.nn.moments, keras.layers.Layer.__call__) == stock


def test_square_root_has_a_finite_derivative_at_zero():
    x = tf.constant([0.0, 4.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = keras_optimizers._square_root(x)
    np.testing.assert_array_equal(y, [0.0, 2.0])
    np.testing.assert_array_equal(tape.gradient(y, x), [0.0, 0.25])


def test_power_has_a_finite_derivative_at_zero():
    x = tf.constant([0.0, 0.0, 0.0, 4.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = keras_optimizers._power(x, tf.constant([0.5, 1.0, 2.0, 0.5]))
    np.testing.assert_array_equal(y, [0.0, 0.0, 0.0, 2.0])
    np.testing.assert_array_equal(tape.gradient(y, x), [0.0, 1.0, 0.0, 0.25])


def test_a_variable_is_read_when_it_is_used():
    variable = keras.Variable(1.0)
    with keras_optimizers._read_when_used(), keras.StatelessScope([(variable, tf.constant(2.0))]):
        value = variable.value
        assert float(keras.ops.multiply(value, 2.0)) == 4.0
        variable.assign(variable + 3.0)
        assert float(keras.ops.multiply(2.0, value)) == 10.0
        assert float(1.0 - value / variable) == 0.0
    assert isinstance(variable.value, tf.Variable)
