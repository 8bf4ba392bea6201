"""Compiled calls of many steps, between the hooks of Keras's callbacks."""

import contextlib

import keras
import numpy as np

# A compiled call runs as many inner steps as fit in this time, so progress and interrupts come at a
# steady pace whatever a step costs.
_SECONDS_A_CALL = 0.3
_TRAIN_HOOKS = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
_TEST_HOOKS = ("on_test_batch_begin", "on_test_batch_end")


class Pace:
    """How many inner steps the next compiled call runs.

    Attributes:
        steps: Their number. `steps_per_execution` above 1 fixes it, and so do callbacks that must
            be called for every batch.
        has_hooks: Whether there are such callbacks.
    """

    def __init__(self, model, callbacks, replicas):
        self.steps, self.replicas = model.steps_per_execution, replicas
        self.has_hooks = replicas.any(_overrides(callbacks, _TRAIN_HOOKS))
        self._is_chosen = self.steps == 1 and not self.has_hooks

    def learn(self, seconds):
        """Chooses the number of steps of the next call from the last one's time."""
        if not self._is_chosen:
            return
        seconds = self.replicas.agreed(seconds)  # All processes make the same calls.
        if seconds < _SECONDS_A_CALL / 2:
            self.steps *= 2
        elif seconds > _SECONDS_A_CALL and self.steps > 1:
            self.steps //= 2


def validate(mode, validation, training, callbacks):
    """The validation loss of a bound mode, between the hooks of callbacks.

    Returns:
        `(loss, error, logs)`, the logs with the prefix `"val_"`.
    """
    model = callbacks.model

    @contextlib.contextmanager
    def at_batch(first, last):
        """While open, a compiled call runs."""
        callbacks.on_test_batch_begin(first)
        yield
        callbacks.on_test_batch_end(last, logs_of(model))

    callbacks.on_test_begin()
    model.reset_metrics()
    model.stop_evaluating = False
    loss, error = mode.validate(
        validation.start(),
        validation.num_batches,
        training,
        at_batch if mode.replicas.any(_overrides(callbacks, _TEST_HOOKS)) else None,
    )
    logs = {**logs_of(model), "loss": loss}
    callbacks.on_test_end(logs)
    return loss, error, {f"val_{name}": value for name, value in logs.items()}


def logs_of(model):
    """The model's loss and metrics, as callbacks get them."""
    return _as_numbers(model.get_metrics_result())


def _as_numbers(results):
    """Metrics as Python numbers, also those in dictionaries; lists if they are not scalars."""
    numbers = {}
    for name, value in results.items():
        if isinstance(value, dict):
            numbers.update(_as_numbers(value))
        else:
            numbers[name] = keras.ops.convert_to_numpy(value).tolist()
    return numbers


def _overrides(callbacks, hooks):
    """Whether a callback has hooks that must be called for every batch."""
    return any(
        name in vars(callback) or getattr(type(callback), name).__module__ not in _BY_CALL
        for callback in callbacks.callbacks
        for name in hooks
        # Progress and checkpoints need no call for every batch.
        if not getattr(callback, "acts_between_calls", False)
    )


_BY_CALL = tuple(
    kind.__module__ for kind in (keras.callbacks.Callback, keras.callbacks.ProgbarLogger)
)


def all_finite(arrays):
    """Whether float arrays hold no NaN and no infinity."""
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")
