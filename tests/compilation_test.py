"""Compiled loops are not broken by TensorFlow's rewrites."""

import keras
import numpy as np

import keras_fds
from keras_fds import _compilation, _data
from keras_fds._adjoint import Adjoint
from trainers import networks

HORIZON, BATCH = 60, 128


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
    data = _data.as_arrays(x, np.zeros(len(x), "int64"), None)
    batches = _data.ArrayBatches(data, BATCH)
    adjoint = Adjoint(model, batches.spec, memory=0)
    adjoint.reset(HORIZON)
    adjoint.run(batches.start(), 0, 0, HORIZON)
    assert len(adjoint.blocks) > 2
    loss, hypergradients = adjoint.validate(batches.start(), 1)
    assert np.isfinite([loss, *hypergradients]).all()


def test_settings_of_function_calls_are_as_before():
    before = _compilation.context.context().function_call_options
    assert int(_compilation.compiled(lambda x: x + 1)(1)) == 2
    assert _compilation.context.context().function_call_options is before
