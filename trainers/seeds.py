"""The number of seeds of the programs that run several."""

from absl import flags

SEEDS = flags.DEFINE_integer("seeds", None, "Number of seeds.", 1)
