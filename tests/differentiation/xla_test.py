"""`model.compile(jit_compile=True)`: XLA compiles the inner step, and nothing else changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.internals import tf_kernels

MODES = keras_fds.differentiation.Forward(), keras_fds.differentiation.Reverse()


def make_model(jit_compile, *layers):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            *layers,
            keras.layers.Flatten(),
            keras.layers.Dense(3, activation="tanh", kernel_regularizer="l2", name="first"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    optimizer = keras_fds.HyperOptimizer(
        keras_fds.optimizers.SGD(gradient_accumulation_steps=2, use_ema=True),
        [
            keras_fds.Hyperparameter("learning_rate", 2, 0.05),
            keras_fds.Hyperparameter("ema_momentum", initial=0.5),
            keras_fds.Hyperparameter("first.kernel_regularizer.l2", initial=1e-3),
        ],
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile)
    return model


def make_data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4, 4, 1)), rng.integers(0, 3, 50)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(10)


def compiled_by_xla(function):
    """What XLA must compile of a compiled function, by name."""
    traced = function.__wrapped__._list_all_concrete_functions()[0]
    names = [
        node.attr["f"].func.name
        for node in tf_kernels.nodes(traced)
        if node.attr["_XlaMustCompile"].b
    ]
    return {name.removeprefix("__inference_").rstrip("0123456789_") for name in names}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_hypergradients_are_the_same(mode):
    found, data = [], make_data()
    for jit_compile in (False, True):
        model = make_model(jit_compile)
        found.append(
            keras_fds.hypergradients(model, data.take(4), data.skip(4), differentiation=mode)
        )
        bound = mode.bind(model, (*data.element_spec, None))  # The one that has just run.
        compiled = compiled_by_xla(bound._run)
        if mode.goes_back:
            compiled |= compiled_by_xla(bound._sweep)
        whole = {"__call", "_pulled_back"} if mode.goes_back else {"_pushed"}
        assert compiled == (whole if jit_compile else set())
    for name, expected in found[0].items():
        scale = np.abs(expected).max()
        assert scale > 1e-8
        np.testing.assert_allclose(found[1][name], expected, rtol=0, atol=1e-10 * scale)


@pytest.mark.usefixtures("float64")
def test_what_xla_does_not_know_is_told_and_not_compiled():
    data = make_data()
    model = make_model(True, keras.layers.Conv2D(2, 1), keras.layers.MaxPooling2D(2))
    with pytest.warns(RuntimeWarning, match="XLA does not know MaxPoolGradGrad of float64 in the"):
        found = keras_fds.hypergradients(model, data, data, differentiation="forward")
    assert all(np.isfinite(values).all() for values in found.values())
