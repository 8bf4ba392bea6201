"""The default outer rule: Bayesian optimization with hypergradients."""

import dataclasses
import functools
import itertools

import keras
import numpy as np
import threadpoolctl
from scipy.linalg import solve_triangular
from scipy.special import ndtri

from keras_fds.numbers import number
from keras_fds.outer.base import Observation, Proposal, Rule
from keras_fds.outer.descent import Descent
from keras_fds.outer.gaussian_process import GaussianProcess
from keras_fds.outer.space import Space

# Parts of the horizon, and the parts of the search during which they are trained over. A search of
# more than `MOST` plain trainings is as one of `MOST`, then goes on over the whole horizon.
LADDER = {0.1: (0.0, 0.15), 0.3: (0.08, 0.4), 1.0: (0.3, np.inf)}
MOST = 12.0
MOST_DESIGNED = 8
UNTRAINED = 0.2  # Above the logarithm of the untrained loss all losses are alike.
STEEPEST = 3.0  # Slopes of the logarithm of the loss beyond are noise, as exploding ones are.
LEARNED = 0.1  # A training learns if the logarithm of its loss falls by this part of the best's.
CLIFF = 0.5  # How far one that does not learn is a warning, in lengths of the process.
NUM_SAMPLES = 128


def _on_one_thread(method):
    """More threads are slower for matrices as small as these, and change the last digits."""

    @functools.wraps(method)
    def wrapped(*arguments):
        with _libraries().limit(limits=1, user_api="blas"):
            return method(*arguments)

    return wrapped


@functools.cache
def _libraries():
    return threadpoolctl.ThreadpoolController()


