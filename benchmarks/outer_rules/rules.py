"""Searches by the outer rules of keras_fds, driven as `keras_fds.fit` drives them."""

import keras
import numpy as np

import keras_fds
from benchmarks.outer_rules.inner_loop import HYPERGRADIENTS_COST
from benchmarks.outer_rules.searchers import Proposal, Searcher
from keras_fds.outer import Observation, Problem

OPTIMIZERS = {"sgd": keras_fds.optimizers.SGD, "adamw": keras.optimizers.AdamW}
# The second number is the optimizer's average, momentum or beta_1.
AVERAGES = {"sgd": "momentum", "adamw": "beta_1"}


class RuleSearcher(Searcher):
    """A search by an outer rule within a budget.

    Args:
        optimizer, horizon, seed: See `Searcher`.
        num_values: Of the learning rate, the average and the weight decay.
        interpolation: See `keras_fds.Hyperparameter`. Defaults to `"linear"`.
        budget: In plain trainings. Defaults to `12.0`.
        cost: Of an inner step with hypergradients, in plain ones. Defaults to reverse mode's.
        rule: The rule. Defaults to `keras_fds.outer.BayesianOptimization()`.
        workers: Number of outer steps that are made at the same time, in rounds. Defaults to `1`.
    """

    def __init__(
        self,
        optimizer,
        horizon,
        seed,
        num_values,
        interpolation="linear",
        budget=12.0,
        cost=HYPERGRADIENTS_COST,
        rule=None,
        workers=1,
    ):
        super().__init__(optimizer, horizon, seed)
        names = "learning_rate", AVERAGES[optimizer], "weight_decay"
        learned = keras_fds.HyperOptimizer(
            OPTIMIZERS[optimizer](),
            hyperparameters=[
                keras_fds.Hyperparameter(name, number, interpolation=interpolation)
                for name, number in zip(names, num_values)
            ],
            outer=rule,
        )
        self.rule, self.buckets = learned.outer, learned.buckets
        self.problem = Problem(
            self.buckets,
            learned.coordinates,
            horizon,
            budget=budget,
            cost=lambda horizon: cost,
            seed=seed,
        )
        self.best, self.workers = None, workers
        self.round, self.waited = [], 0.0  # What is left of the present one.

    def propose(self, observations):
        seen = [self.observation(*each) for each in observations]
        if seen and not seen[-1].broke_down and self.rule.is_best(seen, self.best, self.problem):
            self.best = len(seen) - 1
        if not self.round:
            self.round = self.rule.propose_several(seen, self.problem, self.workers)
            self.waited += max(map(self.problem.price, self.round), default=0.0)
        if not self.round:
            return None
        found = self.round.pop(0)
        schedule = self.schedule(found.coordinates, found.horizon)
        return Proposal(schedule, found.with_hypergradients, found.coordinates)

    def observation(self, proposal, measured):
        """What the rule sees: derivatives by coordinates, sums over buckets."""
        found = {"coordinates": proposal.values, "horizon": len(proposal.schedule)}
        if measured.broke_down:
            return Observation(**found, loss=None)
        hypergradients = None
        if proposal.with_hypergradients:
            by_values = self.buckets.sums(measured.hypergradients)
            hypergradients = by_values * self.buckets.derivatives(proposal.values)
        return Observation(**found, loss=measured.loss, hypergradients=hypergradients)

    def answer(self, observations):
        if self.best is None:
            return None
        return self.schedule(observations[self.best].proposal.values, self.horizon)

    def schedule(self, coordinates, horizon):
        """The schedule of bucket coordinates over a horizon."""
        values = self.buckets.join(self.buckets.values(coordinates))
        at_steps = self.buckets.at_steps(values, horizon)
        columns = [at_steps[name] for name in self.buckets.names]
        return np.stack(columns, axis=1).astype("float32")
