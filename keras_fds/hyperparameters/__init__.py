"""What is learned: a hyperparameter, its scale, and the vector of the values of all."""

from keras_fds.hyperparameters.buckets import Buckets
from keras_fds.hyperparameters.hyperparameter import Hyperparameter

__all__ = ["Buckets", "Hyperparameter"]
