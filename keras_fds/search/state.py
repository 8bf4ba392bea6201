"""The state of a search: all that its next outer step needs of the earlier ones.

`HyperOptimizer` saves it among its variables, so every checkpoint that Keras writes during `fit`
carries it.
"""

import dataclasses
import json

import keras
import numpy as np

from keras_fds.outer import Observation, Proposal

_VERSION = 6
MOST_TOLD = 10  # Elements of a vector that records keep one by one; of longer ones `QUANTILES`.
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # In percent.
SEARCH_ENTRY = "search"
_ARRAY = "array of the search"  # Stands in JSON for an array that is kept beside it.
MEASURED = "measured"
BROKE_DOWN = "broke_down"


def in_short(values_by_name):
    """Values by name as lists for people: `[num_buckets]`, of vectors `[num_buckets][elements]`.

    A vector of more than `MOST_TOLD` elements has its `QUANTILES` in their place.
    """
    return {name: _told(np.asarray(values)).tolist() for name, values in values_by_name.items()}


def _told(values):
    if values.ndim == 1:
        return values
    rows = values.reshape(len(values), -1)
    if rows.shape[1] <= MOST_TOLD:
        return rows
    return np.percentile(rows, QUANTILES, axis=1).T


@dataclasses.dataclass
class Record:
    """What an outer step measured, for people; JSON can hold it.

    Of long vectors it has quantiles, see `in_short`. The values are those of the observation.
    """

    outer_step: int  # Its number, from 1.
    horizon: int  # Inner steps.
    status: str  # `"measured"`, or `"broke_down"` when training was given up.
    # `"best"` so far by the outer rule, `"accepted"`, or `"rejected"` when training was given up.
    outcome: str
    logs: dict  # Losses and metrics, as callbacks get them.
    values: dict  # `{name: [num_buckets]}`, see `in_short`.
    # By coordinates, means over the steps of a bucket; `None` after a plain training.
    hypergradients: dict | None
    val_loss_error: float | None  # Standard error of the validation loss, where it is known.
    spent: float  # By all outer steps so far, in plain trainings over the search's horizon.
    # `[values below, values above]`: one standard deviation of what the best values are, where the
    # outer rule knows it and this outer step is the best so far.
    bands: list | None = None
    interpolations: dict = dataclasses.field(default_factory=dict)  # `{name: "linear"}`
    in_quantiles: list = dataclasses.field(default_factory=list)  # The names of long vectors.


@dataclasses.dataclass
class Outcome:
    """What an outer step measured, before it is recorded; JSON can hold it."""

    logs: dict  # Losses and metrics, as callbacks get them.
    loss: float | None = None  # Of the validation; `None` when training was given up.
    error: float | None = None  # Its standard error, where it is known.
    hypergradients: list | None = None  # By the coordinates, where they were computed.
    warnings: list = dataclasses.field(default_factory=list)  # Sentences.
    interrupted: bool = False  # Whether a callback stopped it: it has measured nothing.


@dataclasses.dataclass
class Best:
    """The best outer step so far."""

    loss: float  # Of the validation.
    outer_step: int  # Its number, from 0.
    horizon: int  # Inner steps.
    # Of all bucket values, float64 `[total_buckets]`, as they are for the search's horizon.
    coordinates: np.ndarray
    weights: list  # Of the model, arrays.


@dataclasses.dataclass
class Position:
    """Where a search stands."""

    outer_step: int = 0  # Number of finished ones; the present one's number, from 0.
    inner_step: int = 0  # Number of finished inner steps of the present outer step.
    # Batches consumed of every pass over the training and over the validation data, by the finished
    # outer steps and by the present one: two lists of numbers each.
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
    """An unfinished outer step that can be resumed at the search's `Position`."""

    proposal: Proposal
    metrics: list  # Names of the model's metrics.
    state: list  # All variables that a run changes, or their values.

    def is_of(self, proposal):
        """Whether this is what a `Proposal` asks for."""
        own = self.proposal
        return np.array_equal(own.coordinates, proposal.coordinates) and (
            (own.horizon, own.with_hypergradients)
            == (proposal.horizon, proposal.with_hypergradients)
        )


