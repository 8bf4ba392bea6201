"""Optuna's samplers on three numbers of a cosine decay, or on the nine values a rule learns."""

import math
import warnings

import optuna

from benchmarks.outer_rules.searchers import Proposal, Searcher, best_of, decay, in_buckets

NUM_RATES = 7
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
        in_nine: Whether it tunes seven learning rates and two numbers, in place of the peak of a
            cosine decay and two numbers. Defaults to `False`.
    """

    def __init__(self, optimizer, horizon, seed, sampler, in_nine=False):
        super().__init__(optimizer, horizon, seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.study = optuna.create_study(sampler=sampler(seed))
        self.in_nine, self.seen = in_nine, 0

    def propose(self, observations):
        for proposal, measured in observations[self.seen :]:
            loss = BROKEN_DOWN if measured.broke_down else min(measured.loss, BROKEN_DOWN)
            # Losses span orders of magnitude, and a sampler should distinguish the small ones.
            self.study.tell(proposal.values, math.log(max(loss, 1e-6)))
            self.seen += 1
        trial = self.study.ask()
        rates, averages, decays = RANGES[self.optimizer]
        names = [f"rate_{i}" for i in range(NUM_RATES)] if self.in_nine else ["peak"]
        chosen = [trial.suggest_float(name, *rates, log=True) for name in names]
        average = 1 - trial.suggest_float("one_minus_average", *averages, log=True)
        weight_decay = trial.suggest_float("weight_decay", *decays, log=True)
        if self.in_nine:
            schedule = in_buckets([chosen, [average], [weight_decay]], self.horizon)
        else:
            schedule = decay([*chosen, average, weight_decay], self.horizon, "cosine")
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
