"""The interface of outer rules: from all observations so far, the next outer step.

A rule is a function of the record of observations. It keeps no state of its own, so a search that
resumes goes on as if it had not been interrupted.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from keras_fds.numbers import number

SHORTEST = 20  # Inner steps of the shortest training that a rule chooses.


@dataclasses.dataclass(frozen=True)
class Proposal:
    """An outer step to make.

    Args:
        coordinates: Of all bucket values, float64 `[total_buckets]`.
        horizon: Number of inner steps.
        with_hypergradients: Whether the outer step computes them; else it is a plain training.
            Defaults to `True`.

    Example:

    >>> Proposal(np.array([0.1, 0.0]), horizon=100).with_hypergradients
    True
    """

    coordinates: np.ndarray
    horizon: int
    with_hypergradients: bool = True


@dataclasses.dataclass(frozen=True)
class Observation:
    """What an outer step measured.

    Args:
        coordinates, horizon: See `Proposal`.
        loss: Validation loss; `None` when training broke down.
        loss_error: Its standard error; `None` where it is not known.
        hypergradients: The derivatives of the validation loss by the coordinates, float64
            `[total_buckets]`; `None` where they are not computed. (Reports divide them by the
            length of a bucket.)

    Example:

    >>> Observation(np.array([0.1, 0.0]), horizon=100, loss=0.5).broke_down
    False
    """

    coordinates: np.ndarray
    horizon: int
    loss: float | None
    loss_error: float | None = None
    hypergradients: np.ndarray | None = None

    def part(self, chosen: np.ndarray) -> "Observation":
        """What it says about some coordinates, a bool `[total_buckets]`."""
        slopes = self.hypergradients
        return dataclasses.replace(
            self,
            coordinates=self.coordinates[chosen],
            hypergradients=None if slopes is None else slopes[chosen],
        )

    @property
    def broke_down(self) -> bool:
        """Whether training was given up, so the loss is not known."""
        return self.loss is None


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a search is for.

    Args:
        buckets: The `Buckets` whose coordinates are moved.
        start: The coordinates of the start values, float64 `[total_buckets]`.
        horizon: Number of inner steps that the schedules are for.
        horizons: The number of inner steps of every outer step; `None` when the rule chooses
            horizons within the budget.
        budget: In plain trainings over the horizon; `None` when `horizons` are given.
        cost: What an inner step with hypergradients costs, in plain ones: a number, or a function
            of the horizon. Defaults to `4.0`.
        seed: What the rule's own randomness derives from.

    Example:

    >>> from keras_fds.hyperparameters import Buckets
    >>> buckets = Buckets([Hyperparameter("learning_rate", 7)])
    >>> Problem(buckets, np.zeros(7), horizon=100, budget=10.0).about_outer_steps
    30
    """

    buckets: Any
    start: np.ndarray
    horizon: int
    horizons: list[int] | None = None
    budget: float | None = None
    cost: float | Callable[[int], float] = 4.0
    seed: int = 0

    def part(self, chosen: np.ndarray, **changes: Any) -> "Problem":
        """The problem of some coordinates alone, a bool `[total_buckets]`, with other changes."""
        return dataclasses.replace(
            self, buckets=self.buckets.part(chosen), start=self.start[chosen], **changes
        )

    @property
    def about_outer_steps(self) -> int:
        """How many outer steps there will be; within a budget an estimate."""
        return len(self.horizons) if self.horizons else round(3 * (self.budget or 0))

    def steps(self, part: float) -> int:
        """The inner steps of a part of the horizon."""
        return min(self.horizon, max(SHORTEST, round(part * self.horizon)))

    def price(self, outer_step: Observation | Proposal) -> float:
        """What an outer step costs, in plain trainings; an `Observation` or a `Proposal`."""
        computes = (
            outer_step.with_hypergradients
            if isinstance(outer_step, Proposal)
            else outer_step.hypergradients is not None
        )
        return self.price_of(outer_step.horizon, computes)

    def price_of(self, horizon: int, with_hypergradients: bool) -> float:
        """What an outer step over a horizon costs, in plain trainings."""
        factor = self.cost(horizon) if callable(self.cost) else self.cost
        return (factor if with_hypergradients else 1.0) * horizon / self.horizon

    def spent(self, observations: Sequence[Observation]) -> float:
        """The price of all observations."""
        return sum(map(self.price, observations))


class Rule(abc.ABC):
    """An outer rule: from all observations so far, the next outer step.

    Example:

    >>> class Hold(Rule):
    ...     def propose(self, observations, problem):
    ...         horizons = problem.horizons[len(observations) :]
    ...         return Proposal(problem.start, horizons[0]) if horizons else None
    """

    chooses_horizons = False  # Whether it can search within a budget.

    @abc.abstractmethod
    def propose(self, observations: list[Observation], problem: Problem) -> Proposal | None:
        """The next outer step.

        Args:
            observations: All so far, a list of `Observation`.
            problem: The `Problem`.

        Returns:
            A `Proposal`, or `None` when the search ends.
        """

    def propose_several(
        self, observations: list[Observation], problem: Problem, number: int
    ) -> list[Proposal]:
        """The next outer steps, for workers that each make one at the same time.

        Here only the next one: the rule needs to know what it measured.

        Args:
            observations, problem: See `propose`.
            number: How many at most. With 1 it is what `propose` returns.

        Returns:
            A list of `Proposal`, empty when the search ends.
        """
        proposal = self.propose(observations, problem)
        return [] if proposal is None else [proposal]

    def is_best(self, observations: list[Observation], best: int | None, problem: Problem) -> bool:
        """Whether the last observation is the best so far.

        Here: when its loss is lowest. A longer horizon than the best one's always counts more.

        Args:
            observations, problem: See `propose`. The last one did not break down.
            best: The number of the best one before it, or `None`.
        """
        last = observations[-1]
        if best is None or last.horizon != observations[best].horizon:
            return best is None or last.horizon > observations[best].horizon
        loss, lowest = last.loss, observations[best].loss
        return loss is not None and (lowest is None or loss < lowest)

    def over_whole(self, coordinates: np.ndarray, horizon: int, problem: Problem) -> np.ndarray:
        """What coordinates that were tried over a horizon are over the whole one; here the same."""
        return coordinates

    def bands(
        self, observations: list[Observation], problem: Problem
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """`(low, high)`: the best coordinates, one standard deviation less and more.

        Both `[total_buckets]`; or `None` where a rule does not know.
        """
        return None

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)


def fraction(name, value):
    return number(name, value, above=0, below=1)
