"""What `fit` and `hypergradients` refuse before any compute, and in which words."""

import keras
import numpy as np
import tensorflow as tf

from keras_fds._data import whole_number
from keras_fds.hyper_optimizer import HyperOptimizer


def check_compiled(model):
    """Raises a `ValueError` unless the model is compiled so that it can be unrolled."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled. Call model.compile(optimizer="
            "keras_fds.HyperOptimizer(...), loss=...) first."
        )
    if not isinstance(model.optimizer, HyperOptimizer):
        hint = ""
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            hint = " Under 'mixed_float16' Keras wraps it; use 'mixed_bfloat16'."
        raise ValueError(
            f"The model {model.name!r} must be compiled with a keras_fds.HyperOptimizer."
            f"{hint} Received: optimizer={model.optimizer}"
        )
    if model.loss is None and type(model).compute_loss is keras.Model.compute_loss:
        raise ValueError(
            f"The model {model.name!r} is compiled without a loss. Pass `loss=` to compile()."
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            "keras_fds trains on one device so far. Build the model outside of the scope of its "
            f"tf.distribute strategy. Received: a strategy with {replicas} replicas"
        )
    for method in ("train_step", "test_step"):
        if getattr(type(model), method) is not getattr(keras.Model, method):
            raise ValueError(
                f"{type(model).__name__} overrides `{method}`, which cannot be differentiated "
                "through. Override `compute_loss` instead."
            )


def check_targets(model, x, y):
    """Raises a `ValueError` when arrays come without what the loss compares them to."""
    holds_targets = isinstance(x, tf.data.Dataset) or hasattr(x, "__next__")
    holds_targets = holds_targets or isinstance(x, keras.utils.PyDataset)
    if y is None and model.loss is not None and not holds_targets:
        raise ValueError(f"`y` is missing: the model is compiled with loss={model.loss!r}.")


def check_batched(model, spec):
    """Raises a `ValueError` when batches have one axis less than the model's inputs."""
    ranks = [len(tensor.shape) for tensor in getattr(model, "inputs", None) or []]
    received = [tensor.shape.rank for tensor in tf.nest.flatten(spec[0])]
    if received and [rank + 1 for rank in received] == ranks:
        raise ValueError(
            "The dataset's elements lack the batch axis. Call `dataset.batch(batch_size)`. "
            f"Received: inputs {spec[0]}"
        )


def check_buckets(optimizer, horizon):
    for hyperparameter in optimizer.hyperparameters:
        if hyperparameter.num_buckets > horizon:
            raise ValueError(
                f"{hyperparameter.name!r} has more buckets than the horizon has inner steps. "
                f"Received: num_buckets={hyperparameter.num_buckets}, horizon={horizon}"
            )


def check_same_shapes(train, validation):
    def form(spec):
        return [
            None if s is None else (s.shape[1:].as_list(), s.dtype.is_floating)
            for s in tf.nest.flatten(spec[:2])
        ]

    if form(train) != form(validation):
        raise ValueError(
            "`validation_data` must have the structure, shapes and kinds of the training data. "
            f"Received: training {train[:2]}, validation {validation[:2]}"
        )


def epochs_of_outer_steps(epochs, outer_steps):
    """One number of epochs for each outer step."""
    outer_steps = whole_number("outer_steps", outer_steps)
    each = list(epochs) if np.ndim(epochs) else [epochs] * outer_steps
    if len(each) != outer_steps:
        raise ValueError(
            f"`epochs` must be one number, or {outer_steps} numbers, one an outer step. "
            f"Received: epochs={epochs!r}"
        )
    for number in each:
        is_number = isinstance(number, (int, float, np.number)) and not isinstance(number, bool)
        if not (is_number and 0 < number < np.inf):
            raise ValueError(f"`epochs` must be positive numbers. Received: epochs={epochs!r}")
    return each


def whole_from_zero(name, value):
    """The value as an int; a `ValueError` unless it is a whole number from 0."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0:
        return int(value)
    raise ValueError(f"`{name}` must be a whole number from 0. Received: {name}={value!r}")


def check_callbacks(callbacks, optimizer):
    """Raises a `ValueError` for callbacks that set a learning rate which is learned."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    setters = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    for callback in keras.tree.flatten(callbacks) if callbacks else ():
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                f"`callbacks` must be keras.callbacks.Callback objects. Received: {callback!r}"
            )
        if isinstance(callback, setters) and "learning_rate" in optimizer.names:
            raise ValueError(
                f"{type(callback).__name__} sets the learning rate, which is learned. Leave it "
                "out, or do not learn 'learning_rate'."
            )


def check_searching(callback):
    """Raises a `ValueError` unless a callback's model is searched by `keras_fds.fit`."""
    optimizer, name = callback.model.optimizer, type(callback).__name__
    if not isinstance(optimizer, HyperOptimizer):
        raise ValueError(
            f"keras_fds.callbacks.{name} shows learned schedules: compile the model with a "
            f"keras_fds.HyperOptimizer. Received: optimizer={optimizer}"
        )
    if not optimizer.searching:
        raise ValueError(
            f"keras_fds.callbacks.{name} is for keras_fds.fit, which learns schedules; "
            "`model.fit` trains with them. Leave it out there."
        )


def divergence_factor(factor):
    """`divergence_factor` as a float, infinite for `None`."""
    if factor is None:
        return np.inf
    if isinstance(factor, (int, float, np.number)) and factor > 1:
        return float(factor)
    raise ValueError(
        "`divergence_factor` must be None or a number above 1. "
        f"Received: divergence_factor={factor!r}"
    )
