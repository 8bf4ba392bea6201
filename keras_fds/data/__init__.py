"""Batches for the compiled loops, and their replay."""

from keras_fds.data.arrays import ArrayBatches, as_arrays, num_examples, yields_batches
from keras_fds.data.batches import Numbered, numbers, plain, unpack
from keras_fds.data.datasets import (
    DatasetBatches,
    finite_batches,
    raising_errors_of,
    telling_of_the_end,
)
from keras_fds.data.sources import (
    get_batch,
    in_graph,
    is_streamed,
    map_structure,
    materialize,
    replayable,
    size_in_bytes,
)
from keras_fds.data.split import not_finite_in, split_data_of
