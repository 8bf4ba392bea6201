"""`fit`, the outer loop around compiled inner loops, and `hypergradients`, one unroll."""

import time
import warnings

import keras
import numpy as np

from keras_fds import _checks, _data, _models
from keras_fds._differentiation import DEFAULT_MEMORY, make_unroll
from keras_fds._stock_fit import AnnounceHorizon

# A compiled call runs as many inner steps as fit in this time, so that progress is shown and
# an interrupt is heard at a steady pace whatever a step costs.
_SECONDS_A_CALL = 0.3
_NO_BEST = (
    ", and the search ends: there is no better point to go back to. Start from smaller values, or "
    "clip gradients (`clipvalue`, `global_clipnorm`)."
)


def fit(
    model,
    x=None,
    y=None,
    batch_size=None,
    epochs=1,
    outer_steps=10,
    verbose="auto",
    callbacks=None,
    validation_split=0.0,
    validation_data=None,
    shuffle=True,
    class_weight=None,
    sample_weight=None,
    initial_epoch=0,
    steps_per_epoch=None,
    validation_steps=None,
    validation_batch_size=None,
    validation_training=False,
    initial_weights="fresh",
    differentiation="auto",
    adjoint_memory=DEFAULT_MEMORY,
):
    """Learns the schedules of a model's `HyperOptimizer`: `model.fit` with an outer loop.

    Every outer step trains the model from fresh weights over a horizon of `epochs` epochs,
    measures the hypergradients of the validation loss, and moves the schedules. To Keras's
    callbacks and progress bar an outer step is an epoch and an inner step is a batch.
    Afterwards the model holds the weights of the best outer step by validation loss, and its
    optimizer that step's schedules, with fresh slots.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`.
        x, y, sample_weight, class_weight, batch_size, shuffle, verbose, callbacks,
            steps_per_epoch, validation_steps, validation_batch_size: As in `model.fit`. `x`
            is arrays (or a nest of them), or a `tf.data.Dataset` of batches.
        epochs: Epochs of training in an outer step; or a list, one number an outer step.
            Defaults to `1`.
        outer_steps: Number of outer steps, fewer when the search converges. Defaults to `10`.
        validation_split: Fraction of the arrays held out, drawn anew each outer step. One of
            `validation_split` and `validation_data` is required.
        validation_data: `(x, y)`, `(x, y, sample_weight)`, or a dataset of batches.
        initial_epoch: The outer step to begin at, as in `model.fit`. Defaults to `0`. A search
            that goes on from a checkpoint (`BackupAndRestore`) knows the best schedules so far,
            not their weights.
        validation_training: Whether the validation loss is taken with the model in training
            mode, as the paper does. Defaults to `False`.
        initial_weights: `"fresh"` draws new weights each outer step from the model's
            initialisers; `"same"` restarts from the present weights; a function is called
            and must return a newly made model. Frozen weights are kept. Defaults to
            `"fresh"`.
        differentiation: How hypergradients are computed; they are the same. `"forward"` carries a
            tangent for each bucket, so that time grows with their number and memory does not grow
            with the horizon. `"adjoint"` goes back over the steps, at the cost of about four
            plain trainings for any number of buckets, and keeps states (and the batches of a
            dataset) to do so. `"auto"` takes the cheaper one that fits. Defaults to `"auto"`.
        adjoint_memory: Bytes that adjoint mode may keep; below that of all states it keeps about
            twice the root of their number, and takes a third longer. Defaults to 1 GiB.

    Returns:
        A `keras.callbacks.History`, one entry an outer step. `val_loss` is the validation
        loss whose hypergradients are taken: the compiled loss without regularisation
        penalties, averaged over the validation batches.

    Raises:
        ValueError: Before any training, when model, data or horizon do not fit together.

    Example:

    >>> history = keras_fds.fit(
    ...     model, x, y, batch_size=128, epochs=10, outer_steps=10, validation_split=0.05
    ... )
    >>> model.optimizer.schedules["learning_rate"]
    """
    _checks.check_compiled(model)
    _checks.check_targets(model, x, y)
    what = ("The training data", "steps_per_epoch")
    data = (x, y, sample_weight)
    train = _data.make_batches(data, batch_size, steps_per_epoch, what, class_weight)
    _checks.check_batched(model, train.spec)
    validation = None
    if validation_data is not None:
        what = ("`validation_data`", "validation_steps")
        validation_data = keras.utils.unpack_x_y_sample_weight(validation_data)
        batch_size = validation_batch_size or batch_size
        validation = _data.make_batches(validation_data, batch_size, validation_steps, what)
        _checks.check_same_shapes(train.spec, validation.spec)
    generator = np.random.default_rng(np.random.randint(2**31))
    data = _data.SplitData(
        train, validation, validation_split, validation_batch_size, generator, shuffle
    )
    epochs = _checks.epochs_of_outer_steps(epochs, outer_steps)
    steps_per_epoch = steps_per_epoch or data.num_batches
    horizons = [number * steps_per_epoch for number in epochs]
    _checks.check_buckets(model.optimizer, min(horizons))
    unroll, reason = make_unroll(model, train, max(horizons), differentiation, adjoint_memory)
    if differentiation == "auto" and verbose:
        print(reason)
    restart = _Restart(unroll, initial_weights, data.spec[0])
    callbacks = _callback_list(callbacks, model, verbose, outer_steps, horizons[0])
    return _OuterLoop(
        unroll, data, restart, callbacks, steps_per_epoch, horizons, validation_training
    ).run(initial_epoch)


