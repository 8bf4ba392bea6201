"""What a search costs: told before it begins, from a few measured steps, and while it runs."""

import contextlib
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_fds import _data
from keras_fds._adjoint import Adjoint

_SECONDS_OF_MEASURING = 0.1  # About that of each thing that is timed, or one step.
_FEW_TANGENTS = 3  # With which the modes cost about the same.


class Seconds(NamedTuple):
    """What was measured."""

    run: float  # An inner step, the mean over the horizon.
    sweep: float  # Going back over it, in adjoint mode.
    validation: float  # The validation of an outer step.

    def of_outer_step(self, horizon):
        """The time of an outer step."""
        return (self.run + self.sweep) * horizon + self.validation


class Cost(NamedTuple):
    """What the table tells; memory is in bytes."""

    horizons: list  # One an outer step.
    num_buckets: dict  # By the names of the hyperparameters.
    reason: str  # The mode, and why, a sentence.
    state: int
    tangents: int  # In forward mode.
    states: int  # That adjoint mode keeps.
    allowed: int  # For them.
    seconds: Seconds
    remedies: list  # What would make it cheaper.
    tracing: float = 0.0  # Seconds spent before the first outer step, most of it on tracing.

    @property
    def seconds_in_all(self):
        """The time of the whole search."""
        return self.tracing + sum(self.seconds.of_outer_step(n) for n in self.horizons)


# -------------------------------------------------------------------------------------- telling
def table(cost):
    """The cost of a search as a text of a few lines."""
    seconds, horizons = cost.seconds, cost.horizons
    mode, why = cost.reason.split(" mode", 1)
    learned = [f"{name} ({number})" for name, number in cost.num_buckets.items()]
    a_step = f"{duration(seconds.run + seconds.sweep)} an inner step"
    if seconds.sweep:
        a_step += f" (forward {duration(seconds.run)}, back {duration(seconds.sweep)})"
    each = [duration(seconds.of_outer_step(n)) for n in (horizons[0], horizons[-1])]
    rows = {
        "horizon": f"{_span(*(str(horizons[k]) for k in (0, -1)))} inner steps an outer step",
        "learned": f"{sum(cost.num_buckets.values())} values: {', '.join(learned)}",
        "mode": mode.lower() + why.rstrip("."),
        "memory": f"state {_mebibytes(cost.state)}{_memory_of_mode(cost)}",
        "measured": f"{a_step}, {_span(*each)} an outer step",
        "tracing": f"{duration(cost.tracing)}, once" if cost.tracing else "",
        "in all": f"{duration(cost.seconds_in_all)} for {len(horizons)} outer steps",
        "to cut it": ", ".join(cost.remedies),
    }
    if not cost.num_buckets:
        rows["learned"] = "nothing"
    lines = (f"  {name.ljust(9)}  {text}" for name, text in rows.items() if text)
    return "\n".join(["The cost of this search:", *lines])


def _memory_of_mode(cost):
    if cost.states:
        kept, allowed = cost.states * cost.state, _mebibytes(cost.allowed)
        return f", {cost.states} states kept {_mebibytes(kept)} of {allowed} allowed"
    return f", tangents {_mebibytes(cost.tangents)}" if cost.tangents else ""


def _span(first, last):
    return first if first == last else f"{first} to {last}"


def _mebibytes(size):
    return f"{size / 2**20:.3g} MiB" if size < 1000 * 2**20 else f"{size / 2**30:.3g} GiB"


def duration(seconds):
    """A time to two digits or so, in the unit that suits it."""
    if seconds < 100:
        number, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
        return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def remedies(unroll, differentiation, horizons, steps_per_epoch):
    """What would make a search cheaper, as far as it applies."""
    optimizer, backward = unroll.hyper_optimizer, isinstance(unroll, Adjoint)
    hyperparameters = optimizer.hyperparameters
    few = unroll.num_tangents <= _FEW_TANGENTS
    forward_only = optimizer.pruning or optimizer.tangent_clipvalue is not None
    found = []
    if not backward and unroll.num_tangents > len(hyperparameters):
        found.append("fewer buckets")
    if differentiation != "auto" and few == backward and hyperparameters and not forward_only:
        found.append("differentiation='auto'")
    if backward and not unroll.states_kept(max(horizons))[1]:
        found.append("a greater `adjoint_memory`")
    found.append("fewer `epochs`" if max(horizons) > steps_per_epoch else "fewer `steps_per_epoch`")
    return [*found, "fewer `outer_steps`"] if len(horizons) > 1 else found


# ------------------------------------------------------------------------------------ measuring
def cost_of(unroll, reason, remedies, horizons, seconds):
    """The `Cost` of a search of which the `Seconds` were measured."""
    horizon, backward = max(horizons), isinstance(unroll, Adjoint)
    return Cost(
        horizons,
        {h.name: h.num_buckets for h in unroll.hyper_optimizer.hyperparameters},
        reason,
        _data.size_in_bytes(unroll.step.variables),
        0 if backward else _data.size_in_bytes(unroll.tangents),
        unroll.states_kept(horizon)[0] if backward else 0,
        unroll.memory if backward else 0,
        seconds,
        remedies,
    )


