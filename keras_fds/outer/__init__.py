"""Outer update rules: from the measurement of an outer step to new bucket values."""

from keras_fds.outer.base import Measurement, Ranges
from keras_fds.outer.sign_descent import SignDescent
from keras_fds.outer.trust_region import TrustRegionDescent

__all__ = ["Measurement", "Ranges", "SignDescent", "TrustRegionDescent"]
