"""Prints what a search will cost, then the remaining time."""

import time

import keras
import numpy as np

from keras_fds.differentiation import Replicas
from keras_fds.search import cost_of, cost_table, duration, measure_seconds

_AT_AN_END = 0.02  # Of the range.
_HARDLY_MATTERS = 0.5  # Bands as wide as this part of the range that is searched.


def told_bands(optimizer):
    """A line for every hyperparameter: its values, how sure they are, and whether they matter.

    Of a vector it tells how the values are spread.
    """
    lines, bands, values = [], optimizer.bands, optimizer.values
    for h in optimizer.hyperparameters:
        if h.is_vector and h.size:
            least, low, high, most = np.percentile(values[h.name], [0, 25, 75, 100])
            lines.append(
                f"  {h.name}  {values[h.name].size} values from {least:.2g} to {most:.2g}, half of "
                f"them from {low:.2g} to {high:.2g}"
            )
        if h.name not in bands:
            continue
        below, above = bands[h.name]
        _, low, high = h.searched
        width = np.mean(h.to_searched(above) - h.to_searched(below)) / (high - low)
        ends = [f"{values[h.name][k]:.2g} ({below[k]:.2g} to {above[k]:.2g})" for k in (0, -1)]
        text = " … ".join(ends if h.num_buckets > 1 else ends[:1])
        remark = "; hardly matters" if width > _HARDLY_MATTERS else ""
        with np.errstate(divide="ignore"):
            part = (np.mean(h.to_searched(values[h.name])) - low) / (high - low)
        if not remark and h.num_buckets == 1 and not _AT_AN_END <= part <= 1 - _AT_AN_END:
            remark = "; at an end of the range that is searched: give it a wider one"
        lines.append(f"  {h.name}  {text}{remark}")
    return lines


class SearchProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar of an outer step, under a line with the remaining time.

    Before the first outer step it measures a few steps and prints what the search will cost. The
    remaining time is estimated from that at first, then from the last outer step that was long
    enough. (The first one does not count: it includes compilation.)

    `plain` is the mode of plain trainings, for a search within a budget, else `None`. `batches` are
    `(train, validation)` batches like those of the search. `begin` is when `fit` was called, by
    `time.monotonic`, `at_a_time` the number of outer steps that workers make at the same time.
    """

    acts_between_calls = True

    def __init__(
        self,
        mode,
        plain,
        reason,
        batches,
        problem,
        steps_per_epoch,
        validation_training=False,
        begin=None,
        at_a_time=1,
    ):
        super().__init__()
        self.mode, self.plain, self.reason, self.batches = mode, plain, reason, batches
        self.problem, self.steps_per_epoch = problem, steps_per_epoch
        self.validation_training = validation_training
        self.begin = time.monotonic() if begin is None else begin
        self.at_a_time = at_a_time

    @property
    def tells(self):
        """Whether it prints: of several workers only the chief does."""
        return Replicas.of(self.model).is_chief

    def set_params(self, params):
        super().set_params(params)
        self.epochs = 1  # Keras's own line is not printed.

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        problem, records = self.problem, self.model.optimizer.search.records
        horizons, budget = problem.horizons, problem.budget
        to_come = horizons[len(records) :] if horizons else [problem.horizon]
        if budget is not None:
            budget -= records[-1].spent if records else 0.0
        if to_come and (budget is None or budget >= 1):
            longest = max(horizons or to_come)
            seconds = measure_seconds(
                self.model, self.plain or self.mode, self.batches, longest, self.validation_training
            )
            cost = cost_of(self.mode, self.reason, to_come, budget, self.steps_per_epoch, seconds)
            cost = cost._replace(tracing=time.monotonic() - self.begin, at_a_time=self.at_a_time)
            if self.tells:
                print(cost_table(cost))
            # Of an inner step of the horizons to come, or of a plain training of the budget.
            self.seconds_a_unit = seconds.of_outer_step(longest) / longest
            if budget is not None:
                self.seconds_a_unit = cost.seconds_in_all / budget
            self.finished, self.units, self.start = 0, 0.0, None

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        lines = told_bands(self.model.optimizer)
        if lines and self.tells:
            has_bands = bool(self.model.optimizer.bands)
            sure = ", and one standard deviation of what is best" if has_bands else ""
            print("\n".join([f"Learned{sure}:", *lines]))

    def on_epoch_begin(self, epoch, logs=None):
        if self.start is None:
            self.start = time.monotonic()
        problem, records = self.problem, self.model.optimizer.search.records
        if problem.horizons:
            left = duration(self.seconds_a_unit * sum(problem.horizons[epoch:]))
            place = f"{epoch + 1}/{len(problem.horizons)}"
        else:
            spent = records[-1].spent if records else 0.0
            left = duration(self.seconds_a_unit * max(0.0, problem.budget - spent))
            place = f"{epoch + 1}, {spent:.1f} of {problem.budget:.3g} plain trainings spent"
        if self.tells:
            print(f"Outer step {place}, about {left} left", flush=True)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        problem, search = self.problem, self.model.optimizer.search
        units, records = 0.0, search.records
        # Nothing is seen of what another worker trains.
        if problem.horizons and self.finished and self.seen in (0, problem.horizons[epoch]):
            units = problem.horizons[epoch]
        elif not problem.horizons and records:
            units = records[-1].spent - (records[-2].spent if len(records) > 1 else 0.0)
            units *= units >= 0.3  # Shorter ones are mostly tracing and validation.
        self.units += units
        self.finished += 1
        if search.before_round is None:  # All that is made at the same time has ended.
            if self.units:
                self.seconds_a_unit = (time.monotonic() - self.start) / self.units
            self.units, self.start = 0.0, None