def hypergradients(
    model,
    train_data,
    validation_data,
    validation_training=False,
    differentiation="forward",
    adjoint_memory=DEFAULT_MEMORY,
    per_step=False,
):
    """The hypergradients of one unroll from the model's current weights.

    Trains with the current schedules, with fresh optimizer slots, over the batches of
    `train_data` in the order given; their number is the horizon. Weights, optimizer and
    schedules are as before when it returns.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`.
        train_data: A finite `tf.data.Dataset` of batches.
        validation_data: A finite `tf.data.Dataset` of batches; the validation loss is the
            compiled loss without regularisation penalties, averaged over them.
        validation_training: Whether the model is in training mode for the validation loss.
            Defaults to `False`.
        differentiation, adjoint_memory: As in `fit`. `differentiation` defaults to `"forward"`, or
            to `"adjoint"` with `per_step`.
        per_step: Whether to return the hypergradient of every single inner step, as if each were a
            bucket of its own; in adjoint mode it costs nothing more. Defaults to `False`.

    Returns:
        `{name: float64 array [num_buckets]}`, derivatives by the hyperparameters' coordinates; a
        bucket's value is the mean over its steps. With `per_step`, `{name: [horizon]}`.

    Raises:
        ValueError: When model and data do not fit together.

    Example:

    >>> keras_fds.hypergradients(model, train_dataset.batch(128), validation_dataset.batch(500))
    {'learning_rate': array([-0.012, -0.007]), 'momentum': array([-0.0004])}
    """
    _checks.check_compiled(model)
    if per_step and differentiation == "forward":
        differentiation = "adjoint"
    train, validation = (
        _data.DatasetBatches(dataset, None, (f"`{name}`", "dataset.take(n)"))
        for name, dataset in (("train_data", train_data), ("validation_data", validation_data))
    )
    horizon = train.num_batches
    _checks.check_buckets(model.optimizer, horizon)
    unroll, _ = make_unroll(model, train, horizon, differentiation, adjoint_memory)
    variables = model.variables + model.optimizer.variables
    saved = [variable.numpy() for variable in variables]
    try:
        unroll.reset(horizon)
        _, finite = unroll.run(train.start(), 0, 0, horizon)
        if not finite:
            warnings.warn("The training loss stopped being finite.", stacklevel=2)
        what = validation.start(), validation.num_batches, validation_training
        if per_step:
            return model.optimizer.per_step(unroll.validate_per_step(*what)[1])
        return model.optimizer._by_name(unroll.validate(*what)[1])
    finally:
        for variable, value in zip(variables, saved):
            variable.assign(value)


