"""The state of a search: all that its next outer step needs of the earlier ones.

`HyperOptimizer` saves it among its variables, so every checkpoint that Keras writes during `fit`
carries it.
"""

import dataclasses
import json

import keras
import numpy as np

_VERSION = 4
SEARCH_ENTRY = "search"
MEASURED = "measured"
BROKE_DOWN = "broke_down"


@dataclasses.dataclass
class Record:
    """What an outer step measured; JSON can hold it.

    Args:
        outer_step: Its number, from 1.
        horizon: Inner steps.
        status: `"measured"`, or `"broke_down"` when training was given up.
        outcome: The outer rule's verdict: `"best"` so far, `"accepted"` or `"rejected"`.
        logs: Losses and metrics, as callbacks get them.
        values, step_sizes: `{name: [num_buckets]}`.
        hypergradients: The same form: derivatives by the coordinates, means over the steps of a
            bucket. `None` when training broke down.
        val_loss_error: Standard error of the validation loss; `None` if it is not known.
    """

    outer_step: int
    horizon: int
    status: str
    outcome: str
    logs: dict
    values: dict
    hypergradients: dict | None
    step_sizes: dict
    val_loss_error: float | None


@dataclasses.dataclass
class Best:
    """The best outer step so far.

    Args:
        loss: Its validation loss.
        outer_step: Its number, from 0.
        horizon: Inner steps.
        coordinates: The coordinates of all bucket values, float64 `[total_buckets]`.
        weights: The model's weights, a list of arrays.
    """

    loss: float
    outer_step: int
    horizon: int
    coordinates: np.ndarray
    weights: list


@dataclasses.dataclass
class Position:
    """Where a search stands.

    Args:
        outer_step: Number of finished outer steps; the present one's number, from 0.
        inner_step: Number of finished inner steps of the present outer step.
        before: Batches that the finished outer steps consumed of every pass over the training data
            and over the validation data: two lists of numbers.
        within: The same for the present outer step.
    """

    outer_step: int = 0
    inner_step: int = 0
    before: list = dataclasses.field(default_factory=lambda: [[], []])
    within: list = dataclasses.field(default_factory=lambda: [[], []])

    def next_outer_step(self):
        """The position once the present outer step is finished."""
        before = [a + b for a, b in zip(self.before, self.within)]
        return Position(self.outer_step + 1, before=before)

    def start_of_outer_step(self, outer_step=None):
        """The position at the start of the present outer step, or of another one."""
        number = self.outer_step if outer_step is None else outer_step
        return Position(number, before=self.before)


@dataclasses.dataclass
class PartialOuterStep:
    """An unfinished outer step that can be resumed at the search's `Position`.

    Args:
        horizon: Inner steps in all.
        metrics: Names of the model's metrics.
        state: All variables that a run changes, or their values: a list.
    """

    horizon: int
    metrics: list
    state: list


