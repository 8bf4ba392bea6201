"""Searches by the outer rules of keras_fds, driven as `keras_fds.fit` drives them."""

import keras
import numpy as np

import keras_fds
from benchmarks.outer_rules.searchers import Proposal, Searcher

FASHION_PARTS = (0.04, 0.04, 0.1, 0.1, 0.5, 1, 1, 1, 1)  # configs/fashion_mnist_lenet.py
DIGITS_PARTS = (2 / 30, 5 / 30, 10 / 30, 10 / 30, 1, 1, 1, 1, 1)  # configs/digits.py
DEFAULT_PARTS = (1,) * 10  # The defaults of `epochs` and `outer_steps` of `fit`.

OPTIMIZERS = {"sgd": keras_fds.optimizers.SGD, "adamw": keras.optimizers.AdamW}
# The second number is the optimizer's average, momentum or beta_1.
AVERAGES = {"sgd": "momentum", "adamw": "beta_1"}
# No config has an AdamW yet. Its first step of the learning rate is a tenth of SGD's, that of the
# decoupled decay ten times SGD's, as the values usually are.
FIRST_STEPS = {"sgd": (0.02, 0.5, 2e-3), "adamw": (2e-3, 0.5, 2e-2)}


def many_buckets(optimizer):
    """The hyperparameters of configs/fashion_mnist_lenet.py."""
    rate, average, weight_decay = FIRST_STEPS[optimizer]
    Hyperparameter = keras_fds.Hyperparameter
    return [
        Hyperparameter("learning_rate", num_buckets=28, step_size=rate),
        Hyperparameter(AVERAGES[optimizer], num_buckets=7, step_size=average, smoothing_window=1.0),
        Hyperparameter("weight_decay", num_buckets=7, step_size=weight_decay, smoothing_window=1.0),
    ]


def few_buckets(optimizer):
    """The hyperparameters of configs/digits.py, with the first steps of the other config."""
    rate, average, weight_decay = FIRST_STEPS[optimizer]
    return [
        keras_fds.Hyperparameter("learning_rate", num_buckets=7, step_size=rate),
        keras_fds.Hyperparameter(AVERAGES[optimizer], step_size=average),
        keras_fds.Hyperparameter("weight_decay", step_size=weight_decay),
    ]


def default_buckets(optimizer):
    """Seven learning rates, an average and a weight decay, all with default arguments."""
    return [
        keras_fds.Hyperparameter("learning_rate", num_buckets=7),
        keras_fds.Hyperparameter(AVERAGES[optimizer]),
        keras_fds.Hyperparameter("weight_decay"),
    ]


class RuleSearcher(Searcher):
    """A search by an outer rule.

    Args:
        optimizer, horizon, seed: See `Searcher`.
        hyperparameters: A function of the optimizer's name, a list of `Hyperparameter`.
        parts: The parts of the horizon that the outer steps train over.
        rule: A function that makes the rule. Defaults to `TrustRegionDescent`.
    """

    def __init__(
        self,
        optimizer,
        horizon,
        seed,
        hyperparameters,
        parts,
        rule=keras_fds.outer.TrustRegionDescent,
    ):
        super().__init__(optimizer, horizon, seed)
        learned = keras_fds.HyperOptimizer(
            OPTIMIZERS[optimizer](), hyperparameters=hyperparameters(optimizer), outer=rule()
        )
        self.rule, self.buckets = learned.outer, learned.buckets
        self.horizons = [max(10, round(part * horizon)) for part in parts]
        self.state = self.rule.initial_state(
            self.buckets.initial_coordinates(), self.buckets.first_steps()
        )
        self.best = None
        self.seen = 0

    def propose(self, observations):
        for observation in observations[self.seen :]:
            self.update(observation)
        moved = self.seen == 0 or (observations[-1].proposal.values != self.state["values"]).any()
        if self.seen == len(self.horizons) or self.has_converged(observations):
            return None
        if not moved and self.best is None:
            return None
        coordinates = self.state["values"]
        schedule = self.schedule(coordinates, self.horizons[self.seen])
        return Proposal(schedule, with_hypergradients=True, values=coordinates)

    def update(self, observation):
        """Lets the rule see a measurement; keeps what it calls the best."""
        proposal, measured = observation
        measurement = self.measurement(proposal, measured)
        ranges = self.buckets.ranges
        if self.rule.classify(self.state, measurement, ranges) == "best":
            self.best = proposal.values
        self.state = self.rule.update(self.state, measurement, ranges)
        self.seen += 1

    def measurement(self, proposal, measured):
        """What the rule sees: derivatives by coordinates, sums over buckets."""
        horizon = len(proposal.schedule)
        if measured.broke_down:
            return keras_fds.outer.Measurement.of_break_down(self.buckets.size, horizon)
        by_values = self.buckets.sums(measured.hypergradients)
        return keras_fds.outer.Measurement(
            hypergradients=by_values * self.buckets.derivatives(proposal.values),
            loss=measured.loss,
            horizon=horizon,
            loss_error=measured.error,
        )

    def has_converged(self, observations):
        """Whether `fit` would end the search before another outer step.

        All scales here are linear, so coordinates are the values that the rule compares.
        """
        if not observations or len(set(self.horizons[self.seen - 1 :])) > 1:
            return False
        ranges, values = self.buckets.ranges, self.state["values"]
        at_ends = (values <= ranges.minimum) | (values >= ranges.maximum)
        arrived = at_ends & (values != observations[-1].proposal.values)
        return not arrived.any() and self.rule.converged(self.state, ranges)

    def answer(self, observations):
        return None if self.best is None else self.schedule(self.best, self.horizon)

    def schedule(self, coordinates, horizon):
        """The schedule of bucket coordinates over a horizon."""
        values = self.buckets.join(self.buckets.values(coordinates))
        at_steps = self.buckets.at_steps(values, horizon)
        columns = [at_steps[name] for name in self.buckets.names]
        return np.stack(columns, axis=1).astype("float32")
