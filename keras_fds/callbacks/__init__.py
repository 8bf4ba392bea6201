"""Callbacks that show and keep what `keras_fds.fit` learns, and the picture they share.

Outer steps count from 1 here, as in Keras's progress bar. What is shown is written from the records
of the search, so one that goes on shows the outer steps before an interrupt as well, once each.
"""

from keras_fds.callbacks.checkpoint import Checkpoint
from keras_fds.callbacks.pictures import draw_schedules
from keras_fds.callbacks.progress import SearchProgress as SearchProgress
from keras_fds.callbacks.schedule_export import ScheduleExport
from keras_fds.callbacks.tensorboard import TensorBoard

__all__ = ["Checkpoint", "ScheduleExport", "TensorBoard", "draw_schedules"]
