"""An outer rule within a time: its budget is what fits in the time that is left."""

import dataclasses
import time

import keras

from keras_fds.outer import Rule


@keras.saving.register_keras_serializable("trainers")
class InTime(Rule):
    """Lets a rule search within a time, so that it trains with its answer before the time is over.

    A search spends time on more than training: on tracing, on its rule, on files. So before every
    outer step the budget becomes what is spent, and the plain trainings that fit in the time left,
    less that of two more outer steps' other work. With so much time as the budget needs, nothing
    changes. Proposals depend on the machine.

    Args:
        rule: A `keras_fds.outer.Rule` that chooses horizons.
        seconds: The time, from when this object is made, or by `clock`.
        seconds_a_training: What a plain training takes.

    Attributes:
        clock: A function that returns the seconds so far.

    Example:

    >>> outer = InTime(keras_fds.outer.BayesianOptimization(), 60.0, seconds_a_training=4.0)
    """

    chooses_horizons = True

    def __init__(self, rule, seconds, seconds_a_training):
        self.rule, self.seconds, self.one = rule, seconds, seconds_a_training
        start = time.monotonic()
        self.clock = lambda: time.monotonic() - start
        self._first = None  # When the first outer step was proposed: all before it is done once.

    def propose(self, observations, problem):
        now, spent = self.clock(), problem.spent(observations)
        if self._first is None:
            self._first = now - spent * self.one
        other = max(0.0, now - self._first - spent * self.one) / max(1, len(observations))
        left = max(0.0, self.seconds - now - 2 * other) / self.one
        budget = min(problem.budget, spent + left)
        if not observations:  # Whatever the time, something is tried.
            budget = max(budget, 1.0)
        return self.rule.propose(observations, dataclasses.replace(problem, budget=budget))

    def is_best(self, observations, best, problem):
        return self.rule.is_best(observations, best, problem)

    def over_whole(self, coordinates, horizon, problem):
        return self.rule.over_whole(coordinates, horizon, problem)

    def bands(self, observations, problem):
        return self.rule.bands(observations, problem)

    def get_config(self):
        return {
            "rule": keras.saving.serialize_keras_object(self.rule),
            "seconds": self.seconds,
            "seconds_a_training": self.one,
        }

    @classmethod
    def from_config(cls, config):
        rule = keras.saving.deserialize_keras_object(config["rule"])
        return cls(**{**config, "rule": rule})
