"""The outer loop of `fit`: compiled inner loops, callbacks, and the best outer step."""

import contextlib
import sys
import time
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_fds import _checks, _data, _keras, _models
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
_NOT_MOVED = (
    "The search ends where it began, which does not mean that it has converged: slopes are too "
    "small beside its steps to tell where to go. Start from 0.0, or from values that learn "
    "something, or give the hyperparameters a greater `step_size`."
)
_AT_ENDS = (
    "The search ends where it began: every value stands at an end of its range, and the validation "
    "loss would fall beyond it only. Start from values between, or train over a longer horizon "
    "(`epochs`); with batch normalisation, validation_training=True may help."
)
_RECORDS_TO_TELL = 4  # Of so many outer steps, it is told that all went the same way.
_TRAIN_HOOKS = ("on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end")
_TEST_HOOKS = ("on_test_batch_begin", "on_test_batch_end")


class OuterLoop:
    """The outer loop of `fit`."""

    def __init__(self, unroll, data, restart, callbacks, horizons, validation_training):
        self.unroll, self.data, self.restart, self.callbacks = unroll, data, restart, callbacks
        self.model = callbacks.model
        self.optimizer = self.model.optimizer
        self.pass_length = data.train.pass_length
        self.horizons = horizons
        self.validation_training = validation_training
        self.steps_a_call = self.model.steps_per_execution
        has_hooks = _overrides(callbacks, _TRAIN_HOOKS)
        self.paces_itself = self.steps_a_call == 1 and not has_hooks
        self.guard = _Guard(unroll) if has_hooks else None
        self.validates_by_batch = _overrides(callbacks, _TEST_HOOKS)
        self.rate = self.present_rate()
        self.start_weights = self.model.get_weights()
        self.begun = None  # The `Within` of an outer step that was interrupted.
        self.broken_off = False  # Whether a callback stopped the last outer step within it.
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
            if optimizer.search is search:  # Else a checkpoint has been restored.
                search.start = self.restart.remember()
            first = self.take_over(optimizer.search) or model._initial_epoch or initial_epoch
            try:
                for outer_step in range(first, len(self.horizons)):
                    if not self.begun and self.has_ended():
                        break
                    logs = self.outer_step(outer_step)
                    if model.stop_training:
                        break
                else:
                    self.tell_of_slow_moves()
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
        if converged and not self.has_moved():
            at_ends = np.all((values <= ranges.minimum) | (values >= ranges.maximum))
            warnings.warn(_AT_ENDS if at_ends else _NOT_MOVED, RuntimeWarning, stacklevel=4)
        elif converged and self.callbacks.params["verbose"]:
            print("The search has converged: every step is below 5% of its value.")
        return converged

    def has_moved(self):
        """Whether some value is another than at the start, by more than 5% of itself."""
        first = self.search.records[0]["values"]
        return not self.optimizer.names or any(
            np.any(np.abs(values - first[name]) > 0.05 * np.abs(first[name]))
            for name, values in self.optimizer._values().items()
        )

    def tell_of_slow_moves(self):
        """Warns when values that stand far from zero were still on their way, all the way."""
        if len(self.search.records) < _RECORDS_TO_TELL:
            return
        for name in self.optimizer.names:
            values = np.array([record["values"][name] for record in self.search.records])
            steps = np.diff(values, axis=0)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = steps[-1] / values[-2]
            on_its_way = np.all(steps > 0, axis=0) & (values[0] > 0) & (ratios > 0.05)
            if on_its_way.all():
                warnings.warn(
                    f"{name!r} rose in every outer step, from {values[0].mean():.2g} to "
                    f"{values[-1].mean():.2g}, and was still rising when the search ended: its "
                    "start is far too small for its steps. Start from 0.0, from where the first "
                    "step is `step_size`, with a `step_size` of the order of values that may be "
                    "right, or make more outer steps.",
                    RuntimeWarning,
                    stacklevel=4,
                )

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
        self.check_rate()
        unroll.model.check_trainable()
        steps, sound = self.inner_steps(outer_step, train, horizon)
        logs = _logs(model)
        if not sound:
            self.tell_of_divergence(outer_step, steps, horizon)
            missing = {f"val_{name}": np.nan for name in logs}
            return self.finish(outer_step, {**logs, **missing}, np.inf, np.nan)
        of_training = [(variable, variable.numpy()) for variable in model.metrics_variables]
        self.callbacks.on_test_begin()
        model.reset_metrics()
        model.stop_evaluating = False
        what = (
            validation.start(),
            validation.num_batches,
            self.validation_training,
            self.test_batch if self.validates_by_batch else None,
        )
        self.broken_off = steps < horizon  # By a callback, so it measured no hypergradients.
        if self.broken_off:
            loss, _ = unroll.step.validate(*what).loss_and_error()
        else:
            loss, values = unroll.validate(*what)
        self.taken[1].append(validation.num_batches)
        validation_logs = {**_logs(model), "loss": loss}
        self.callbacks.on_test_end(validation_logs)
        logs.update({f"val_{name}": value for name, value in validation_logs.items()})
        if self.broken_off:
            for variable, value in of_training:  # From where a resumed search goes on.
                variable.assign(value)
            self.callbacks.on_epoch_end(outer_step, logs)
            return logs
        self.warn_of_unknown(values)
        return self.finish(outer_step, logs, loss, values)

    @contextlib.contextmanager
    def test_batch(self, first, last):
        """What callbacks are told of a compiled call of the validation."""
        self.callbacks.on_test_batch_begin(first)
        yield
        self.callbacks.on_test_batch_end(last, _logs(self.model))

    def tell_of_divergence(self, outer_step, steps, horizon):
        """Warns of a run that is given up; raises when the data are at fault."""
        verdict = self.unroll.step.watch.verdict
        not_finite = _data.not_finite_in(self.data.train) if "finite" in verdict else []
        at_fault = f" The training data hold NaN or infinities in their {_and(not_finite)}."
        if not_finite and steps == 1:
            raise ValueError(f"The training loss of the first batch is not finite.{at_fault}")
        known = np.isfinite(self.search.best["loss"])
        warnings.warn(
            f"Outer step {outer_step + 1}: the training loss {verdict} at "
            f"inner step {steps} of {horizon}. This outer step is given up"
            + ("; the best so far is kept." if known else ".")
            + (at_fault if not_finite else ""),
            RuntimeWarning,
            stacklevel=5,
        )

    @contextlib.contextmanager
    def guarded(self, done):
        """Raises a `ValueError` for what callbacks assign within and that counts in the horizon."""
        within = self.guard and 0 < done < self.unroll.horizon
        before = self.guard.values() if within else None
        yield
        self.check_rate()
        if within:
            self.guard.check(before)

    def present_rate(self):
        """The learning rate that a callback could set, or nothing."""
        optimizer = self.optimizer.optimizer
        learned = "learning_rate" in self.optimizer.names
        if learned or _keras.has_learning_rate_schedule(optimizer):
            return None
        return float(optimizer.learning_rate)

    def check_rate(self):
        """Raises a `ValueError` when a callback has set the learning rate."""
        if self.present_rate() != self.rate:
            self.optimizer.optimizer.learning_rate = self.rate
            _checks.refuse_rate_setters("A callback sets")

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
            position = done % self.pass_length
            if position == 0:
                source = train.start()
                self.taken[0].append(0)
            count = min(self.steps_a_call, horizon - done, self.pass_length - position)
            with self.guarded(done):
                self.callbacks.on_train_batch_begin(done)
            start = time.monotonic()
            steps, sound = self.unroll.run(source, position, done, count)
            self.pace(time.monotonic() - start)
            done += steps
            self.taken[0][-1] += steps
            logs, state = _logs(self.model), self.state() if sound else []
            reached = done if state else 0
            self.search.within = Within(outer_step, reached, horizon, list(logs), state)
            # With `steps_per_execution` Keras counts a short call as whole.
            whole = sound and self.model.steps_per_execution > 1
            last = done - steps + self.steps_a_call if whole else done
            with self.guarded(done):
                self.callbacks.on_train_batch_end(last - 1, logs)
            if not sound or self.model.stop_training:
                return done, sound
        return done, True

    def state(self):
        """All variables of a run; none where it keeps more than that, see `Adjoint`."""
        if not self.unroll.carried:
            return []
        model = self.model
        every = [*model.variables, *model.metrics_variables, *self.unroll.model.outside]
        every += self.optimizer.variables
        return [*{id(each): each for each in every}.values(), *self.unroll.carried]

    def go_on_within(self, train):
        """Goes on with an interrupted outer step; `(inner steps done, the source)`."""
        begun, self.begun = self.begun, None
        if not begun or not begun.state:
            return 0, None
        for variable, array in zip(self.state(), begun.state):
            variable.assign(tf.cast(array, variable.dtype))
        passes, position = divmod(begun.inner_step, self.pass_length)
        self.taken[0] = [self.pass_length] * passes + ([position] if position else [])
        return begun.inner_step, train.replay(self.taken[0])

    def pace(self, seconds):
        """Chooses the number of steps of the next compiled call from the last one's time."""
        if not self.paces_itself:
            return
        if seconds < _SECONDS_A_CALL / 2:
            self.steps_a_call *= 2
        elif seconds > _SECONDS_A_CALL and self.steps_a_call > 1:
            self.steps_a_call //= 2

    def keep_best(self):
        """Leaves the best outer step's weights and schedules, and fresh slots."""
        best, optimizer = self.search.best, self.optimizer
        if np.isinf(best["loss"]):
            if not self.broken_off:
                self.model.set_weights(self.start_weights)
            optimizer.reset_slots()
        else:
            self.model.set_weights(best["weights"])
            optimizer.reset_slots()
            optimizer.begin_schedules(best["horizon"])
            if not np.array_equal(best["values"], optimizer.outer_state["values"]):
                # What was recorded last belongs to other values.
                optimizer.outer_state = {"values": best["values"], "loss": np.nan}


