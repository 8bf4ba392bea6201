"""The outer loop of `fit`: compiled inner loops, callbacks, and the best outer step."""

import sys
import time
import warnings

import keras
import numpy as np

from keras_fds import _models
from keras_fds._stock_fit import AnnounceHorizon

# A compiled call runs as many inner steps as fit in this time, so that progress is shown and
# an interrupt is heard at a steady pace whatever a step costs.
_SECONDS_A_CALL = 0.3
_NO_BEST = (
    ", and the search ends: there is no better point to go back to. Start from smaller values, or "
    "clip gradients (`clipvalue`, `global_clipnorm`)."
)


class OuterLoop:
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
        steps, sound = self.inner_steps(train, horizon)
        logs = _logs(model)
        if sound and steps < horizon:
            return self.finish(outer_step, logs, np.inf, np.nan)
        if not sound:
            known = np.isfinite(self.best["loss"])
            warnings.warn(
                f"Outer step {outer_step + 1}: the training loss {unroll.step.watch.verdict} at "
                f"inner step {steps} of {horizon}. This step is given up"
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
        """Trains over the horizon; `(steps done, whether the run was not given up)`."""
        done = 0
        while done < horizon:
            position = done % self.steps_per_epoch
            if position == 0:
                source = train.start()
            count = min(self.steps_a_call, horizon - done, self.steps_per_epoch - position)
            self.callbacks.on_train_batch_begin(done)
            start = time.monotonic()
            steps, sound = self.unroll.run(source, position, done, count)
            self.pace(time.monotonic() - start)
            done += steps
            self.callbacks.on_train_batch_end(done - 1, _logs(self.model))
            if not sound or self.model.stop_training:
                return done, sound
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


class Restart:
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


def callback_list(callbacks, model, verbose, outer_steps, horizon, progress=None):
    if verbose == "auto":  # A bar where it is seen moving, a line an outer step in a log file.
        verbose = 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.tree.flatten(callbacks) if callbacks else []
        if progress and not any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks):
            callbacks.append(progress)
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
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
