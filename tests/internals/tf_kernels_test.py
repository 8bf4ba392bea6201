"""Compiled loops are fit for a GPU: read from their graphs, which need no GPU."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.internals import tf_kernels
from tests.differentiation import reference

MODES = {
    "forward": keras_fds.differentiation.Forward(),
    "reverse": keras_fds.differentiation.Reverse(),
}
PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def run(mode):
    """A bound mode after a run, with the compiled functions by name."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    optimizer = keras_fds.HyperOptimizer(
        keras.optimizers.Adam(gradient_accumulation_steps=2, use_ema=True),
        [
            keras_fds.Hyperparameter("learning_rate", 3, 0.01, interpolation="linear"),
            keras_fds.Hyperparameter("beta_1", initial=0.5),
        ],
    )
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.ones((40, 6, 6, 1), "float32")
    batches = ArrayBatches(as_arrays(x, np.zeros(40, "int64"), None), 10)
    bound = mode.bind(model, batches.spec)
    bound.reset(4)
    bound.run(batches.start(), 0, 0, 4)
    reference.measured(bound, batches.start(), 2)
    functions = {
        name: getattr(bound, name).__wrapped__
        for name in ("_run", "_sweep", "_products")
        if hasattr(bound, name)
    }
    return {
        name: function._list_all_concrete_functions()[0] for name, function in functions.items()
    }


@pytest.fixture(scope="module", params=MODES)
def traced(request):
    return run(MODES[request.param])


def test_nothing_is_pinned_to_a_device(traced):
    assert "_run" in traced and len(traced) == 2
    for function in traced.values():
        assert {node.device for node in tf_kernels.nodes(function)} == {""}


def test_every_operation_has_a_kernel_for_a_gpu(traced):
    for function in traced.values():
        operations = {node.op for node in tf_kernels.nodes(function)}
        assert len(operations) > 10 and not operations & PYTHON
        # Of shapes, which TensorFlow keeps on the host.
        assert set(tf_kernels.lacking(function, "GPU", "DEFAULT")) <= {"Split of int32"}


def test_no_operation_copies_to_the_host(traced):
    for function in traced.values():
        # A seed of Keras's Dropout would be, as in stock `model.fit`.
        assert tf_kernels.reads_by_host(function) == []


def test_what_would_be_copied_is_found():
    @tf.function(autograph=False)
    def slices(x, first):
        return tf.strings.as_string(x[first : first + 2])

    function = slices.get_concrete_function(tf.zeros(4), tf.constant(1, "int64"))
    assert tf_kernels.lacking(function, "GPU", "DEFAULT") == ["AsString of float32"]
    found = tf_kernels.reads_by_host(function)
    assert "Pack → StridedSlice.begin (int64)" in found
    function = slices.get_concrete_function(tf.zeros(4), tf.constant(1))
    found = tf_kernels.reads_by_host(function)
    assert found == ["StridedSlice → AsString.input (float32)"]
