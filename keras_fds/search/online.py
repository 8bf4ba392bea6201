"""The loop of `fit_online`: Keras's epochs, in which the hyperparameters move."""

import time
import warnings

import numpy as np

from keras_fds.data import not_finite_in, replayable
from keras_fds.differentiation import OnlineSource
from keras_fds.functional import forget_compiled
from keras_fds.search.calls import Pace, all_finite, logs_of, validate
from keras_fds.search.state import BROKE_DOWN, MEASURED, Best, Record, Search

# So many values the schedules hold at most: more are means over as many equal buckets.
MOST_VALUES = 1000


class OnlineLoop:
    """Trains a model in a bound `Online` mode.

    `objective` is the loss that has the hypergradients, `"val_loss"` or `"loss"`.
    """

    def __init__(self, mode, data, objective, callbacks, validation_freq, divergence_factor):
        self.mode, self.data, self.objective = mode, data, objective
        self.callbacks, self.model = callbacks, callbacks.model
        self.optimizer = self.model.optimizer
        self.validation_freq = validation_freq
        self.divergence_factor = divergence_factor
        self.pace = Pace(self.model, callbacks, mode.replicas)
        self.held_out = ()  # A source of the validation batches in turn, and their number.
        self.done = 0  # Inner steps.
        self.ok = True  # Whether training is not given up.

    def run(self, initial_epoch, epochs, seed):
        """Trains; returns the history. Afterwards the optimizer holds what every step has used."""
        model, logs = self.model, {}
        model.stop_training, model._initial_epoch = False, None
        self.optimizer.search = Search(seed, self.mode.name)
        self.optimizer.moves_online = True
        shuffling, splitting, _ = self.optimizer.search.randomness(0)
        train, self.validation = self.data.draw(shuffling, splitting)
        self.begin(initial_epoch, epochs)
        try:
            self.callbacks.on_train_begin()
            if model._initial_epoch:  # A callback resumes there.
                initial_epoch = model._initial_epoch
                self.begin(initial_epoch, epochs)
            for epoch in range(initial_epoch, epochs):
                logs = self.epoch(epoch, train)
                if model.stop_training:
                    break
        finally:
            self.optimizer.moves_online = False
            if self.done:
                self.hold_schedules()
                self.record(logs)
            self.mode.release()
        self.callbacks.on_train_end(logs)
        return model.history

    def begin(self, initial_epoch, epochs):
        """Begins a run over some epochs. As in `model.fit`, the optimizer's slots stay."""
        horizon = max(1, self.data.num_batches * (epochs - initial_epoch))
        self.mode.reset(horizon, self.divergence_factor, fresh_slots=False)
        self.source = None
        if self.objective == "val_loss":
            self.held_out = replayable(self.validation), self.validation.num_batches

    def epoch(self, epoch, train):
        """Trains for one epoch, validates, and calls callbacks; returns the logs."""
        model, optimizer = self.model, self.optimizer
        model.reset_metrics()
        self.callbacks.on_epoch_begin(epoch)
        self.mode.check_trainable()
        self.ok = self.inner_steps(train)
        logs = logs_of(model)
        not_finite = not_finite_in(self.data.train) if self.weights_are_lost() else []
        if not_finite:
            raise ValueError(
                "Training leads to weights that are not finite. The training data hold NaN or "
                f"infinities in their {' and '.join(not_finite)}."
            )
        if not self.ok:
            self.tell_of_break_down(epoch)
            model.stop_training = True
        elif self.validation is not None and self.validates(epoch):
            _, _, found = validate(self.mode, self.validation, False, self.callbacks)
            logs.update(found)
        logs.update({name: float(value) for name, (value,) in optimizer.values.items()})
        self.callbacks.on_epoch_end(epoch, logs)
        return logs

    def inner_steps(self, train):
        """Trains for one epoch; whether the run was not given up."""
        number, position = self.data.num_batches, 0
        while position < number:
            consumed = self.done % train.pass_length
            if consumed == 0:
                self.source = OnlineSource.of(train.start(), *self.held_out)
            count = min(self.pace.steps, number - position, train.pass_length - consumed)
            self.callbacks.on_train_batch_begin(position)
            start = time.monotonic()
            steps, ok = self.mode.run(self.source, consumed, self.done, count)
            self.pace.learn(time.monotonic() - start)
            self.done += steps
            position += steps
            # With `steps_per_execution` Keras counts a short call as whole.
            whole = ok and self.model.steps_per_execution > 1
            last = position - steps + (self.pace.steps if whole else steps)
            self.callbacks.on_train_batch_end(last - 1, logs_of(self.model))
            if not ok or self.model.stop_training:
                return ok
        return True

    def weights_are_lost(self):
        """Whether a run that was not given up has weights that are not finite."""
        return self.ok and not all_finite(self.model.get_weights())

    def validates(self, epoch):
        """Whether an epoch ends with a validation, as in `model.fit`."""
        if isinstance(self.validation_freq, int):
            return (epoch + 1) % self.validation_freq == 0
        return epoch + 1 in self.validation_freq

    def hold_schedules(self):
        """Lets the optimizer hold the values that the steps have used."""
        slopes = self.mode.slopes.numpy()[: self.done]
        unknown = [n for n, s in zip(self.optimizer.names, slopes.T) if not np.isfinite(s).all()]
        if unknown and self.ok:
            batches = self.data.train if self.objective == "loss" else self.validation
            not_finite = not_finite_in(batches)
            remedy = "Take a smaller `tangent_decay`, or smaller start values."
            if not_finite:
                remedy = f"The data hold NaN or infinities in their {' and '.join(not_finite)}."
            warnings.warn(
                f"Some hypergradients of {', '.join(map(repr, unknown))} are not finite, so they "
                f"moved nothing. {remedy}",
                RuntimeWarning,
                stacklevel=4,
            )
        used = self.mode.values.numpy()[: self.done]
        number = min(self.done, MOST_VALUES)
        bucket = number * np.arange(self.done) // self.done
        means = [np.bincount(bucket, of_steps) / np.bincount(bucket) for of_steps in used.T]
        self.optimizer.divide(dict(zip(self.optimizer.names, means)))
        self.optimizer.begin_schedules(self.done)
        forget_compiled(self.model)

    def record(self, logs):
        """Records the training as a search of one outer step, for callbacks that write files."""
        optimizer, search, names = self.optimizer, self.optimizer.search, self.optimizer.names
        logs = {name: value for name, value in sorted(logs.items()) if name not in names}
        record = Record(
            outer_step=1,
            horizon=self.done,
            status=MEASURED if self.ok else BROKE_DOWN,
            outcome="best" if self.ok else "rejected",
            logs=logs,
            values={name: values.tolist() for name, values in optimizer.values.items()},
            hypergradients=None,
            val_loss_error=None,
            spent=self.mode.cost(self.done),
        )
        search.records.append(record)
        loss = logs.get("val_loss", logs.get("loss"))
        weights = self.model.get_weights()
        search.best = Best(loss, 0, self.done, optimizer.coordinates, weights) if self.ok else None

    def tell_of_break_down(self, epoch):
        """Warns of a training that is given up; raises when the data are at fault."""
        reason = self.mode.break_down_reason
        not_finite = not_finite_in(self.data.train) if "finite" in reason else []
        at_fault = f" The training data hold NaN or infinities in their {' and '.join(not_finite)}."
        if not_finite and self.done == 1:
            raise ValueError(f"The training loss of the first batch is not finite.{at_fault}")
        warnings.warn(
            f"Epoch {epoch + 1}: the training loss {reason} at inner step {self.done}. Training "
            "ends. Start from smaller values, or let the hyperparameters move more slowly "
            "(`outer_optimizer`, or their `step_size`)." + (at_fault if not_finite else ""),
            RuntimeWarning,
            stacklevel=5,
        )
