"""Low data: 20 numbers of a small convolutional network on 1,000 images of Fashion-MNIST.

Seven learning rates, momentum, weight decay; for each of four layers an L2 penalty and a factor on
its learning rate; the strength of two noises, and label smoothing.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.search --config=configs/low_data.py --workdir=runs/low_data
    python -m trainers.train --config=configs/low_data.py \
        --schedules=runs/low_data/schedules.json --workdir=runs/low_data-train
    python -m trainers.compare --config=configs/low_data.py --workdir=runs/low_data-compare

Expected: about two minutes a search on two cores.
Measured: see docs/results/comparison.md.
"""

from configs import digits

LAYERS = ("conv_1", "conv_2", "hidden", "logits")


def get_config():
    config = digits.get_config()
    config.task = "trainers.tasks.low_data"
    config.batch_size = 50
    config.epochs = (30,)
    config.budget = 12.0
    config.validation_split = 0.2
    config.validation_batch_size = 200
    config.optimizer = {"name": "keras_fds.optimizers.SGD", "clipvalue": 1.0}
    config.reverse_memory = 2**31
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 7, "interpolation": "linear"},
        {"name": "momentum"},
        {"name": "weight_decay"},
        *({"name": f"{layer}.kernel_regularizer.l2"} for layer in LAYERS),
        *({"name": f"{layer}.learning_rate_multiplier"} for layer in LAYERS),
        {"name": "input_noise.stddev", "min_value": 0.01, "max_value": 2.0, "scale": "log"},
        {"name": "features_noise.stddev", "min_value": 0.01, "max_value": 2.0, "scale": "log"},
        {"name": "loss.label_smoothing"},
    ]
    config.train_epochs = 30
    return config
