"""The cost of a search, estimated from a few measured steps before it begins."""

import contextlib
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_SECONDS_OF_MEASURING = 0.1  # About so long for each measurement, but at least one step.
VALIDATIONS_A_TRAINING = 3  # Outer steps within a budget, for each plain training of it.
_FEW_TANGENTS = 3  # With three tangents both modes cost about the same.


class Seconds(NamedTuple):
    """Measured times."""

    run: float  # Of an inner step, the mean over the horizon.
    sweep: float  # Of going back over an inner step, in reverse mode.
    validation: float  # Of the validation of an outer step.

    def of_outer_step(self, horizon):
        """The time of an outer step."""
        return (self.run + self.sweep) * horizon + self.validation


class Cost(NamedTuple):
    """The contents of the table of costs; memory is in bytes."""

    horizons: list  # Of the outer steps to come; within a budget, the one of the schedules.
    budget: float | None  # Plain trainings to come, or `None`.
    num_values: dict  # By the names of the hyperparameters.
    reason: str  # The mode and the reason for it, a sentence.
    memory: list  # `(what, bytes)` pairs.
    seconds: Seconds
    remedies: list  # What would make the search cheaper.
    tracing: float = 0.0  # Seconds spent before the first outer step, most of it on tracing.
    at_a_time: int = 1  # Outer steps that workers make at the same time.

    @property
    def seconds_in_all(self):
        """The time of the whole search."""
        if self.budget is None:
            return self.tracing + sum(self.seconds.of_outer_step(n) for n in self.horizons)
        validations = VALIDATIONS_A_TRAINING * self.seconds.validation
        return self.tracing + self.budget * (self.seconds.run * self.horizons[0] + validations)


# -------------------------------------------------------------------------------------- telling
def cost_table(cost):
    """The table of a search's costs, as text."""
    seconds, horizons = cost.seconds, cost.horizons
    mode, why = cost.reason.split(" mode", 1)
    learned = [f"{name} ({number})" for name, number in cost.num_values.items()]
    a_step = f"{duration(seconds.run + seconds.sweep)} an inner step"
    if seconds.sweep:
        a_step += f" (forward {duration(seconds.run)}, back {duration(seconds.sweep)})"
    per = " per outer step" if cost.budget is None else ", in most outer steps fewer"
    first, last = (duration(seconds.of_outer_step(n)) for n in (horizons[0], horizons[-1]))
    unit, whole = "an outer step", f"{len(horizons)} outer steps"
    if cost.budget is not None:
        unit, whole = "a plain training", f"{cost.budget:.3g} plain trainings"
    rows = {
        "horizon": f"{_span(str(horizons[0]), str(horizons[-1]))} inner steps{per}",
        "learned": f"{sum(cost.num_values.values())} values: {', '.join(learned)}",
        "mode": mode.lower() + why.rstrip("."),
        "memory": ", ".join(f"{what} {_mebibytes(size)}" for what, size in cost.memory),
        "measured": f"{a_step}, {_span(first, last)} {unit}",
        "tracing": f"{duration(cost.tracing)}, once" if cost.tracing else "",
        "in all": f"{duration(cost.seconds_in_all)} for {whole}",
        "workers": "",
        "to cut it": ", ".join(cost.remedies),
    }
    if cost.at_a_time > 1:
        least = cost.tracing + (cost.seconds_in_all - cost.tracing) / cost.at_a_time
        rows["workers"] = f"{cost.at_a_time} make outer steps at once: at least {duration(least)}"
    if not cost.num_values:
        rows["learned"] = "nothing"
    lines = (f"  {name.ljust(9)}  {text}" for name, text in rows.items() if text)
    return "\n".join(["The cost of this search:", *lines])


def _span(first, last):
    return first if first == last else f"{first} to {last}"


def _mebibytes(size):
    return f"{size / 2**20:.3g} MiB" if size < 1000 * 2**20 else f"{size / 2**30:.3g} GiB"


