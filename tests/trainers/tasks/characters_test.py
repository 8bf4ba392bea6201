"""Windows of a text, labels one character later; positions do not see what follows."""

import numpy as np
import pytest

from configs import characters as config
from trainers import experiment
from trainers.tasks import characters


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return path


def test_labels_are_the_next_characters(text):
    (x, y), (x_test, y_test) = characters.load_data(text)
    assert x.shape == y.shape == (36, 64) and x_test.shape == y_test.shape == (5, 64)
    np.testing.assert_array_equal(x.reshape(-1)[1:], y.reshape(-1)[:-1])
    np.testing.assert_array_equal(x_test.reshape(-1)[1:], y_test.reshape(-1)[:-1])


def test_a_position_sees_no_later_ones():
    model = characters.make_model()
    x = np.random.default_rng(0).integers(0, 65, (1, 64))
    other = x.copy()
    other[0, 40:] = 3
    before, after = model.predict_on_batch(x), model.predict_on_batch(other)
    np.testing.assert_allclose(before[0, :40], after[0, :40], atol=1e-5)
    assert np.abs(before[0, 40:] - after[0, 40:]).max() > 1e-3


def test_its_config_takes_the_text(text):
    found = config.get_config()
    found.data_dir = str(text)
    assert experiment.load_arrays(found, "test").x.shape == (5, 64)
    found.data_dir = None
    with pytest.raises(ValueError, match="Pass a text file"):
        experiment.load_arrays(found, "test")
