import numpy as np

from configs import digits
from examples import own_task
from trainers import experiment


def test_its_data_and_model_belong_together():
    config = digits.get_config()
    config.task = own_task.__file__
    arrays = experiment.load_arrays(config, "train")
    model = experiment.make_model(config, arrays)
    assert model.predict_on_batch(arrays.x[:4]).shape == (4, arrays.num_classes)
    assert set(np.unique(arrays.y)) == {0, 1}