def duration(seconds):
    """A time as text, to about two digits, in a suitable unit."""
    if seconds < 100:
        number, unit = (seconds, "s") if seconds >= 1 else (1000 * seconds, "ms")
        return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def ways_to_cut(mode, reason, horizons, budget, steps_per_epoch):
    """What would make this search cheaper, a list; see `cost_of`."""
    fewer = "fewer `epochs`" if max(horizons) > steps_per_epoch else "fewer `steps_per_epoch`"
    if budget is not None:
        return [fewer, "a smaller `budget`"] if budget > 1 else [fewer]
    hyperparameters = mode.buckets.hyperparameters
    many_buckets = mode.buckets.size > len(hyperparameters)
    found = []
    if many_buckets and not mode.goes_back:
        found.append("fewer buckets")
    if "as asked for" in reason and hyperparameters:
        few = mode.buckets.size <= _FEW_TANGENTS
        if few == mode.goes_back:
            found.append("differentiation='auto'")
    if mode.goes_back and mode.cost(max(horizons)) > mode.cost(1):
        found.append("a greater `reverse_memory`")
    found.append(fewer)
    return [*found, "fewer `outer_steps`"] if len(horizons) > 1 else found


# ------------------------------------------------------------------------------------ measuring
def cost_of(mode, reason, horizons, budget, steps_per_epoch, seconds):
    """The `Cost` of what is to come of a search in a bound mode; see `Cost`."""
    return Cost(
        horizons=horizons,
        budget=budget,
        num_values={h.name: h.num_buckets * h.size for h in mode.buckets.hyperparameters},
        reason=reason,
        memory=mode.memory(max(horizons)),
        seconds=seconds,
        remedies=ways_to_cut(mode, reason, horizons, budget, steps_per_epoch),
    )


def measure_seconds(model, mode, batches, horizon, validation_training=False):
    """The `Seconds` of a search in a bound mode with `(train, validation)` batches like these.

    Nothing has changed afterwards, but that it is compiled.
    """
    train, validation = batches
    source = train.start()
    most = min(horizon, train.num_batches)

    def run(first, count):
        mode.run(source, 0, first, count)

    def validate():
        mode.validate(validation.start(), 1, validation_training)

    def there_and_back(first, count):
        """`(seconds of the steps, seconds of their hypergradients)`."""
        mode.reset(horizon)  # Done once per outer step, so it is not timed.
        there = _timed(lambda: run(first, count))
        validate()
        return there, _timed(mode.hypergradients)

    with _unchanged(model, mode, horizon):
        validate()  # The first call compiles.
        of_validation = min(_timed(validate) for _ in range(2))
        # The first calls trace. Then the steps with the least and with the most work are timed.
        there_and_back(horizon - 1, 1)
        seconds, _ = there_and_back(horizon - 1, 1)
        seconds = mode.replicas.agreed(seconds)  # All processes make the same calls.
        count = max(1, min(most, int(_SECONDS_OF_MEASURING / seconds)))
        work = mode.work(horizon)
        firsts = [0] if work[0] == work[-1] else [0, horizon - count]
        if count > 1:
            there_and_back(firsts[-1], count)
        measured = [
            np.min([there_and_back(first, count) for _ in range(2)], axis=0) / count
            for first in firsts
        ]
    (early, sweep), (late, _) = measured[0], measured[-1]
    between = [work[first : first + count].mean() for first in firsts]
    of_run = np.interp(work.mean(), between, [min(early, late), late][-len(firsts) :])
    if not mode.goes_back:
        sweep = 0.0  # Only products with the validation gradient, once per outer step.
    return Seconds(float(of_run), float(sweep), of_validation * validation.num_batches)


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextlib.contextmanager
def _unchanged(model, mode, horizon):
    """Begins a run, and afterwards puts model, optimizer and mode back where they were."""
    variables = [*model.variables, *mode.outside_variables, *model.optimizer.variables]
    saved = [tf.identity(variable) for variable in variables]
    try:
        mode.reset(horizon)
        yield
    finally:
        mode.reset(horizon)
        model.reset_metrics()
        for variable, value in zip(variables, saved):
            variable.assign(value)
