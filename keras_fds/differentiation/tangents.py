"""The tangents that a device carries in forward mode."""

import numpy as np
import tensorflow as tf

from keras_fds.schedules import blend


class Tangents:
    """Every `count`-th tangent, from number `first` on: those of one device.

    Tangents are ordered by the step at which their bucket opens, so the tangents that are open at a
    step are a prefix, and each device has as many of them as any other, or one less.

    Args:
        groups: The variables that carry derivatives, three lists.
        total: The number of all tangents.
        first, count, device: Which of them, and on which device. Default to all, on the device
            where all else is.

    Attributes:
        number: How many they are.
        variables: The tangents, `[number, …]` for each variable; three lists.
        opening: A variable, the step at which each one opens.
        order: Another one: the bucket that each one belongs to.
    """

    def __init__(self, groups, total, first=0, count=1, device=None):
        self.device, self._groups, self._kept = device, groups, None
        self._chosen = slice(first, None, count)
        self.number = len(np.arange(total)[self._chosen])
        with tf.device(device):
            self.order = tf.Variable(np.arange(self.number), trainable=False)
            self.opening = tf.Variable(np.zeros(self.number, "int32"), trainable=False)

    @property
    def variables(self):
        if self._kept is None:  # Made when they are needed.
            groups = self._groups if self.number else ([], [], [])
            with tf.device(self.device):
                self._kept = tf.nest.map_structure(
                    lambda s: tf.Variable(
                        tf.zeros([self.number, *s.shape], s.dtype), trainable=False
                    ),
                    groups,
                )
        return self._kept

    def reset(self, opening_steps):
        """Begins with zero tangents, whose buckets open at these steps, `[total]`."""
        for tangent in tf.nest.flatten(self.variables):
            tangent.assign(tf.zeros_like(tangent))
        order = np.argsort(opening_steps, kind="stable")
        self.order.assign(order[self._chosen])
        self.opening.assign(opening_steps[order][self._chosen].astype("int32"))

    def moving(self, inner_step):
        """The numbers of those that are open at a step, at least one: TensorFlow needs it."""
        if self._chosen.start > 0:  # The very first one is open from the start.
            inner_step = tf.maximum(inner_step, self.opening[0])
        # A sum of int32 is known to the host without a copy; `tf.where` is not.
        is_open = tf.clip_by_value(inner_step - self.opening + 1, 0, 1)
        return tf.range(tf.reduce_sum(is_open))

    def carried(self, moving):
        """Some of them, three lists of tensors."""
        return tf.nest.map_structure(lambda tangent: tf.gather(tangent, moving), self.variables)

    def keep(self, moving, values):
        """Assigns some of them, three lists of tensors or `None`."""
        for variables, of_group in zip(self.variables, values):
            for variable, value in zip(variables, of_group or ()):
                variable.scatter_update(tf.IndexedSlices(value, moving))

    def of_hyperparameters(self, buckets, inner_step, horizon, moving, dtype):
        """`{name: [moving, *shape]}`, rows of the sharing matrix: one-hot in a step's bucket."""
        order, found = tf.gather(self.order, moving), {}
        steps = tf.cast(inner_step, "int64"), tf.cast(horizon, "int64")
        rows = buckets.shares(*steps).values()
        for h, row in zip(buckets.hyperparameters, rows):
            *neighbours, fraction = row
            lower, upper = (
                tf.cast(order[:, None] == position + np.arange(h.size), "float64")
                for position in neighbours
            )
            of_elements = tf.cast(blend(lower, upper, fraction), dtype)
            found[h.name] = tf.reshape(of_elements, [-1, *h.shape])
        return found

    def products(self, gradients):
        """Their products with gradients by weights and statistics, float64 `[number]`."""
        with tf.device(self.device):
            products = tf.zeros([self.number], "float64")
            of_weights, of_statistics, _ = self.variables
            for tangent, gradient in zip(of_weights + of_statistics, gradients):
                rows = tf.reshape(tangent, [self.number, -1])
                product = tf.linalg.matvec(rows, tf.reshape(gradient, [-1]))
                products += tf.cast(product, "float64")
            return products
