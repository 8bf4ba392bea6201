"""Learned schedules for programs that have Keras but not keras_fds.

Schedules belong to the optimizer they were learned with. In another update rule the same numbers
mean something else. `keras_fds.optimizers.SGD` and `keras.optimizers.SGD` are two such rules.
"""

from keras_fds.export.python_code import python_snippet
from keras_fds.export.stock_schedules import keras_schedules

__all__ = ["keras_schedules", "python_snippet"]
