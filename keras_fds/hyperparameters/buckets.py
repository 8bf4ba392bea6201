"""The vector of all values of all hyperparameters in the buckets of a horizon.

Source: Micaelli & Storkey (2021), section 4 (hyperparameter sharing).
"""

import numpy as np
import tensorflow as tf

from keras_fds.schedules import blend


class Buckets:
    """The vector of all bucket values of all hyperparameters.

    Each bucket of the vector belongs to one hyperparameter; a knot counts as a bucket. The sharing
    matrix B of a horizon tells which values an inner step shares: λ(t) = Σ_k B_k(t) λ_k. The outer
    rule moves coordinates u of the values, see `Hyperparameter`. Where a hyperparameter is a
    vector, its values `[num_buckets, *shape]` stand one after the other, bucket by bucket.

    Args:
        hyperparameters: List of `Hyperparameter`, in the order of the vector.

    Attributes:
        names: The names of the hyperparameters.
        size: The length of the vector, total_buckets.
        owners: The number of the hyperparameter that each bucket belongs to, `[total_buckets]`.
        in_vectors: Which values belong to vectors, bool `[total_buckets]`.

    Example:

    >>> buckets = Buckets([Hyperparameter("learning_rate", 2), Hyperparameter("momentum")])
    >>> buckets.split(np.array([0.3, 0.1, 0.9]))
    {'learning_rate': array([0.3, 0.1]), 'momentum': array([0.9])}
    """

    def __init__(self, hyperparameters):
        self.hyperparameters = list(hyperparameters)
        self.names = [hyperparameter.name for hyperparameter in self.hyperparameters]
        numbers = [h.num_buckets * h.size for h in self.hyperparameters]
        self.size = sum(numbers)
        self.owners = np.repeat(np.arange(len(numbers)), np.array(numbers, "int64"))
        self.in_vectors = np.array([h.is_vector for h in self.hyperparameters], bool)[self.owners]
        self._firsts = np.cumsum([0, *numbers])

    def split(self, vector):
        """`{name: part of the vector}`, each `[num_buckets, *shape]`."""
        parts = zip(self.hyperparameters, np.split(vector, self._firsts[1:-1]))
        return {h.name: part.reshape(h.num_buckets, *h.shape) for h, part in parts}

    def join(self, parts):
        """The vector of parts, one per hyperparameter, in their order or by name."""
        if isinstance(parts, dict):
            parts = [parts[name] for name in self.names]
        return np.concatenate([np.zeros(0), *map(np.ravel, parts)])

    def initial_coordinates(self):
        """The coordinates of the start values."""
        return self.join(h.coordinates(h.initial_values) for h in self.hyperparameters)

    def first_steps(self):
        """The `step_size` of every bucket."""
        return self._for_each_bucket(lambda h: h.step_size)

    def _for_each_bucket(self, of_hyperparameter):
        """What each hyperparameter has, at all its buckets; float64 `[total_buckets]`."""
        return np.array(list(map(of_hyperparameter, self.hyperparameters)), float)[self.owners]

    def coordinates(self, values):
        """The coordinates of values, `{name: float64 [num_buckets, *shape]}`."""
        return self.join(h.coordinates(values[h.name]) for h in self.hyperparameters)

    def values(self, coordinates):
        """`{name: float64 [num_buckets, *shape]}`, the values at coordinates."""
        parts = self.split(coordinates)
        return {h.name: np.array(h.values(parts[h.name])) for h in self.hyperparameters}

    def derivatives(self, coordinates):
        """dλ/du of every value λ by its coordinate u, float64 `[total_buckets]`."""
        values = self.values(coordinates)
        return self.join(h.derivatives(values[h.name]) for h in self.hyperparameters)

    def opening_steps(self, horizon):
        """The first inner step that shares each value, int64 `[total_buckets]`."""
        opening = [np.repeat(h.opening_steps(horizon), h.size) for h in self.hyperparameters]
        return self.join(opening).astype("int64")

    def lengths(self, horizon):
        """How many inner steps share each value, `[total_buckets]`."""
        return self.join(np.repeat(h.bucket_lengths(horizon), h.size) for h in self.hyperparameters)

    def shares(self, inner_step, horizon):
        """`{name: (lower, upper, fraction)}` at an inner step; arguments are int64 tensors.

        The first two are positions in the vector, those of a vector's first element; see
        `keras_fds.schedules.shares`.
        """
        found = {}
        for first, h in zip(self._firsts, self.hyperparameters):
            lower, upper, fraction = h.shares(inner_step, horizon)
            found[h.name] = first + h.size * lower, first + h.size * upper, fraction
        return found

    def values_at(self, coordinates, inner_step, horizon, dtype):
        """`{name: tensor}` at an inner step, scalars or vectors; all but `dtype` are tensors."""
        found = {}
        for h, row in zip(self.hyperparameters, self.shares(inner_step, horizon).values()):
            *neighbours, fraction = row
            lower, upper = (
                h.values(tf.reshape(tf.gather(coordinates, position + np.arange(h.size)), h.shape))
                for position in neighbours
            )
            found[h.name] = tf.cast(blend(lower, upper, fraction), dtype)
        return found

    def sums(self, per_step):
        """Bᵀ times values of single steps, float64 `[horizon, hyperparameters]`; of numbers."""
        return self.join(h.sums(of_steps) for h, of_steps in zip(self.hyperparameters, per_step.T))

    def at_steps(self, vector, horizon):
        """B times a vector, `{name: [horizon]}`."""
        found, parts = {}, self.split(vector)
        for h in self.hyperparameters:
            lower, upper, fraction = h.shares(np.arange(horizon), horizon)
            found[h.name] = blend(parts[h.name][lower], parts[h.name][upper], fraction)
        return found

    def means(self, derivatives, horizon):
        """Derivatives by buckets as means over steps, `{name: float64 [num_buckets, *shape]}`.

        The paper reports hypergradients in this way: their size does not depend on the horizon.
        """
        return self.split(derivatives / self.lengths(horizon))

    def in_own_units(self, vector):
        """A vector in units of its root mean square over each hyperparameter.

        What is not finite counts as zero.
        """
        vector = np.where(np.isfinite(vector), vector, 0.0)
        found = []
        for part in self.split(vector).values():
            largest = np.abs(part).max(initial=0.0)
            scaled = part / largest if largest > 0 else part  # Squares neither over- nor underflow.
            size = np.sqrt(np.mean(np.square(scaled))) if part.size else 0.0
            found.append(scaled / size if size > 0 else scaled)
        return self.join(found)

    def part(self, chosen):
        """The `Buckets` of the hyperparameters of some values, a bool `[total_buckets]`."""
        kept = np.unique(self.owners[chosen])
        return Buckets([self.hyperparameters[i] for i in kept])

    @property
    def ranges(self):
        """`(minimum, maximum)` of the coordinates, float64 `[total_buckets]`, maybe infinite."""
        with np.errstate(divide="ignore"):
            return (
                self._for_each_bucket(lambda h: h.coordinates(h.min_value)),
                self._for_each_bucket(lambda h: h.coordinates(h.max_value)),
            )
