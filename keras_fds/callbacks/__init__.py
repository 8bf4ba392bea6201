"""Callbacks that show and keep what `keras_fds.fit` learns, and the picture they share.

Outer steps are counted from 1 here, as in Keras's progress bar. Callbacks write from the records of
the search, so a resumed search shows every outer step once, also those before the interrupt.
"""

from keras_fds.callbacks.checkpoint import Checkpoint
from keras_fds.callbacks.pictures import draw_schedules
from keras_fds.callbacks.progress import SearchProgress as SearchProgress
from keras_fds.callbacks.schedule_export import ScheduleExport
from keras_fds.callbacks.tensorboard import TensorBoard

__all__ = ["Checkpoint", "ScheduleExport", "TensorBoard", "draw_schedules"]
