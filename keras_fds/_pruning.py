"""Inner steps at which tangents stay as they are: the pruning of the paper's program."""

import fractions

import numpy as np

MODES = (None, "alternate", "truncate")


class Pruning:
    """Which steps of a bucket are skipped, for all tangents of its hyperparameter.

    With ratio r, `"alternate"` skips that part of the steps of every bucket, spread evenly, and
    `"truncate"` the first r of each; `None` skips nothing. All arithmetic is in whole numbers, of
    Python, of arrays or of tensors.

    Args:
        mode: One of `MODES`.
        ratio: In (0, 1).

    Raises:
        ValueError: When one of them is something else.

    Reference: Micaelli & Storkey (2021), public program.
    """

    def __init__(self, mode, ratio):
        if mode not in MODES:
            raise ValueError(
                f"`pruning` must be None, 'alternate' or 'truncate'. Received: pruning={mode!r}"
            )
        is_number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not (is_number and 0 < ratio < 1):
            raise ValueError(f"`pruning_ratio` must lie in (0, 1). Received: {ratio!r}")
        self.mode = mode
        self._skipped = fractions.Fraction(ratio).limit_denominator(1000)

    def __bool__(self):
        return self.mode is not None

    def keeps(self, hyperparameter, inner_step, horizon):
        """Whether the tangents of a hyperparameter move at a step."""
        number = hyperparameter.num_buckets
        bucket = hyperparameter.bucket(inner_step, horizon)
        first, end = (-(-b * horizon // number) for b in (bucket, bucket + 1))
        position, parts = inner_step - first, self._skipped.denominator
        if self.mode == "truncate":
            return (position + 1) * parts > self._skipped.numerator * (end - first)
        kept = parts - self._skipped.numerator
        # The number kept among the first n steps is n · kept / parts, rounded up.
        return -(-(position + 1) * kept // parts) > -(-position * kept // parts)

    def kept_steps(self, hyperparameter, horizon):
        """The number of steps in every bucket at which tangents move, `[num_buckets]`."""
        if not self:
            return hyperparameter.bucket_lengths(horizon)
        steps = np.arange(int(horizon))
        kept = steps[self.keeps(hyperparameter, steps, int(horizon))]
        buckets = hyperparameter.bucket(kept, int(horizon))
        return np.bincount(buckets, minlength=hyperparameter.num_buckets)