class _OuterLoop:
    """The outer loop of `fit`."""

    def __init__(
        self, unroll, data, restart, callbacks, steps_per_epoch, horizons, validation_training
    ):
        self.unroll, self.data, self.restart, self.callbacks = unroll, data, restart, callbacks
        self.model = callbacks.model
        self.optimizer = self.model.optimizer
        self.steps_per_epoch = steps_per_epoch
        self.horizons = horizons
        self.validation_training = validation_training
        self.steps_a_call = self.model.steps_per_execution
        self.best = {"loss": np.inf}
        self.start_weights = self.model.get_weights()

    def run(self, initial_epoch):
        """Runs the outer steps and returns the model's history."""
        model, logs = self.model, {}
        model.stop_training = False
        self.callbacks.on_train_begin()
        initial_epoch = getattr(model, "_initial_epoch", None) or initial_epoch
        self.initial_epoch = initial_epoch
        try:
            for outer_step in range(initial_epoch, len(self.horizons)):
                self.optimizer.update_schedules()
                if outer_step > initial_epoch and self.optimizer.converged:
                    if self.callbacks.params["verbose"]:
                        print("The search has converged: no value moves by 5% of itself any more.")
                    break
                if outer_step == initial_epoch:
                    self.resume_best()
                logs = self.outer_step(outer_step)
                if model.stop_training or np.isinf(self.best["loss"]):
                    break
        finally:
            self.keep_best()
        self.callbacks.on_train_end(logs)
        return model.history

    def outer_step(self, outer_step):
        """One inner loop from new weights, its hypergradients, and the callbacks' share."""
        model, unroll = self.model, self.unroll
        horizon = self.horizons[outer_step]
        self.callbacks.set_params({**self.callbacks.params, "steps": horizon})
        train, validation = self.data.draw()
        self.restart()
        unroll.reset(horizon)
        model.reset_metrics()
        self.callbacks.on_epoch_begin(outer_step)
        steps, finite = self.inner_steps(train, horizon)
        logs = _logs(model)
        if finite and steps < horizon:
            return self.finish(outer_step, logs, np.inf, np.nan)
        if not finite:
            known = np.isfinite(self.best["loss"])
            warnings.warn(
                f"Outer step {outer_step + 1}: the training loss stopped being finite at inner "
                f"step {steps} of {horizon}. This step is given up"
                + ("; the best so far is kept." if known else _NO_BEST),
                RuntimeWarning,
                stacklevel=4,
            )
            missing = {f"val_{name}": np.nan for name in logs}
            return self.finish(outer_step, {**logs, **missing}, np.inf, np.nan)
        model.reset_metrics()
        loss, values = unroll.validate(
            validation.start(), validation.num_batches, self.validation_training
        )
        self.warn_of_unknown(values)
        validation_logs = {**_logs(model), "loss": loss}
        logs.update({f"val_{name}": value for name, value in validation_logs.items()})
        return self.finish(outer_step, logs, loss, values)

    def warn_of_unknown(self, values):
        unknown = [n for n, v in self.optimizer._by_name(values).items() if np.isnan(v).any()]
        if unknown:
            warnings.warn(
                f"The hypergradients of {', '.join(map(repr, unknown))} are not a number, so these "
                "values stay where they are. keras_fds.check_hypergradients(model, ...) finds the "
                "layer; a start value at the end of its range is another cause.",
                RuntimeWarning,
                stacklevel=5,
            )

    def finish(self, outer_step, logs, loss, values):
        """Records what an outer step measured."""
        self.optimizer.record(np.broadcast_to(values, [self.unroll.num_tangents]), loss)
        if loss < self.best["loss"]:
            self.best = {
                "loss": loss,
                "outer_step": outer_step,
                "weights": self.model.get_weights(),
                "values": self.optimizer.outer_state["values"],
                "horizon": self.optimizer.horizon,
            }
        self.callbacks.on_epoch_end(outer_step, logs)
        return logs

    def inner_steps(self, train, horizon):
        """Trains over the horizon; `(steps done, whether the loss stayed finite)`."""
        done = 0
        while done < horizon:
            position = done % self.steps_per_epoch
            if position == 0:
                source = train.start()
            count = min(self.steps_a_call, horizon - done, self.steps_per_epoch - position)
            self.callbacks.on_train_batch_begin(done)
            start = time.monotonic()
            steps, finite = self.unroll.run(source, position, done, count)
            self.pace(time.monotonic() - start)
            done += steps
            self.callbacks.on_train_batch_end(done - 1, _logs(self.model))
            if not finite or self.model.stop_training:
                return done, finite
        return done, True

    def pace(self, seconds):
        """Chooses the number of steps of the next compiled call from the last one's time."""
        if self.model.steps_per_execution > 1:
            return
        if seconds < _SECONDS_A_CALL / 2:
            self.steps_a_call *= 2
        elif seconds > _SECONDS_A_CALL and self.steps_a_call > 1:
            self.steps_a_call //= 2

    def resume_best(self):
        """Takes over the best point of a search that was begun elsewhere; its weights are gone."""
        state = self.optimizer.outer_state
        if self.initial_epoch and np.isfinite(state.get("best_loss", np.inf)):
            loss, values = float(state["best_loss"]), state["best_values"]
            self.best = {"loss": loss, "values": values, "horizon": self.optimizer.horizon}

    def keep_best(self):
        """Leaves the best outer step's weights and schedules, and fresh slots."""
        best, optimizer = self.best, self.optimizer
        if np.isinf(best["loss"]):
            self.model.set_weights(self.start_weights)
            optimizer.reset_slots()
        else:
            self.model.set_weights(best.get("weights", self.model.get_weights()))
            optimizer.reset_slots()
            optimizer.horizon = best["horizon"]
            if not np.array_equal(best["values"], optimizer.outer_state["values"]):
                # What was recorded last belongs to other values.
                optimizer.outer_state = {"values": best["values"], "loss": np.nan}


