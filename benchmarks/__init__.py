"""Programs that print ratios measured in one run."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # As in the programs of trainers.