@keras.saving.register_keras_serializable("keras_fds")
class BayesianOptimization(Rule):
    """Makes the outer step from which the schedules are expected to gain most for its cost.

    The logarithm of the validation loss is a Gaussian process over schedules and horizons. Plain
    trainings observe it, outer steps with hypergradients its derivatives too. How noisy both are is
    estimated. A search within a budget

    1. measures the untrained model, the start values if there are any, and a few constant
       schedules all over the ranges, by trainings over a tenth of the horizon;
    2. makes, again and again, the outer step whose expected gain per cost is highest: the expected
       fall of the lowest value `mean + caution · standard deviation` of the loss over the whole
       horizon, over all that the outer step might measure. Horizons grow with what is spent;
    3. trains with the schedules of the lowest such value, once what is left of the budget allows no
       more than that, or no outer step is worth its cost. (Not when the outer step before went
       over the whole horizon, and none is worth its cost after it.)

    With prescribed horizons (`outer_steps`) it begins with the start values, computes
    hypergradients in every outer step, and chooses only the schedules.

    Where several workers make outer steps at the same time, each further one is chosen as if those
    before it had measured the expected loss, costs no more than the first one, and leaves enough of
    the budget for the answer, which is trained alone. Vectors descend one outer step at a time.

    Few numbers are searched, many descend: where vectors are learned too, half of the search, of at
    most twelve plain trainings, is for the numbers, with the vectors at their start. Then the
    numbers stay at the best ones, and the vectors move by `Descent`.

    Args:
        caution: How many standard deviations of its loss a schedule must make up for. Defaults to
            `1.0`.
        least_gain: By how much the logarithm of the loss must be expected to fall, for each plain
            training that it costs, for the search to go on. Defaults to `0.003`.

    Raises:
        ValueError: When `caution` or `least_gain` is negative.

    Example:

    >>> outer = keras_fds.outer.BayesianOptimization(caution=2.0)

    Reference: Frazier, Powell & Dayanik, "The knowledge-gradient policy for correlated normal
    beliefs" (2009), with derivatives Wu, Poloczek, Wilson & Frazier, "Bayesian optimization with
    gradients" (2017), per cost Swersky, Snoek & Adams, "Multi-task Bayesian optimization" (2013).
    docs/concepts/outer_loop.md has the equations, docs/research_log.md what was tried.
    """

    chooses_horizons = True

    def __init__(self, caution: float = 1.0, least_gain: float = 3e-3) -> None:
        self.caution = number("caution", caution, least=0)
        self.least_gain = number("least_gain", least_gain, least=0)

    def propose(self, observations, problem):
        proposals = self.propose_several(observations, problem, 1)
        return proposals[0] if proposals else None

    def propose_several(self, observations, problem, number):
        if not problem.buckets.in_vectors.any():
            return self._search(observations, problem, number)
        return self._search_then_descend(observations, problem, number)

    # ------------------------------------------------------------------- numbers, then vectors
    def _search_then_descend(self, observations, problem, number):
        vectors = problem.buckets.in_vectors
        first = self._first_of_descent(observations, problem)
        if first is None:
            proposals = self._search_numbers(observations, problem, number)
            if proposals:
                return proposals
            best = self._best(observations, problem)
            if best is None:
                return []
            first = len(observations) - 1
            whole = problem.horizons or observations[best].horizon == problem.horizon
            if best != first or observations[best].hypergradients is None or not whole:
                return self._again(observations, best, problem)
        budget, horizons = problem.budget, problem.horizons
        descended = [each.part(vectors) for each in observations[first:]]
        if horizons is None:
            budget -= problem.spent(observations[:first])
        else:
            horizons = horizons[first:]
        of_vectors = problem.part(vectors, budget=budget, horizons=horizons)
        coordinates, found = observations[first].coordinates if observations else problem.start, []
        for each in Descent().propose_several(descended, of_vectors, number):
            moved = _over(coordinates, problem.horizon, each.horizon, problem)
            found.append(_with_part(each, moved, vectors))
        return found

    def _first_of_descent(self, observations, problem):
        """The number of the observation that vectors descend from; `None` before they do."""
        vectors = problem.buckets.in_vectors
        for i, observation in enumerate(observations):
            if not np.array_equal(observation.coordinates[vectors], problem.start[vectors]):
                return max(0, i - 1)
        return 0 if vectors.all() else None

    def _search_numbers(self, observations, problem, number):
        """The next outer steps of the search for numbers, with the vectors at their start."""
        numbers = ~problem.buckets.in_vectors
        part = self._part_of_numbers(problem)
        if part.horizons is not None and len(observations) >= len(part.horizons):
            return []
        proposals = self._search([each.part(numbers) for each in observations], part, number)
        return [_with_part(each, problem.start, numbers) for each in proposals]

    def _part_of_numbers(self, problem):
        """The problem of the numbers, for half of the search."""
        budget, horizons = problem.budget, problem.horizons
        if horizons is None:
            budget = max(2.0, min(budget / 2, MOST))
        else:
            horizons = horizons[: max(1, len(horizons) // 2)]
        return problem.part(~problem.buckets.in_vectors, budget=budget, horizons=horizons)

    def _best(self, observations, problem):
        """The number of the best observation, or `None` where all broke down."""
        best = None
        for i, observation in enumerate(observations):
            if not observation.broke_down and self.is_best(observations[: i + 1], best, problem):
                best = i
        return best

    def _again(self, observations, best, problem):
        """The best outer step with hypergradients over the whole horizon, if it is left; a list."""
        horizon, done = problem.horizon, len(observations)
        if problem.horizons is None:
            left = problem.budget - problem.spent(observations)
            if left < problem.price_of(horizon, True):
                return []
        elif done == len(problem.horizons):
            return []
        else:
            horizon = problem.horizons[done]
        chosen = observations[best]
        coordinates = self.over_whole(chosen.coordinates, chosen.horizon, problem)
        return [Proposal(coordinates, horizon)]

    @_on_one_thread
    def _search(self, observations, problem, number):
        """The next outer steps, a list; empty when the search ends."""
        done = len(observations)
        if problem.budget is None and done == len(problem.horizons):
            return []
        if done > MOST_DESIGNED and all(each.broke_down for each in observations):
            return []
        if not problem.buckets.size:  # Nothing to learn.
            horizon = problem.horizons[done] if problem.horizons else problem.horizon
            over = problem.horizons is None and done
            return [] if over else [Proposal(problem.start, horizon)]
        space = Space(problem)
        if problem.budget is None:
            return self._over_prescribed(observations, problem, space, number)
        left = problem.budget - problem.spent(observations)
        proposals = []
        for designed in self._design(problem, space)[done:][:number]:
            if problem.price(designed) > left - 1 and (done or proposals):
                break
            proposals.append(designed)
            left -= problem.price(designed)
        return proposals or self._best_options(observations, problem, space, number)

    def _best_options(self, observations, problem, space, number):
        """The next outer steps after the designed ones."""
        left = problem.budget - problem.spent(observations)
        whole = [each.horizon == problem.horizon for each in observations]
        if left < 1 - 1e-9 and any(whole):  # The budget may be less than at first.
            return []
        posterior = Posterior(observations, problem, space, self.caution)
        answer = posterior.proposal(posterior.answers[0], problem.horizon, False)
        if left < 2:
            return [answer]
        spent = (problem.budget - left) / min(problem.budget, MOST)
        worth, *option = posterior.best_option(spent, left - 1)
        if worth < self.least_gain and not LADDER[1.0][0] <= spent:
            spent = LADDER[1.0][0]
            worth, *option = posterior.best_option(spent, left - 1)
            worth = max(worth, self.least_gain)
        if worth < self.least_gain:
            ended = whole[-1] and not _learned_nothing(observations, problem)[-1]
            return [] if ended else [answer]
        proposals = [posterior.proposal(*option)]
        price = problem.price(proposals[0])
        while len(proposals) < number:
            left -= problem.price(proposals[-1])
            posterior = posterior.believing(proposals[-1])
            worth, *option = posterior.best_option(spent, min(price, left - 1))
            further = posterior.proposal(*option)
            if worth < self.least_gain or problem.price(further) > min(price, left - 1):
                break
            proposals.append(further)
        return proposals

    def _over_prescribed(self, observations, problem, space, number):
        horizons = problem.horizons[len(observations) :]
        if not observations:
            return [Proposal(problem.start, horizons[0])]
        posterior, proposals = Posterior(observations, problem, space, self.caution), []
        for i, horizon in enumerate(horizons[:number]):
            if i:
                if horizon > horizons[0] or i == len(horizons) - 1:  # The last one sees all.
                    break
                posterior = posterior.believing(proposals[-1])
            _, *option = posterior.best_of([(horizon, True)])
            proposals.append(posterior.proposal(*option))
        return proposals

    def _design(self, problem, space):
        """The first outer steps, a list of `Proposal`."""
        from scipy.stats import qmc  # It takes long to import.

        untrained = np.where(
            [name == "learning_rate" for name in space.names], space.low - 5, space.low
        )
        points = [(space.constant(untrained), 1)]
        short = problem.steps(min(LADDER))
        if any(values.any() for values in problem.buckets.values(problem.start).values()):
            points.append((space.point(problem.start, problem.horizon), short))
        most = 0.08 * problem.budget * problem.horizon / short
        most = min(MOST_DESIGNED, max(2, round(most)))
        uniform = qmc.Sobol(len(space.names), seed=problem.seed).random(MOST_DESIGNED)[:most]
        points += [(point, short) for point in space.constant(space.levels(uniform))]
        return [Proposal(space.coordinates(*each), each[1], False) for each in points]

    def is_best(self, observations, best, problem):
        vectors = problem.buckets.in_vectors
        if vectors.any():
            if self._first_of_descent(observations, problem) is not None:
                return super().is_best(observations, best, problem)
            observations = [each.part(~vectors) for each in observations]
            problem = self._part_of_numbers(problem)
        return self._is_best(observations, best, problem)

    @_on_one_thread
    def _is_best(self, observations, best, problem):
        last = observations[-1]
        if best is None or last.horizon != observations[best].horizon or not len(problem.start):
            return super().is_best(observations, best, problem)
        if _learned_nothing(observations, problem)[[best, -1]].any():
            # Such a loss is no bad luck, which the process may take it for.
            return last.loss < observations[best].loss
        posterior = Posterior(observations, problem, Space(problem), self.caution, look=False)
        of_best, of_last = posterior.cautious(posterior.points[[best, -1]])
        return of_last <= of_best

    def over_whole(self, coordinates, horizon, problem):
        return _over(coordinates, horizon, problem.horizon, problem)

    @_on_one_thread
    def bands(self, observations, problem):
        vectors = problem.buckets.in_vectors
        if vectors.any():
            if self._first_of_descent(observations, problem) is not None:
                return None
            of_numbers = [each.part(~vectors) for each in observations]
            found = self.bands(of_numbers, self._part_of_numbers(problem))
            ends = [observations[-1].coordinates.copy() for _ in range(2)]
            for end, of_end in zip(ends, found):
                end[~vectors] = of_end
            return tuple(ends)
        if not problem.buckets.size:
            return None
        space, horizon = Space(problem), observations[-1].horizon
        deviations = Posterior(observations, problem, space, self.caution).deviations()
        point = space.point(observations[-1].coordinates, horizon)
        ends = space.clip(np.stack([point - deviations, point + deviations]))
        return tuple(space.coordinates(end, horizon) for end in ends)

    def get_config(self):
        return {"caution": self.caution, "least_gain": self.least_gain}


class Posterior:
    """What is known after some observations.

    Attributes:
        points: Those observed, `[observations, size]`.
        process: The `GaussianProcess`.
        answers: Points among which the best one lies; the one to answer with first.
    """

    def __init__(self, observations, problem, space, caution, look=True, num_believed=0):
        self.problem, self.space, self.caution = problem, space, caution
        self.observations, self.num_believed = observations, num_believed  # The last ones.
        self.points = np.array([space.point(o.coordinates, o.horizon) for o in observations])
        horizons = np.log([o.horizon / problem.horizon for o in observations])
        values, slopes = _logarithms(observations), {}
        beyond = _is_beyond_cliff(observations, problem)
        for i, observation in enumerate(itertools.compress(observations, ~beyond)):
            if observation.hypergradients is not None and not observation.broke_down:
                found, known = space.slopes(observation)
                found = np.clip(found / max(abs(observation.loss), 1e-9), -1e3, 1e3)
                variances = np.where(np.abs(found) > STEEPEST, np.square(found), 0.0)
                slopes[i] = found, np.where(known, variances, 1e6)
        smooth = self.points[~beyond], horizons[~beyond], values[~beyond]
        self.process = GaussianProcess(space, *smooth, slopes)
        self.cliffs = self.points[beyond]
        expected = self.process.mean(self.cliffs, horizons[beyond])
        self.heights = np.maximum(values[beyond] - expected, 0)
        self.rng = np.random.default_rng([problem.seed, len(observations)])
        if look:
            self.answers = self._answers()

    def mean(self, points):
        """The mean of the logarithm of the loss over the whole horizon."""
        return self.process.mean(points) + self._near_cliffs(points, self.heights)

    def cautious(self, points):
        """The same, its standard deviation added."""
        return self.mean(points) + self.caution * np.sqrt(self.process.variance(points))

    def _near_cliffs(self, points, heights):
        """How much higher the loss may be near trainings that learned nothing.

        The process is smooth, and would take them for noise, so it does not know them.
        """
        if not len(heights):
            return np.zeros(len(points))
        return (heights * self.process.nearness(points, self.cliffs, CLIFF)).max(axis=1)

    def proposal(self, point, horizon, computes):
        """The `Proposal` of an outer step at a point."""
        return Proposal(self.space.coordinates(point, horizon), horizon, computes)

    def believing(self, proposal):
        """The posterior if an outer step measures the loss that is expected of it.

        Reference: Ginsbourger, Le Riche & Carraro, "Kriging is well-suited to parallelize
        optimization" (2010), the kriging believer.
        """
        point = self.space.point(proposal.coordinates, proposal.horizon)
        part = np.log(proposal.horizon / self.problem.horizon)
        loss = _loss_of(self.process.mean(point[None], part)[0], self.observations)
        believed = Observation(proposal.coordinates, proposal.horizon, loss)
        return Posterior(
            [*self.observations, believed],
            self.problem,
            self.space,
            self.caution,
            num_believed=self.num_believed + 1,
        )

    # ------------------------------------------------------------------------------ candidates
    def _answers(self):
        found = np.concatenate([self._anywhere(300), self.points])
        for _ in range(4):
            best = found[np.argsort(self.cautious(found))[:3]]
            found = np.concatenate([best, *(self._near(each, 100) for each in best)])
        best = found[[np.argmin(self.cautious(found))]]
        near = self._near(best[0], 180)
        found = np.concatenate([best, near, self._anywhere(120), self.points])
        return found[np.argsort(self.cautious(found))[:200]]

    def _anywhere(self, number):
        levels = self.space.levels(self.rng.random((number, len(self.space.names))))
        wiggles = self.rng.random((number, 1)) * self.space.wiggles(number, self.rng)
        return self.space.clip(self.space.constant(levels) + wiggles)

    def _near(self, point, number):
        """Points around a point: other levels, and smooth changes in time."""
        sizes = np.exp(self.rng.uniform(np.log(0.05), np.log(1.5), (number, 1)))
        levels = self.space.constant(self.rng.standard_normal((number, len(self.space.names))))
        changes = levels + self.space.wiggles(number, self.rng)
        return self.space.clip(point + sizes * changes)

    def deviations(self):
        """Standard deviations of the best point's coordinates, over samples of the process."""
        rows = self.process.rows(self.answers)
        values, vectors = np.linalg.eigh(self.process.posterior_covariance(rows, rows))
        normals = self.rng.standard_normal((len(values), 1000))
        samples = vectors @ (np.sqrt(np.maximum(values, 0))[:, None] * normals)
        samples += self.mean(self.answers)[:, None]
        return self.answers[samples.argmin(axis=0)].std(axis=0)

    # --------------------------------------------------------------------------------- options
    def best_option(self, part_spent, left):
        """The best outer step that is left, see `best_of`."""
        kinds = []
        for part, (begin, end) in LADDER.items():
            horizon = self.problem.steps(part)
            if begin <= part_spent < end:
                shared = horizon >= max(h.num_buckets for h in self.space.hyperparameters)
                kinds += [
                    (horizon, computes) for computes in (False, part > min(LADDER) and shared)
                ]
        return self.best_of(
            [each for each in dict.fromkeys(kinds) if self.problem.price_of(*each) <= left]
            or [(self.problem.horizon, False)]
        )

    def best_of(self, kinds):
        """`(gain per plain training, point, horizon, whether hypergradients are computed)`.

        Args:
            kinds: What is possible, a list of `(horizon, whether hypergradients are computed)`.
        """
        others = 12 + self.rng.permutation(len(self.answers) - 12)[:30]
        where = np.concatenate([self.answers[:12], self.answers[others], self._anywhere(20)])
        chosen = self.points[len(self.points) - self.num_believed :]
        where = where[~(where[:, None] == chosen).all(axis=-1).any(axis=-1)]
        found = []
        for horizon, computes in kinds:
            points = where[:4] if computes else where
            gains = self._gains(points, np.log(horizon / self.problem.horizon), computes)
            gains *= 1 - self._near_cliffs(points, np.ones(len(self.cliffs)))
            best = np.argmax(gains)
            worth = gains[best] / self.problem.price_of(horizon, computes)
            found.append((worth, points[best], horizon, computes))
        return max(found, key=lambda each: each[0])

    def _gains(self, points, part, computes):
        """By how much observing each point, alone, is expected to lower the answer's value."""
        process, answers = self.process, self.process.rows(self.answers)
        means, of_answers = self.mean(self.answers), process.explained(answers)
        variances = process.variance(self.answers)
        now = np.min(means + self.caution * np.sqrt(variances))
        samples = ndtri((np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES)[None]
        if computes:
            number = 1 + len(self.space.mode_sizes)
            samples = self.rng.standard_normal((number, NUM_SAMPLES // 2))
            samples = np.concatenate([samples, -samples], axis=1)
        gains = []
        for point in points:
            rows = process.rows(point[None], part)
            if computes:
                rows = rows.joined(process.slope_rows(point, part))
            of_rows = process.explained(rows)
            observed = process.posterior_covariance(rows, rows, of_rows, of_rows)
            root = np.linalg.cholesky(observed + np.diag(process.noises(rows)))
            of_both = process.posterior_covariance(rows, answers, of_rows, of_answers)
            change = solve_triangular(root, of_both, lower=True).T
            left = np.maximum(variances - np.square(change).sum(axis=1), 0)
            cautious = (means + self.caution * np.sqrt(left))[:, None] + change @ samples
            gains.append(now - cautious.min(axis=0).mean())
        return np.array(gains)


def _over(coordinates, horizon, other, problem):
    """What coordinates that are for one horizon are over another one."""
    numbers = ~problem.buckets.in_vectors
    if horizon == other or not numbers.any():
        return coordinates
    space, found = Space(problem.part(numbers)), coordinates.copy()
    found[numbers] = space.coordinates(space.point(coordinates[numbers], horizon), other)
    return found


def _with_part(proposal, coordinates, chosen):
    """A proposal for some coordinates as one for all."""
    coordinates = coordinates.copy()
    coordinates[chosen] = proposal.coordinates
    return dataclasses.replace(proposal, coordinates=coordinates)


def _logarithms(observations):
    """The logarithms of losses; those that are no better than untrained are alike."""
    values, most = _values_and_most(observations)
    return np.where(values < most, values, most)


def _learned_nothing(observations, problem):
    """Whether losses are no better than untrained, a bool for each."""
    values, most = _values_and_most(observations)
    if problem.horizons is not None:  # The first one is that of the start values.
        return ~(values < most)
    fall = values[0] - np.min(values[np.isfinite(values)], initial=values[0])
    return ~(values < values[0] - LEARNED * fall)


def _is_beyond_cliff(observations, problem):
    """Which trainings, longer than those of the design, learned nothing; within a budget."""
    longer = [o.horizon > problem.steps(min(LADDER)) for o in observations]
    return np.array(longer) & _learned_nothing(observations, problem) & (problem.horizons is None)


def _values_and_most(observations):
    """The logarithms of losses, NaN where training broke down, and the greatest that counts."""
    losses = np.array([np.nan if o.broke_down else o.loss for o in observations])
    least = np.nanmin(losses) if np.isfinite(losses).any() else 1.0
    if least <= 0:  # No logarithms: distances from a little below the lowest loss.
        losses = losses - least + 0.05 * (np.nanmax(losses) - least) + 1e-9
    values = np.log(np.maximum(losses, 1e-9))
    first = values[0] if np.isfinite(values[0]) else np.log(np.maximum(least, 1e-9))
    return values, max(first, np.nanmin(values, initial=first) + 0.5) + UNTRAINED


def _loss_of(logarithm, observations):
    """The loss that has such a logarithm among those of observations."""
    losses = [o.loss for o in observations if not o.broke_down]
    least = min(losses, default=1.0)
    below = least - 0.05 * (max(losses) - least) - 1e-9 if least <= 0 else 0.0
    return float(np.exp(logarithm) + below)
