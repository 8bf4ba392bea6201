"""How many values the vectors of a `HyperOptimizer` have: model and data tell."""

import numpy as np

from keras_fds.functional.example_weights import number_of_classes
from keras_fds.functional.learned_numbers import held_values
from keras_fds.functional.model import kept_with
from keras_fds.functional.rebuild import build_compiled
from keras_fds.internals import keras_models


def settle_vectors(model, batch, num_examples=None):
    """Gives the vectors that a model's optimizer learns their shapes and start values.

    Args:
        model: Compiled with a `HyperOptimizer`; it is built here.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
        num_examples: How many examples have numbers. Defaults to `None`, not known.

    Raises:
        ValueError: When the model has no such number, or a vector has another length already.
    """
    optimizer, held = model.optimizer, {}
    if not optimizer.model_names and not optimizer.multiplied_names:
        return
    build_compiled(model, batch)
    for h in optimizer.hyperparameters:
        if h.name == "class_weight":
            outputs = keras_models.output_spec(model, batch[0])
            held[h.name] = np.ones(number_of_classes(batch[1], outputs))
        elif h.name == "sample_weight" and num_examples is not None:
            held[h.name] = np.ones(num_examples)
        elif "." in h.name:
            held[h.name] = held_values(model, h.name, h.each)
    if optimizer.settle(held):
        kept_with(model).clear()
