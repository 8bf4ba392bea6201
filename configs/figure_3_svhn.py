"""Figure 3 of the paper: what sharing is worth, LeNet on SVHN, one epoch.

As `configs/figure_3_mnist.py`, on the cropped digits of SVHN, which TFDS downloads (1.5 GB).

    python -m trainers.prepare_data --dataset=svhn_cropped
    python -m trainers.search --config=configs/figure_3_svhn.py --workdir=runs/figure_3-search
    python -m trainers.train --config=configs/figure_3_svhn.py \
        --schedules=runs/figure_3-search/schedules.json --workdir=runs/figure_3-train
    python -m trainers.compare --config=configs/figure_3_svhn.py --workdir=runs/figure_3_svhn
    python -m trainers.figures --figure=3 --results=runs/figure_3_svhn

Expected: some ten minutes per seed on two cores, an estimate.
Published: shared 84%, cosine (from 0.1) 79%, greedy 22%, unshared 10%.
Measured: nothing, the data were not there.
"""

from configs import figure_3_mnist

STEPS = 544  # Of one epoch: 73257 images less 5%, in batches of 128.


def get_config():
    config = figure_3_mnist.get_config()
    config.dataset = "svhn_cropped"
    one_a_step = {"name": "learning_rate", "num_buckets": STEPS, "step_size": 0.1}
    config.methods.unshared.hyperparameters = (one_a_step,)
    return config