class _Guard:
    """Sees whether callbacks assign what the hypergradients of a run depend on."""

    def __init__(self, unroll):
        model = unroll.model.model
        state = {id(v) for v in tf.nest.flatten(unroll.step.variables.differentiable)}
        metrics = {id(variable) for variable in model.metrics_variables}
        watched = [v for v in (*model.variables, *unroll.model.outside) if id(v) not in metrics]
        # Forward mode is right about what carries no derivative, wherever it comes from.
        keeps_all = unroll.mode != "forward"
        self.variables = [v for v in watched if keeps_all or id(v.value) in state]

    def values(self):
        """The present values."""
        return [tf.identity(variable.value) for variable in self.variables]

    def check(self, before):
        """Raises a `ValueError` when the values are others now."""
        for variable, value in zip(self.variables, before):
            if not bool(tf.reduce_all(tf.equal(variable.value, value) | (value != value))):
                raise ValueError(
                    f"A callback assigns {variable.path!r} between the steps of a run, and "
                    "hypergradients know nothing of that. Let the model do it: a layer may count "
                    "steps and assign its own variables (`add_weight(trainable=False)`) in `call`. "
                    "For a variable that no step assigns, differentiation='forward' is right."
                )


class Restart:
    """Puts the start weights of an outer step in place."""

    def __init__(self, unroll, initial_weights, inputs):
        model = unroll.model.model
        self.stateless, self.start = unroll.model, None
        self.outside = [(variable, variable.numpy()) for variable in self.stateless.outside]
        trained = self.stateless.trained
        if callable(initial_weights):
            self.draw = lambda: _models.values_of(model, inputs, initial_weights, trained)
        elif initial_weights == "fresh":
            self.draw = lambda: _models.draw_weights(model, inputs, trained)
        elif initial_weights == "same":
            self.start = [variable.numpy() for variable in model.variables]
            self.draw = None
        else:
            raise ValueError(
                "`initial_weights` must be 'fresh', 'same' or a function that returns a new "
                f"model. Received: initial_weights={initial_weights!r}"
            )
        if self.draw is not None:
            values = self.draw()  # Whether it can be done is known before any training.
        optimizer = model.optimizer
        if (
            initial_weights == "fresh"
            and optimizer.search is None
            and not optimizer.iterations.numpy()
        ):
            _tell_of_pretrained(_models.pretrained(model, trained, values))

    def remember(self):
        """Takes the present weights for those to start from; where they are drawn anew, None."""
        self.outside = [(variable, variable.numpy()) for variable, _ in self.outside]
        if self.draw is None:
            self.start = [variable.numpy() for variable in self.stateless.model.variables]
        return self.start

    def __call__(self, seed):
        for variable, value in self.outside:
            variable.assign(value)
        if self.draw is None:
            for variable, value in zip(self.stateless.model.variables, self.start):
                variable.assign(value)
        else:
            with _models.seeded(seed):
                values = self.draw()
            for variable, value in zip(self.stateless.trained, values):
                variable.assign(value)


