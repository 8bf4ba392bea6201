"""Optuna's samplers on three numbers of a cosine decay, or on the values that a rule learns."""

import math
import warnings

import numpy as np
import optuna

from benchmarks.outer_rules.searchers import Proposal, Searcher, best_of, between_knots, decay

# Ranges of the learning rate, 1 - momentum (or beta_1) and the weight decay, on logarithmic scales:
# what an expert would choose.
RANGES = {
    "sgd": ((3e-3, 1.0), (5e-3, 1.0), (1e-5, 1e-2)),
    "adamw": ((3e-4, 0.1), (1e-2, 1.0), (1e-3, 1.0)),
}
BROKEN_DOWN = 10.0  # The loss that a sampler gets for a training that broke down.


class BlackBox(Searcher):
    """An Optuna study; every trial is a plain training over the whole horizon.

    Args:
        optimizer, horizon, seed: See `Searcher`.
        sampler: A function of the seed that makes the sampler.
        num_values: Of the learning rate, the average and the weight decay, all free. Defaults to
            `None`: the peak of a cosine decay, and one number each.
    """

    def __init__(self, optimizer, horizon, seed, sampler, num_values=None):
        super().__init__(optimizer, horizon, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(sampler=sampler(seed))
        self.num_values, self.seen = num_values, 0

    def propose(self, observations):
        for proposal, measured in observations[self.seen :]:
            loss = BROKEN_DOWN if measured.broke_down else min(measured.loss, BROKEN_DOWN)
            # Losses span orders of magnitude, and a sampler should distinguish the small ones.
            self.study.tell(proposal.values, math.log(max(loss, 1e-6)))
            self.seen += 1
        trial = self.study.ask()
        parts = []
        for name, ends, k in zip(
            ("peak", "one_minus_average", "weight_decay"),
            RANGES[self.optimizer],
            self.num_values or (1, 1, 1),
        ):
            names = [f"{name}_{i}" for i in range(k)] if k > 1 else [name]
            parts.append(np.array([trial.suggest_float(each, *ends, log=True) for each in names]))
        parts[1] = 1 - parts[1]
        if self.num_values:
            schedule = between_knots(parts, self.horizon)
        else:
            schedule = decay(np.concatenate(parts), self.horizon, "cosine")
        return Proposal(schedule, with_hypergradients=False, values=trial)

    def answer(self, observations):
        return best_of(observations)


def tpe(seed):
    """The tree-structured Parzen estimator, all numbers together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True)


def gaussian_process(seed):
    """Optuna's Gaussian process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed)