class _Restart:
    """Puts the start weights of an outer step in place."""

    def __init__(self, unroll, initial_weights, inputs):
        model = unroll.model.model
        self.stateless = unroll.model
        if callable(initial_weights):
            self.make = lambda: _models.fresh_model(model, inputs, initial_weights)
        elif initial_weights == "fresh":
            self.make = lambda: _models.fresh_model(model, inputs)
        elif initial_weights == "same":
            start = [variable.numpy() for variable in model.variables]
            self.make = None
            self.same = lambda: [v.assign(s) for v, s in zip(model.variables, start)]
        else:
            raise ValueError(
                "`initial_weights` must be 'fresh', 'same' or a function that returns a new "
                f"model. Received: initial_weights={initial_weights!r}"
            )
        if self.make is not None:
            self.make()  # Whether it can be done is known before any training.

    def __call__(self):
        if self.make is None:
            self.same()
        else:
            self.stateless.reinitialize(self.make())


def _callback_list(callbacks, model, verbose, outer_steps, horizon):
    verbose = 1 if verbose == "auto" else verbose
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=outer_steps,
            steps=horizon,
            model=model,
        )
    # The outer loop sets the horizon itself.
    callbacks.callbacks = [c for c in callbacks.callbacks if not isinstance(c, AnnounceHorizon)]
    return callbacks


def _logs(model):
    return {name: float(value) for name, value in model.get_metrics_result().items()}