def _tell_of_pretrained(layers):
    if layers:
        named = ", ".join(map(repr, layers[:4])) + (", …" if len(layers) > 4 else "")
        warnings.warn(
            f"The weights of {named} are not as their initialisers draw them, so they seem to be "
            "trained already, and initial_weights='fresh' draws them anew in every outer step. "
            "Freeze what is to stay (`layer.trainable = False`), or pass initial_weights='same' to "
            "start every outer step from the present weights.",
            UserWarning,
            stacklevel=5,
        )


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


def _overrides(callbacks, hooks):
    """Whether a callback, other than what shows or saves progress here, has hooks of batches."""
    return any(
        name in vars(callback) or getattr(type(callback), name).__module__ not in _BY_CALL
        for callback in callbacks.callbacks
        for name in hooks
    )


_BY_CALL = tuple(
    kind.__module__
    for kind in (keras.callbacks.Callback, keras.callbacks.ProgbarLogger, Checkpoint)
)


def _and(names):
    return " and ".join(dict.fromkeys(names))


def _logs(model):
    return _as_numbers(model.get_metrics_result())


def _as_numbers(results):
    """Metrics as Python's numbers, those in dictionaries too; lists where they are no scalars."""
    numbers = {}
    for name, value in results.items():
        if isinstance(value, dict):
            numbers.update(_as_numbers(value))
        else:
            numbers[name] = keras.ops.convert_to_numpy(value).tolist()
    return numbers