class Search:
    """A search for schedules and its progress.

    Args:
        seed: All its randomness derives from this whole number of at least 0.
        mode: How hypergradients are computed, `"forward"` or `"reverse"`.
        horizons: Numbers of inner steps, one per outer step. Defaults to `()`.
        start: The values of the model's variables that every outer step starts from, a list of
            arrays. Defaults to `None`: newly drawn ones each time.
        resample: Whether every outer step redraws what is held out. Defaults to `False`.
        settings: What else it depends on, `{name: value}`; JSON must be able to hold it.

    Attributes:
        position: The present `Position`.
        partial: The `PartialOuterStep` at that position, or `None`.
        records: A `Record` for every finished outer step.
        best: The `Best` outer step, or `None` before there is one.
        rule_state: The outer rule's state, `{name: float64 array}`; its `values` are coordinates.
    """

    def __init__(self, seed, mode, horizons=(), start=None, resample=False, settings=None):
        self.seed, self.mode, self.horizons = seed, mode, list(horizons)
        self.start, self.resample = start, resample
        self.settings = json.loads(json.dumps(settings or {}, default=str))
        self.position, self.partial = Position(), None
        self.records = []
        self.best = None
        self.rule_state = {}

    def randomness(self, outer_step):
        """`(generator, of_split, seed)` of an outer step, counted from 0.

        The first shuffles, the second draws what is held out, the third seeds the weights. They
        depend on nothing else, so an outer step can be run again.
        """
        of_data, of_weights, of_split = np.random.SeedSequence([self.seed, outer_step]).spawn(3)
        if not self.resample:
            of_split = np.random.SeedSequence(self.seed)
        generator, split_generator = map(np.random.default_rng, (of_data, of_split))
        return generator, split_generator, int(of_weights.generate_state(1)[0])

    def check_same(self, other):
        """Raises a `ValueError` unless a new search may resume this one.

        Args:
            other: The new `Search`. If it has no seed of its own, any seed matches.
        """
        both = min(len(self.records), len(other.horizons))
        of_records = [record.horizon for record in self.records[:both]]
        begun = {**self.settings, "horizons": of_records, "seed": self.seed}
        now = {**other.settings, "horizons": other.horizons[:both]}
        if now.get("seed") is None:
            now["seed"] = self.seed
        differing = [
            f"{name}={begun[name]!r}, now {now[name]!r}"
            for name in begun
            if name in now and begun[name] != now[name]
        ]
        if set(self.rule_state) != set(other.rule_state):
            differing.append("another outer rule")
        if differing:
            raise ValueError(
                "The search to resume began with other settings. Pass the same ones, or another "
                f"folder for the checkpoints. It began with {'; '.join(differing)}"
            )

    def to_arrays(self):
        """The whole search as `{key: array}`."""
        groups = {"start": self.start, "rule": list(self.rule_state.values())}
        description = {
            "version": _VERSION,
            "seed": self.seed,
            "mode": self.mode,
            "resample": self.resample,
            "settings": self.settings,
            "records": [dataclasses.asdict(record) for record in self.records],
            "position": dataclasses.asdict(self.position),
            "rule": list(self.rule_state),
        }
        if self.best:
            groups["best"] = [self.best.coordinates, *self.best.weights]
            description["best"] = {
                "loss": self.best.loss,
                "outer_step": self.best.outer_step,
                "horizon": self.best.horizon,
            }
        if self.partial:
            groups["partial"] = [keras.ops.convert_to_numpy(v) for v in self.partial.state]
            description["partial"] = {
                "horizon": self.partial.horizon,
                "metrics": self.partial.metrics,
            }
        groups = {name: arrays for name, arrays in groups.items() if arrays is not None}
        description["lengths"] = {name: len(arrays) for name, arrays in groups.items()}
        entries = {SEARCH_ENTRY: np.frombuffer(json.dumps(description).encode(), "uint8")}
        for name, arrays in groups.items():
            entries.update({_key(name, i): array for i, array in enumerate(arrays)})
        return entries

    @classmethod
    def taken_out_of(cls, entries):
        """Takes the search out of a dictionary of arrays.

        Returns:
            The `Search`, or `None` when there is none.

        Raises:
            ValueError: It was written by another version.
        """
        if SEARCH_ENTRY not in entries:
            return None
        description = json.loads(entries.pop(SEARCH_ENTRY).tobytes())
        version = description["version"]
        if version != _VERSION:
            age = "a newer" if version > _VERSION else "an older"
            raise ValueError(
                f"The checkpoint holds a search of version {version}, of {age} keras_fds; this one "
                f"reads version {_VERSION}. Resume with that keras_fds, or begin a new search "
                "in another folder. Its schedules.json can be loaded."
            )
        groups = {
            name: [entries.pop(_key(name, i)) for i in range(length)]
            for name, length in description["lengths"].items()
        }
        search = cls(
            description["seed"],
            description["mode"],
            start=groups.get("start"),
            resample=description["resample"],
            settings=description["settings"],
        )
        search.records = [Record(**record) for record in description["records"]]
        search.position = Position(**description["position"])
        search.rule_state = dict(zip(description["rule"], groups["rule"]))
        if "best" in groups:
            coordinates, *weights = groups["best"]
            search.best = Best(
                coordinates=np.array(coordinates, "float64"), weights=weights, **description["best"]
            )
        if "partial" in groups:
            search.partial = PartialOuterStep(state=groups["partial"], **description["partial"])
        return search


def _key(name, i):
    return f"{SEARCH_ENTRY}_{name}_{i}"
