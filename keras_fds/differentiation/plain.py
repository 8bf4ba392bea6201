"""Training without hypergradients, in the same compiled steps."""

import numpy as np
import tensorflow as tf

from keras_fds.data import get_batch, in_graph, telling_of_the_end
from keras_fds.differentiation.divergence import steps_while_ok
from keras_fds.differentiation.mode import Mode
from keras_fds.internals import tf_compilation


class Plain(Mode):
    """No differentiation: the plain trainings of a search, see `keras_fds.outer.Proposal`."""

    name = "plain"

    def build(self):
        self._run = tf_compilation.compiled(self._run_in_graph)

    def cost(self, horizon):
        return 1.0

    def work(self, horizon):
        return np.ones(horizon)

    @property
    def protected_variables(self):
        return []  # No derivative depends on what callbacks assign.

    def run(self, source, position, inner_step, count):
        arguments = (tf.constant(n, "int64") for n in (position, inner_step, count, self.horizon))
        with telling_of_the_end("`steps_per_epoch`"):
            steps, ok = self._run(in_graph(source), *arguments)
        return int(steps), bool(ok)

    def _run_in_graph(self, source, position, inner_step, count, horizon):
        def one_step(i):
            batch = get_batch(source, position + i)
            hyperparameters = self.step.hyperparameters(inner_step + i, horizon)
            after, loss, outputs = self.step(self.step.read(), hyperparameters, batch)
            self.step.assign(after)
            self.step.model.update_metrics(batch, loss, outputs)
            return [loss]

        return steps_while_ok(count, one_step, detector=self.step.detector)

    def hypergradients(self):
        return None
