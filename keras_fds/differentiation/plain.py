"""Training without hypergradients, in the same compiled steps."""

import numpy as np

from keras_fds.differentiation.mode import Mode


class Plain(Mode):
    """No differentiation: the plain trainings of a search, see `keras_fds.outer.Proposal`."""

    name = "plain"

    def __init__(self, parallel="batch"):
        self.parallel = parallel

    def cost(self, horizon):
        return 1.0

    def work(self, horizon):
        return np.ones(horizon)

    @property
    def protected_variables(self):
        return []  # No derivative depends on what callbacks assign.

    def hypergradients(self):
        return None
