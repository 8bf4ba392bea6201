"""Batches come with the numbers of their examples, or without."""

import numpy as np
import pytest
import tensorflow as tf

from keras_fds.batches import Numbered, numbers, pack, plain, unpack


@pytest.mark.parametrize("element", [("x", "y"), ("x", "y", "w"), ("x", "y", "w", "n")])
def test_unpacking_and_packing(element):
    assert pack(*unpack(element)) == element
    assert plain(unpack(element)) == (*element[:3], None)[:3]
    assert numbers(unpack(element)) == (element[3] if len(element) > 3 else None)


def test_weights_may_be_missing():
    data = tf.data.Dataset.range(4).batch(2).map(lambda i: (i, i, None, i))
    assert unpack(data.element_spec)[2].sample_weight is None
    _, _, found = unpack(next(iter(data)))
    assert found.sample_weight is None
    np.testing.assert_array_equal(found.number, [0, 1])
    assert isinstance(found, Numbered)
