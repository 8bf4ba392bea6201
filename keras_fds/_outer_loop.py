"""The outer loop of `fit`: compiled inner loops, callbacks, and the best outer step."""

import sys
import time
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_fds import _models
from keras_fds._checkpoint import Checkpoint
from keras_fds._search import Within
from keras_fds._stock_fit import AnnounceHorizon

# A compiled call runs as many inner steps as fit in this time, so that progress is shown and
# an interrupt is heard at a steady pace whatever a step costs.
_SECONDS_A_CALL = 0.3
_NO_BEST = (
    "The search ends: training broke down, and there is no other point to go to. Start from "
    "smaller values, clip gradients (`clipvalue`, `global_clipnorm`), and see whether the data are "
    "finite."
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
        self.start_weights = self.model.get_weights()
        self.begun = None  # The `Within` of an outer step that was interrupted.
        self.taken = [[], []]  # As `Search.passes`, of the present outer step.

    def run(self, initial_epoch, search):
        """Runs the outer steps of a search, or of the one a callback restores; the history."""
        model, optimizer, logs = self.model, self.optimizer, {}
        model.stop_training, model._initial_epoch = False, None
        last = optimizer.search
        if initial_epoch and last is not None and len(last.records) == initial_epoch:
            search = last
        else:
            optimizer.restart()
        self.search = optimizer.search = search
        optimizer.searching = True
        try:
            self.callbacks.on_train_begin()
            first = self.take_over(optimizer.search) or model._initial_epoch or initial_epoch
            try:
                for outer_step in range(first, len(self.horizons)):
                    if not self.begun and self.has_ended():
                        break
                    logs = self.outer_step(outer_step)
                    if model.stop_training:
                        break
            finally:
                self.search.within = None
                self.keep_best()
        finally:
            optimizer.searching = False
        self.callbacks.on_train_end(logs)
        return model.history

    def take_over(self, search):
        """Goes on with a search that was begun before; the number of its finished outer steps."""
        begun_with, self.search = self.search, search
        if search is not begun_with:
            search.check_same(begun_with, self.horizons)
        done, of = len(search.records), len(self.horizons)
        begun, search.within = search.within, None
        if begun and not self.can_go_on(begun):
            begun = begun._replace(inner_step=0, state=[])
        if search.mode != begun_with.mode:
            warnings.warn(
                f"The search was begun in {search.mode} mode and goes on in {begun_with.mode} "
                "mode, so it ends otherwise in the last digits. Pass differentiation="
                f"{search.mode!r} to go on as it was begun.",
                RuntimeWarning,
                stacklevel=4,
            )
        search.mode = begun_with.mode
        self.restart.start = search.start = search.start or self.restart.start
        self.data.replay(search.passes)
        self.begun = begun
        for record in search.records:
            self.model.history.on_epoch_end(record["outer_step"] - 1, record["logs"])
        inner_step = begun.inner_step if begun else 0
        if (done or inner_step) and self.callbacks.params["verbose"]:
            within = f"inner step {inner_step} of " if inner_step else ""
            going_on = f"Going on after {within}outer step {done + bool(inner_step)} of {of}."
            print(going_on if done < of else f"{done} outer steps are done already.")
        if begun:
            return begun.outer_step
        return search.records[-1]["outer_step"] if done else 0

    def can_go_on(self, begun):
        """Whether an outer step that was begun is of the kind it would be now."""
        horizon = self.horizons[begun.outer_step : begun.outer_step + 1]
        names = list(_logs(self.model))
        kinds = horizon, names, [tuple(each.shape) for each in self.state()]
        shapes = [tuple(each.shape) for each in begun.state]
        return kinds == ([begun.horizon], begun.metrics, shapes)

    def has_ended(self):
        """Whether the search ends before another outer step; if not, moves the schedules."""
        begun, ranges = bool(self.search.records), self.optimizer.ranges
        before = self.optimizer.outer_state
        self.optimizer.update_schedules()
        values = self.optimizer.outer_state["values"]
        moved = before["values"] != values
        if np.isinf(self.search.best["loss"]) and not (moved.any() or np.isnan(before["loss"])):
            warnings.warn(_NO_BEST, RuntimeWarning, stacklevel=4)
            return True
        done = len(self.search.records)
        settled = len(set(self.horizons[max(done - 1, 0) :])) == 1  # No other horizon is to come.
        arrived = moved & ((values <= ranges.minimum) | (values >= ranges.maximum))
        converged = begun and settled and not arrived.any() and self.optimizer.converged
        if converged and self.callbacks.params["verbose"]:
            print("The search has converged: no value moves by 5% of itself any more.")
        return converged

    def outer_step(self, outer_step):
        """One inner loop from new weights, its hypergradients, and the callbacks' share."""
        model, unroll = self.model, self.unroll
        horizon = self.horizons[outer_step]
        self.callbacks.set_params({**self.callbacks.params, "steps": horizon})
        *generators, seed = self.search.randomness(outer_step)
        train, validation = self.data.draw(*generators)
        self.restart(seed)
        unroll.reset(horizon)
        model.reset_metrics()
        self.search.within, self.taken = Within(outer_step, 0, horizon, [], []), [[], []]
        self.callbacks.on_epoch_begin(outer_step)
        steps, sound = self.inner_steps(outer_step, train, horizon)
        logs = _logs(model)
        if sound and steps < horizon:  # A callback broke it off, so it measured nothing.
            self.callbacks.on_epoch_end(outer_step, logs)
            return logs
        if not sound:
            known = np.isfinite(self.search.best["loss"])
            warnings.warn(
                f"Outer step {outer_step + 1}: the training loss {unroll.step.watch.verdict} at "
                f"inner step {steps} of {horizon}. This outer step is given up"
                + ("; the best so far is kept." if known else "."),
                RuntimeWarning,
                stacklevel=4,
            )
            missing = {f"val_{name}": np.nan for name in logs}
            return self.finish(outer_step, {**logs, **missing}, np.inf, np.nan)
        model.reset_metrics()
        loss, values = unroll.validate(
            validation.start(), validation.num_batches, self.validation_training
        )
        self.taken[1].append(validation.num_batches)
        self.warn_of_unknown(values)
        validation_logs = {**_logs(model), "loss": loss}
        logs.update({f"val_{name}": value for name, value in validation_logs.items()})
        return self.finish(outer_step, logs, loss, values)

    def warn_of_unknown(self, values):
        unknown = [n for n, v in self.optimizer._by_name(values).items() if np.isnan(v).any()]
        if unknown:
            warnings.warn(
                f"The hypergradients of {', '.join(map(repr, unknown))} are not a number, so these "
                "values do not move by them. keras_fds.check_hypergradients(model, ...) finds the "
                "layer; a start value at the end of its range is another cause.",
                RuntimeWarning,
                stacklevel=5,
            )

    def finish(self, outer_step, logs, loss, values):
        """Records what an outer step measured."""
        optimizer, search = self.optimizer, self.search
        error = self.unroll.validation_error if np.isfinite(loss) else np.nan
        optimizer.record(np.broadcast_to(values, [self.unroll.num_tangents]), loss, error)
        schedules = optimizer.schedules
        measured = {
            "values": {name: schedule.values for name, schedule in schedules.items()},
            "hypergradients": optimizer.hypergradients,
            "step_sizes": optimizer.step_sizes,
        }
        record = {"outer_step": outer_step + 1, "horizon": optimizer.horizon}
        record["logs"] = dict(sorted(logs.items()))  # As callbacks get them.
        for kind, of_names in measured.items():
            record[kind] = {name: array.tolist() for name, array in of_names.items()}
        record.update(verdict=optimizer.judge(), val_loss_error=error)
        search.records.append(record)
        search.passes = [a + b for a, b in zip(search.passes, self.taken)]
        search.within = None
        if record["verdict"] == "best":
            search.best = {
                "loss": loss,
                "outer_step": outer_step,
                "weights": self.model.get_weights(),
                "values": optimizer.outer_state["values"],
                "horizon": optimizer.horizon,
            }
        self.callbacks.on_epoch_end(outer_step, logs)
        return logs

    def inner_steps(self, outer_step, train, horizon):
        """Trains over the horizon; `(steps done, whether the run was not given up)`."""
        done, source = self.go_on_within(train)
        while done < horizon:
            position = done % self.steps_per_epoch
            if position == 0:
                source = train.start()
                self.taken[0].append(0)
            count = min(self.steps_a_call, horizon - done, self.steps_per_epoch - position)
            self.callbacks.on_train_batch_begin(done)
            start = time.monotonic()
            steps, sound = self.unroll.run(source, position, done, count)
            self.pace(time.monotonic() - start)
            done += steps
            self.taken[0][-1] += steps
            logs, state = _logs(self.model), self.state() if sound else []
            reached = done if state else 0
            self.search.within = Within(outer_step, reached, horizon, list(logs), state)
            self.callbacks.on_train_batch_end(done - 1, logs)
            if not sound or self.model.stop_training:
                return done, sound
        return done, True

    def state(self):
        """All variables of a run; none where it keeps more than that, see `Adjoint`."""
        if not self.unroll.carried:
            return []
        model = self.model
        every = [*model.variables, *model.metrics_variables, *self.optimizer.variables]
        return [*{id(each): each for each in every}.values(), *self.unroll.carried]

    def go_on_within(self, train):
        """Goes on with an interrupted outer step; `(inner steps done, the source)`."""
        begun, self.begun = self.begun, None
        if not begun or not begun.state:
            return 0, None
        for variable, array in zip(self.state(), begun.state):
            variable.assign(tf.cast(array, variable.dtype))
        passes, position = divmod(begun.inner_step, self.steps_per_epoch)
        self.taken[0] = [self.steps_per_epoch] * passes + ([position] if position else [])
        return begun.inner_step, train.replay(self.taken[0])

    def pace(self, seconds):
        """Chooses the number of steps of the next compiled call from the last one's time."""
        if self.model.steps_per_execution > 1:
            return
        if seconds < _SECONDS_A_CALL / 2:
            self.steps_a_call *= 2
        elif seconds > _SECONDS_A_CALL and self.steps_a_call > 1:
            self.steps_a_call //= 2

    def keep_best(self):
        """Leaves the best outer step's weights and schedules, and fresh slots."""
        best, optimizer = self.search.best, self.optimizer
        if np.isinf(best["loss"]):
            self.model.set_weights(self.start_weights)
            optimizer.reset_slots()
        else:
            self.model.set_weights(best["weights"])
            optimizer.reset_slots()
            optimizer.horizon = best["horizon"]
            if not np.array_equal(best["values"], optimizer.outer_state["values"]):
                # What was recorded last belongs to other values.
                optimizer.outer_state = {"values": best["values"], "loss": np.nan}


class Restart:
    """Puts the start weights of an outer step in place."""

    def __init__(self, unroll, initial_weights, inputs):
        model = unroll.model.model
        self.stateless, self.start = unroll.model, None
        if callable(initial_weights):
            self.make = lambda: _models.fresh_model(model, inputs, initial_weights)
        elif initial_weights == "fresh":
            self.make = lambda: _models.fresh_model(model, inputs)
        elif initial_weights == "same":
            self.start = [variable.numpy() for variable in model.variables]
            self.make = None
        else:
            raise ValueError(
                "`initial_weights` must be 'fresh', 'same' or a function that returns a new "
                f"model. Received: initial_weights={initial_weights!r}"
            )
        if self.make is not None:
            self.make()  # Whether it can be done is known before any training.

    def __call__(self, seed):
        if self.make is None:
            for variable, value in zip(self.stateless.model.variables, self.start):
                variable.assign(value)
        else:
            with _models.seeded(seed):
                self.stateless.reinitialize(self.make())


def callback_list(callbacks, model, verbose, outer_steps, horizon, progress=None):
    if verbose == "auto":  # A bar where it is seen moving, a line an outer step in a log file.
        verbose = 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.tree.flatten(callbacks) if callbacks else []
        # What is saved within an outer step is what all others have left.
        callbacks.sort(key=lambda c: isinstance(c, (Checkpoint, keras.callbacks.BackupAndRestore)))
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
