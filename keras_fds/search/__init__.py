"""How `fit` searches."""

from keras_fds.search.arguments import (
    check_buckets,
    check_compiled,
    check_one_replica,
    check_searching,
    settle,
)
from keras_fds.search.cost import cost_of, cost_table, duration, measure_seconds
from keras_fds.search.fingerprint import search_fingerprint
from keras_fds.search.loop import OuterLoop
from keras_fds.search.online import OnlineLoop
from keras_fds.search.rounds import Rounds
from keras_fds.search.state import QUANTILES, SEARCH_ENTRY, Search
from keras_fds.search.weights import WeightInitializer