def _differences(begun, now, name=""):
    """What differs between two nests of dictionaries and lists, a list of texts."""
    if isinstance(begun, dict) and isinstance(now, dict):
        found = []
        for key in sorted(begun.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            found += _differences(begun.get(key), now.get(key), inner)
        return found
    both = isinstance(begun, list) and isinstance(now, list) and len(begun) == len(now)
    if both and begun and isinstance(begun[0], dict):
        pairs = enumerate(zip(begun, now))
        return [text for i, each in pairs for text in _differences(*each, f"{name}[{i}]")]
    return [] if begun == now else [f"{name}={begun!r}, now {now!r}"]


@dataclasses.dataclass
class Search:
    """A search for schedules and its progress."""

    seed: int  # All its randomness derives from it.
    mode: str  # How hypergradients are computed, `"forward"` or `"reverse"`.
    # Numbers of inner steps, one per outer step; `None` where the outer rule chooses them.
    horizons: list | None = None
    first: np.ndarray | None = None  # The coordinates of the start values.
    # The values of the model's variables that every outer step starts from; `None`: new ones.
    start: list | None = None
    resample: bool = False  # Whether every outer step redraws what is held out.
    settings: dict = dataclasses.field(default_factory=dict)  # What else it depends on.
    position: Position = dataclasses.field(default_factory=Position)
    partial: PartialOuterStep | None = None  # At that position.
    records: list = dataclasses.field(default_factory=list)  # One per finished outer step.
    best: Best | None = None
    observations: list = dataclasses.field(default_factory=list)  # As many: all the rule knows.
    # The search before a round of outer steps that is not recorded to its end: what is saved then.
    before_round: "Search | None" = None

    def __post_init__(self):
        self.settings = json.loads(json.dumps(self.settings, default=str))

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
        """Raises a `ValueError` unless another search, which begins now, may resume this one.

        If the other one has no seed of its own, any seed matches.
        """
        begun, now = {**self.settings, "seed": self.seed}, dict(other.settings)
        if other.horizons is not None:
            both = min(len(self.records), len(other.horizons))
            begun["horizons"] = [record.horizon for record in self.records[:both]]
            now["horizons"] = other.horizons[:both]
        if now.get("seed") is None:
            now["seed"] = self.seed
        both = set(begun) & set(now)
        differing = _differences({k: begun[k] for k in both}, {k: now[k] for k in both})
        if differing:
            raise ValueError(
                "The search to resume began with other settings. Pass the same ones, or another "
                f"folder for the checkpoints. It began with {'; '.join(differing)}"
            )

    def begin_round(self, outer_step):
        """From now on it is saved as it is now, until `before_round` is `None` again."""
        self.position = self.position.start_of_outer_step(outer_step)
        self.before_round = dataclasses.replace(
            self, records=[*self.records], observations=[*self.observations]
        )
        self.position = self.position.start_of_outer_step()

    def to_arrays(self):
        """The whole search as `{key: array}`: a JSON text, and the arrays that it refers to."""
        if self.before_round is not None:
            return self.before_round.to_arrays()
        arrays = {}

        def reference(value):
            if dataclasses.is_dataclass(value):
                return vars(value)
            key = f"{SEARCH_ENTRY}_{len(arrays)}"
            arrays[key] = keras.ops.convert_to_numpy(value)
            return {_ARRAY: key}

        saved = {name: value for name, value in vars(self).items() if name != "before_round"}
        text = json.dumps({"version": _VERSION, **saved}, default=reference)
        return {SEARCH_ENTRY: np.frombuffer(text.encode(), "uint8"), **arrays}

    @classmethod
    def taken_out_of(cls, entries):
        """Takes the search out of a dictionary of arrays.

        `None` where there is none; a `ValueError` where another version wrote it.
        """
        if SEARCH_ENTRY not in entries:
            return None

        def referred_to(value):
            return entries.pop(value[_ARRAY]) if _ARRAY in value else value

        content = json.loads(entries.pop(SEARCH_ENTRY).tobytes(), object_hook=referred_to)
        version = content.pop("version")
        if version != _VERSION:
            age = "a newer" if version > _VERSION else "an older"
            raise ValueError(
                f"The checkpoint holds a search of version {version}, of {age} keras_fds; this one "
                f"reads version {_VERSION}. Resume with that keras_fds, or begin a new search "
                "in another folder. Its schedules.json can be loaded."
            )
        search = cls(**content)
        search.position = Position(**search.position)
        search.records = [Record(**record) for record in search.records]
        search.observations = [Observation(**each) for each in search.observations]
        search.best = search.best and Best(**search.best)
        if search.partial:
            search.partial["proposal"] = Proposal(**search.partial["proposal"])
            search.partial = PartialOuterStep(**search.partial)
        return search
