"""Where reverse mode keeps states when it cannot keep them all: binomial checkpoints.

A run of T steps is cut into blocks. The states of one block are computed at a time; before the
sweep goes through a block, its states are computed again from the nearest checkpoint before it.
Checkpoints that have become free serve between the others, so s checkpoints and t runs over every
block reach over (s + t)! / (s! t!) blocks. With s = √T blocks of √T steps, one run more is enough;
half the memory costs another one.

Reference: Griewank & Walther, "Algorithm 799: revolve" (2000); "Evaluating Derivatives" (2008),
chapter 12.
"""

import dataclasses
import math

# Beyond so many runs over every block more memory is the better advice.
MOST_REPEATS = 8


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a run is cut into blocks.

    Args:
        horizon: T, inner steps.
        block: Steps of a block; the last one may be shorter.
        checkpoints: s, how many states are kept beside the first one and those of a block.
        repeats: t, how often a block is run again at most.

    Example:

    >>> plan(10000, 200)
    Plan(horizon=10000, block=100, checkpoints=99, repeats=1)
    >>> plan(10000, 40).repeats
    3
    """

    horizon: int
    block: int
    checkpoints: int
    repeats: int

    @property
    def states(self):
        """The most states in memory at once."""
        return 1 + self.checkpoints + self.block

    def split(self, first, last, checkpoints):
        """The step between `first` and `last` at which to keep a state.

        Args:
            first, last: Steps; more than a block lies between them.
            checkpoints: How many states may still be kept.
        """
        blocks = -(-(last - first) // self.block)
        repeats = next(t for t in range(blocks) if _reach(checkpoints, t) >= blocks)
        # What follows has a checkpoint fewer, what comes before a run fewer.
        return first + self.block * max(1, blocks - _reach(checkpoints - 1, repeats))

    def kept_on_the_way(self):
        """The steps at which the first run keeps a state, in increasing order."""
        kept, first, left = [], 0, self.checkpoints
        while self.horizon - first > self.block:
            first = self.split(first, self.horizon, left)
            kept.append(first)
            left -= 1
        return kept


def plan(horizon, states):
    """The `Plan` with the fewest repeats for so many states, or the least memory that is possible.

    Args:
        horizon: Inner steps.
        states: How many states may be in memory at once.
    """
    repeats = next((t for t in range(1, MOST_REPEATS) if _least(horizon, t)[0] <= states), None)
    repeats = repeats or MOST_REPEATS
    _, block = _least(horizon, repeats)
    checkpoints = _checkpoints(-(-horizon // block), repeats)
    if repeats > 1:  # More of them: fewer blocks are run again so often.
        checkpoints = max(checkpoints, int(states) - 1 - block)
    return Plan(horizon, block, checkpoints, repeats)


def _least(horizon, repeats):
    """`(states, block)`: the fewest states, and the length of the blocks that need so few."""
    blocks = range(1, math.isqrt(horizon) + 2)
    return min((1 + _checkpoints(-(-horizon // block), repeats) + block, block) for block in blocks)


def _checkpoints(blocks, repeats):
    """The fewest checkpoints that reach over so many blocks with so many repeats."""
    found = 0
    while _reach(found, repeats) < blocks:
        found += 1
    return found


def _reach(checkpoints, repeats):
    """Over how many blocks so many checkpoints reach with so many repeats."""
    return math.comb(checkpoints + repeats, repeats) if checkpoints >= 0 else 0