def measure(unroll, batches, horizon, validation_training=False):
    """The `Seconds` of a search; nothing has changed afterwards, but that it is compiled.

    Args:
        unroll: An `Unroll` or an `Adjoint`.
        batches: `(train, validation)` batches like those of the search.
        horizon: Number of inner steps.
        validation_training: Whether the model is in training mode for the validation loss.
    """
    train, validation = batches
    source = train.start()

    def run(first, count):
        return unroll.run(source, 0, first, count)[0]

    def validate():
        unroll.validate(validation.start(), 1, validation_training)

    with _unchanged(unroll, horizon):
        validate()  # The first call compiles.
        of_validation = _least(validate)
        most = min(horizon, train.num_batches)
        if isinstance(unroll, Adjoint):
            run, sweep = _both_ways(unroll, run, validate, of_validation, most)
        else:
            run, sweep = _forward(unroll, run, most), 0.0
    return Seconds(run, sweep, of_validation * validation.num_batches)


def _forward(unroll, run, most):
    """The time of a step: between few moving tangents and all, it grows in proportion."""
    horizon = unroll.horizon
    run(horizon - 1, 1)
    count = _steps_to_time(_timed(lambda: run(horizon - 1, 1)), most)
    moving = _moving_tangents(unroll.hyper_optimizer, horizon)
    firsts = 0, horizon - count
    numbers = [moving[first : first + count].mean() for first in firsts]
    calls = 2 if count > 1 else 1
    early, late = (_least(lambda f=f: run(f, count), calls) / count for f in firsts)
    return float(np.interp(moving.mean(), numbers, [min(early, late), late]))


def _both_ways(unroll, run, validate, of_validation, most):
    """The times of a step and of its sweep: by what a validation takes longer than of nothing."""

    def there(count):
        unroll.reset(unroll.horizon)  # Which is done once an outer step, so it is not timed.
        return _timed(lambda: run(0, count))

    there(1)
    validate()
    most = most if unroll.keeps_all else min(most, unroll.stride)
    count = min(most, max(2, _steps_to_time(there(1), most)))
    there(count)
    validate()  # Another number of steps compiles anew.
    of_run = min(there(count) for _ in range(2))
    of_sweep = _least(validate) - of_validation
    return of_run / count, max(of_sweep, 0.0) / count


def _steps_to_time(seconds_a_step, most):
    return max(1, min(most, int(_SECONDS_OF_MEASURING / seconds_a_step)))


def _least(function, calls=2):
    return min(_timed(function) for _ in range(calls))


def _moving_tangents(optimizer, horizon):
    """The number of tangents that move at every step, `[horizon]`."""
    steps, moving = np.arange(horizon), np.zeros(horizon)
    for hyperparameter in optimizer.hyperparameters:
        is_open = hyperparameter.bucket(steps, horizon) + 1
        if optimizer.pruning:
            is_open = is_open * optimizer.pruning.keeps(hyperparameter, steps, horizon)
        moving += is_open
    return moving


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextlib.contextmanager
def _unchanged(unroll, horizon):
    """Begins a run, and afterwards puts model, optimizer and unroll back where they were."""
    model = unroll.model.model
    variables = model.variables + unroll.model.outside + model.optimizer.variables
    saved = [tf.identity(variable) for variable in variables]
    try:
        unroll.reset(horizon)
        yield
    finally:
        unroll.reset(horizon)
        model.reset_metrics()
        for variable, value in zip(variables, saved):
            variable.assign(value)


# ------------------------------------------------------------------------------ while it runs
class Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar of an outer step, under a line that says how long the search takes yet.

    Before the first outer step it measures and tells what the search will cost; by that goes the
    time left at first. Later it goes by the last outer step, but not by the first, which compiles.

    Args:
        horizons: Numbers of inner steps, one an outer step.
        measured: Arguments of `measure`.
        told: The first arguments of `cost_of`.
        begin: When the search was asked for, by `time.monotonic`. Defaults to now.
    """

    def __init__(self, horizons, measured, told, begin=None):
        super().__init__()
        self.horizons, self.measured, self.told = horizons, measured, told
        self.begin = time.monotonic() if begin is None else begin

    def set_params(self, params):
        super().set_params(params)
        self.epochs = 1  # Keras's own line is not printed.

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        to_come = self.horizons[len(self.model.optimizer.search.records) :]
        if to_come:
            seconds = measure(*self.measured)
            tracing = time.monotonic() - self.begin
            print(table(cost_of(*self.told, to_come, seconds)._replace(tracing=tracing)))
            self.seconds_a_step = seconds.of_outer_step(max(self.horizons)) / max(self.horizons)
            self.finished = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.monotonic()
        left = duration(self.seconds_a_step * sum(self.horizons[epoch:]))
        print(f"Outer step {epoch + 1}/{len(self.horizons)}, about {left} left", flush=True)
        super().on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        if self.finished and self.seen == self.horizons[epoch]:
            self.seconds_a_step = (time.monotonic() - self.start) / self.seen
        self.finished += 1
