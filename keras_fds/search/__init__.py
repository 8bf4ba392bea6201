"""How `fit` searches."""

from keras_fds.search.cost import cost_of, cost_table, duration, measure_seconds
from keras_fds.search.fingerprint import search_fingerprint
from keras_fds.search.loop import OuterLoop
from keras_fds.search.state import Search
from keras_fds.search.weights import WeightInitializer

__all__ = [
    "OuterLoop",
    "Search",
    "WeightInitializer",
    "cost_of",
    "cost_table",
    "duration",
    "measure_seconds",
    "search_fingerprint",
]
