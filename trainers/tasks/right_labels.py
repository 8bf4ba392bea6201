"""The 1,000 right labels of `trainers.tasks.data_cleaning` alone, as if nothing else were there.

    python -m trainers.compare --config=configs/data_cleaning.py \
        --config.task=trainers.tasks.right_labels --config.validation_split=0.2 \
        --config.epochs=50 --config.train_epochs=50 --methods=cosine --workdir=runs/right_labels
"""

from trainers.tasks import data_cleaning

make_model = data_cleaning.make_model


def load_data():
    _, right, test = data_cleaning.load_data()
    return right, test
