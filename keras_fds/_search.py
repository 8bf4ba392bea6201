"""The state of a search in progress: all that its next outer step needs of the ones before.

`HyperOptimizer` saves it among its variables, so every checkpoint that Keras writes during `fit`
carries it.
"""

import json
from typing import NamedTuple

import keras
import numpy as np

_VERSION = 3
_ENTRY = "search"


class Within(NamedTuple):
    """How far an outer step has come that is begun and not finished."""

    outer_step: int  # From 0.
    inner_step: int  # How many are done.
    horizon: int
    metrics: list  # Their names.
    state: list  # All that they change, variables or arrays; empty where they are to be done again.


class Search:
    """A search for schedules, as far as it has come.

    Args:
        seed: What all its randomness derives from, a whole number from 0.
        mode: How hypergradients are computed, `"forward"` or `"adjoint"`.
        start: The values of the model's variables that every outer step starts from, a list of
            arrays. Defaults to `None`: new ones each time.
        resample: Whether what is held out is drawn anew every outer step. Defaults to `False`.
        settings: What else it depends on, `{name: value}` such that JSON can hold it.

    Attributes:
        records: One dictionary a finished outer step: `outer_step` (from 1), `horizon`, `logs`, and
            `values`, `hypergradients` and `step_sizes` as `{name: [float, …]}`; the outer rule's
            `verdict`, and `val_loss_error`. JSON can hold it.
        best: `loss` of the best outer step, infinite before there is one; then also `outer_step`,
            `weights` (a list of arrays), `values` (coordinates, float64 `[total_buckets]`) and
            `horizon`.
        passes: How many batches the finished outer steps have taken of every pass over the training
            and the validation data, two lists of numbers.
        within: The `Within` of the outer step that is begun; `None` between two.
    """

    def __init__(self, seed, mode, start=None, resample=False, settings=None):
        self.seed, self.mode, self.start, self.resample = seed, mode, start, resample
        self.settings = json.loads(json.dumps(settings or {}, default=str))
        self.records = []
        self.best = {"loss": np.inf}
        self.passes = [[], []]
        self.within = None

    def randomness(self, outer_step):
        """`(generator, of_split, seed)` of an outer step, counted from 0.

        The first shuffles, the second draws what is held out, the third is of the weights. They
        depend on nothing else, so an outer step can be run again.
        """
        of_data, of_weights, of_split = np.random.SeedSequence([self.seed, outer_step]).spawn(3)
        if not self.resample:
            of_split = np.random.SeedSequence(self.seed)
        generators = map(np.random.default_rng, (of_data, of_split))
        return *generators, int(of_weights.generate_state(1)[0])

    def check_same(self, other, horizons):
        """Raises a `ValueError` unless one that is begun now may go on with this one.

        Args:
            other: The `Search` that is begun now; where it has no seed of its own, any will do.
            horizons: Its numbers of inner steps, one an outer step.
        """
        both = min(len(self.records), len(horizons))
        of_records = [record["horizon"] for record in self.records[:both]]
        begun = {**self.settings, "horizons": of_records, "seed": self.seed}
        now = {**other.settings, "horizons": horizons[:both]}
        if now.get("seed") is None:
            now["seed"] = self.seed
        differing = [
            f"{name}={begun[name]!r}, now {now[name]!r}"
            for name in begun
            if name in now and begun[name] != now[name]
        ]
        if differing:
            raise ValueError(
                "The search to go on with was begun with other settings. Pass the same ones, or "
                f"another folder for its checkpoints. It was begun with {'; '.join(differing)}"
            )

    def to_arrays(self):
        """All of it as `{key: array}`."""
        best = dict(self.best)
        groups = {"best": best.pop("weights", None), "start": self.start}
        if self.within:
            groups["within"] = [keras.ops.convert_to_numpy(v) for v in self.within.state]
        if "values" in best:
            best["values"] = best["values"].tolist()
        description = {
            "version": _VERSION,
            **{
                name: getattr(self, name)
                for name in ("seed", "mode", "resample", "settings", "records", "passes")
            },
            "best": best,
            "within": self.within and self.within[:4],
            "lengths": {name: len(arrays) for name, arrays in groups.items() if arrays is not None},
        }
        entries = {_ENTRY: np.frombuffer(json.dumps(description).encode(), "uint8")}
        for name, arrays in groups.items():
            entries.update({_key(name, i): array for i, array in enumerate(arrays or ())})
        return entries

    @classmethod
    def taken_out_of(cls, entries):
        """The search whose arrays are among the entries, a dictionary that then lacks them.

        Returns:
            The `Search`, or `None` when there is none.

        Raises:
            ValueError: It was written by a newer version.
        """
        if _ENTRY not in entries:
            return None
        description = json.loads(entries.pop(_ENTRY).tobytes())
        if description["version"] > _VERSION:
            raise ValueError(
                f"The checkpoint holds a search of version {description['version']}; this "
                f"keras_fds reads versions up to {_VERSION}. Install a newer keras_fds."
            )
        groups = {
            name: [entries.pop(_key(name, i)) for i in range(length)]
            for name, length in description["lengths"].items()
        }
        settings = description.get("settings") or {}
        if description["version"] < 3:  # What was held out was always drawn at random.
            description["resample"] = resplit = description.pop("resplit")
            if settings.get("validation_split"):
                settings["resample_validation"] = "outer_step" if resplit else "once"
        seed, mode, resample = (description[name] for name in ("seed", "mode", "resample"))
        search = cls(seed, mode, groups.get("start"), resample, settings)
        search.records = description["records"]
        # Version 1 counted passes, of which it replayed the beginnings.
        search.passes = [[1] * p if isinstance(p, int) else p for p in description["passes"]]
        search.best = description["best"]
        if "best" in groups:
            search.best.update(
                weights=groups["best"], values=np.array(search.best["values"], "float64")
            )
        if "within" in groups:
            search.within = Within(*description["within"], groups["within"])
        return search


def _key(name, i):
    return f"{_ENTRY}_{name}_{i}"
