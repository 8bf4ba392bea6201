"""Compiled loops are not broken by TensorFlow's rewrites."""

import keras
import numpy as np
import pytest

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.differentiation.reverse import Reverse
from keras_fds.internals import tf_compilation
from tests.differentiation import reference
from trainers import networks

HORIZON = 60
BATCH = 128


@pytest.mark.sweep()
def test_loops_of_more_than_205_megabytes_can_be_called_again():
    """With TensorFlow's own settings: AlreadyExistsError, in the second of these calls."""
    model = networks.build("lenet", (28, 28, 1), 10)
    model.compile(
        keras_fds.HyperOptimizer(
            keras_fds.optimizers.SGD(0.01, momentum=0.9),
            [keras_fds.Hyperparameter("learning_rate", 2, 0.01)],
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x = np.zeros((BATCH * HORIZON, 28, 28, 1), "float32")
    data = as_arrays(x, np.zeros(len(x), "int64"), None)
    batches = ArrayBatches(data, BATCH)
    reverse = Reverse(memory=1).bind(model, batches.spec)
    reverse.reset(HORIZON)
    reverse.run(batches.start(), 0, 0, HORIZON)
    assert len(reverse.pieces) > 2
    loss, hypergradients = reference.measured(reverse, batches.start(), 1)
    assert np.isfinite([loss, *hypergradients]).all()


def test_settings_of_function_calls_are_as_before():
    before = tf_compilation.context.context().function_call_options
    assert int(tf_compilation.compiled(lambda x: x + 1)(1)) == 2
    assert tf_compilation.context.context().function_call_options is before
