"""The outer loop of `fit`: compiled inner loops, callbacks, and the best outer step."""

import contextlib
import dataclasses
import time
import warnings
import zlib

import numpy as np
import tensorflow as tf

from keras_fds.data import not_finite_in
from keras_fds.internals import keras_optimizers
from keras_fds.outer import Observation
from keras_fds.search.arguments import refuse_rate_setters
from keras_fds.search.calls import Pace, all_finite, logs_of, validate
from keras_fds.search.state import (
    BROKE_DOWN,
    MEASURED,
    MOST_TOLD,
    Best,
    Outcome,
    PartialOuterStep,
    Record,
    Search,
    in_short,
)

_NO_BEST = (
    "The search ends: training broke down in every outer step. Start from smaller values, clip "
    "gradients (`clipvalue`, `global_clipnorm`), and check that the data are finite."
)


class OuterLoop:
    """The outer loop of `fit` in bound modes, with and without hypergradients.

    `problem` is the `keras_fds.outer.Problem` of the search.
    """

    def __init__(
        self,
        mode,
        plain,
        data,
        initializer,
        callbacks,
        problem,
        validation_training,
        divergence_factor,
        replicas,
    ):
        self.replicas = replicas
        self.modes, self.mode = {True: mode, False: plain or mode}, mode
        self.data, self.initializer, self.callbacks = data, initializer, callbacks
        self.model = callbacks.model
        self.optimizer = self.model.optimizer
        self.buckets = self.optimizer.buckets
        self.problem = problem
        self.validation_training = validation_training
        self.divergence_factor = divergence_factor
        self.pace = Pace(self.model, callbacks, mode.replicas)
        self.rate = self.present_rate()
        self.start_weights = self.model.get_weights()
        self.going_on = None  # The `PartialOuterStep` to resume.
        self.interrupted = False  # Whether a callback stopped the last outer step before its end.

    # ------------------------------------------------------------------------- the search
    def run(self, initial_epoch, search):
        """Runs a search, or the one that a callback restores; returns the history."""
        model, optimizer, logs = self.model, self.optimizer, {}
        model.stop_training = False
        model._initial_epoch = None
        last = self.restored()
        if initial_epoch and last is not None and len(last.records) == initial_epoch:
            search = last
        self.search = optimizer.search = search
        optimizer.searching = True
        try:
            self.callbacks.on_train_begin()
            restored = self.restored()
            if restored is search:
                search.start = self.initializer.remember()
            first = self.take_over(restored) or model._initial_epoch or initial_epoch
            self.check_same_on_all_workers(first)
            try:
                self.skip_outer_steps(first - len(self.search.records))
                while proposals := self.next_outer_steps():
                    logs = self.outer_steps(first, proposals)
                    first += len(proposals)
                    if self.stops(self.replicas):
                        break
            finally:
                self.search.partial = self.search.before_round = None
                self.keep_best()
        finally:
            optimizer.searching = False
            for mode in self.modes.values():
                mode.release()
        self.callbacks.on_train_end(logs)
        return model.history

    def stops(self, replicas):
        """Whether a callback ends the search, in any of their processes."""
        self.model.stop_training = replicas.any(self.model.stop_training)
        return self.model.stop_training

    def check_same_on_all_workers(self, first):
        """Raises a `ValueError` unless all processes go on from the same point."""
        search, inner_step = self.search, self.search.position.inner_step if self.going_on else 0

        def describe():
            checksums = [zlib.crc32(np.ascontiguousarray(array)) for array in search.start or ()]
            return repr([first, inner_step, search.seed, self.pace.steps, checksums])

        self.replicas.check_alike("where the search begins", describe)

    def restored(self):
        """The search that a callback has restored, else the one that begins now."""
        optimizer = self.optimizer
        if optimizer.loaded_search is not None:  # By Keras, with the optimizer's variables.
            entries, optimizer.loaded_search = optimizer.loaded_search, None
            optimizer.search = Search.taken_out_of(entries)
        return optimizer.search

    def take_over(self, search):
        """Resumes a search; returns the number of its next outer step."""
        begun_now, self.search = self.search, search
        if search is not begun_now:
            search.check_same(begun_now)
        partial, search.partial = search.partial, None
        self.problem = dataclasses.replace(self.problem, start=search.first, seed=search.seed)
        if not self.can_go_on(partial):
            partial, search.position = None, search.position.start_of_outer_step()
        if search.mode != begun_now.mode:
            warnings.warn(
                f"The search began in {search.mode} mode and resumes in {begun_now.mode} mode, so "
                "its last digits will differ. Pass differentiation="
                f"{search.mode!r} to resume it as it began.",
                RuntimeWarning,
                stacklevel=4,
            )
        search.mode = begun_now.mode
        self.initializer.start = search.start = search.start or self.initializer.start
        self.data.replay(search.position.before)
        self.going_on = partial
        for record in search.records:
            self.model.history.on_epoch_end(record.outer_step - 1, record.logs)
        done = len(search.records)
        if (done or partial) and self.callbacks.params["verbose"]:
            within = f"inner step {search.position.inner_step} of " if partial else ""
            of = f" of {len(self.problem.horizons)}" if self.problem.horizons else ""
            ended = not partial and self.propose() is None
            resuming = f"Resuming after {within}outer step {done + bool(partial)}{of}."
            print(f"{done} outer steps are done already." if ended else resuming)
        return search.position.outer_step

    def can_go_on(self, partial):
        """Whether a partial outer step is the next one, with the present metrics and variables."""
        proposal = self.propose() if partial else None
        if proposal is None:
            return False
        self.mode = self.modes[proposal.with_hypergradients]
        begun = partial.metrics, [tuple(v.shape) for v in partial.state]
        now = list(logs_of(self.model)), [tuple(v.shape) for v in self.variables()]
        return begun == now and partial.is_of(proposal)

    def skip_outer_steps(self, number):
        """Leaves out the first outer steps of a new search that begins later."""
        if number and self.problem.horizons:
            horizons = self.problem.horizons[number:]
            self.problem = dataclasses.replace(self.problem, horizons=horizons)

    def propose(self):
        """What the outer rule proposes after the observations so far."""
        return self.optimizer.outer.propose(self.search.observations, self.problem)

    def proposals(self):
        """What to make next, a list of `Proposal`; empty at the end."""
        proposal = self.propose()
        return [] if proposal is None else [proposal]

    def next_outer_steps(self):
        """The same; at the end it warns where nothing was learned."""
        proposals = self.proposals()
        if not proposals and self.search.records and not self.search.best:
            warnings.warn(_NO_BEST, RuntimeWarning, stacklevel=4)
        return proposals

    def keep_best(self):
        """Restores the best outer step's weights and schedules, with fresh slots."""
        best, optimizer = self.search.best, self.optimizer
        optimizer.reset_slots()
        if best is not None:
            self.model.set_weights(best.weights)
            optimizer.begin_schedules(best.horizon)
            optimizer.coordinates = best.coordinates
        elif not self.interrupted:
            self.model.set_weights(self.start_weights)
            optimizer.coordinates = self.problem.start

    # ---------------------------------------------------------------------- an outer step
    def outer_steps(self, first, proposals):
        """Makes one outer step; returns its logs."""
        (proposal,) = proposals
        outcome = self.train(first, proposal)
        self.interrupted = outcome.interrupted
        if self.interrupted:
            self.callbacks.on_epoch_end(first, outcome.logs)
        else:
            self.finish(first, proposal, outcome)
        return outcome.logs

    def train(self, outer_step, proposal):
        """Trains from new weights and measures; returns an `Outcome`."""
        model, search, horizon = self.model, self.search, proposal.horizon
        self.optimizer.coordinates = proposal.coordinates
        mode = self.mode = self.modes[proposal.with_hypergradients]
        self.guarded_variables = []  # What hypergradients depend on and callbacks may reach.
        if self.pace.has_hooks:
            self.guarded_variables = [*mode.protected_variables, *self.optimizer.schedule_variables]
        self.callbacks.set_params({**self.callbacks.params, "steps": horizon})
        shuffling, splitting, weight_seed = search.randomness(outer_step)
        train, validation = self.data.draw(shuffling, splitting)
        self.initializer(weight_seed)
        mode.reset(horizon, self.divergence_factor)
        model.reset_metrics()
        if not self.going_on:
            search.position = search.position.start_of_outer_step(outer_step)
        self.callbacks.on_epoch_begin(outer_step)
        self.check_rate()
        mode.check_trainable()
        steps, ok = self.inner_steps(train, proposal)
        logs = logs_of(model)
        if not ok or not all_finite(model.get_weights()):
            missing = {f"val_{name}": np.nan for name in logs}
            told = self.told_of_break_down(outer_step, steps, horizon, ok)
            return Outcome({**logs, **missing}, warnings=[told])
        outcome = Outcome(logs, interrupted=steps < horizon)
        loss, outcome.error = self.validate(validation, outcome)
        if not np.isfinite(loss) and not_finite_in(validation):
            raise ValueError(
                "The validation loss is not finite: the validation data hold NaN or infinities in "
                f"their {' and '.join(not_finite_in(validation))}."
            )
        if outcome.interrupted:
            return outcome
        outcome.loss = loss if np.isfinite(loss) else None
        hypergradients = mode.hypergradients()
        if hypergradients is not None:
            hypergradients = hypergradients * self.buckets.derivatives(proposal.coordinates)
            outcome.warnings = self.told_of_unknown(hypergradients)
            outcome.hypergradients = hypergradients.tolist()
        return outcome

    def inner_steps(self, train, proposal):
        """Trains over the horizon; `(steps done, whether the run was not given up)`."""
        position, source, horizon = self.search.position, None, proposal.horizon
        if self.going_on:
            source = self.go_on(train)
        while position.inner_step < horizon:
            done = position.inner_step
            consumed = done % train.pass_length
            if consumed == 0:
                source = train.start()
                position.within[0].append(0)
            count = min(self.pace.steps, horizon - done, train.pass_length - consumed)
            with self.guarded(done):
                self.callbacks.on_train_batch_begin(done)
            start = time.monotonic()
            steps, ok = self.mode.run(source, consumed, done, count)
            self.pace.learn(time.monotonic() - start)
            position.inner_step += steps
            position.within[0][-1] += steps
            logs = logs_of(self.model)
            in_round = self.search.before_round is not None  # Which begins anew.
            if ok and not in_round and self.mode.checkpoint_variables is not None:
                self.search.partial = PartialOuterStep(proposal, list(logs), self.variables())
            else:
                self.search.partial = None
            # With `steps_per_execution` Keras counts a short call as whole.
            whole = ok and self.model.steps_per_execution > 1
            last = done + (self.pace.steps if whole else steps)
            with self.guarded(position.inner_step):
                self.callbacks.on_train_batch_end(last - 1, logs)
            if self.stops(self.mode.replicas) or not ok:
                return position.inner_step, ok
        return position.inner_step, True

    def validate(self, validation, outcome):
        """The validation loss and its error; adds it and the metrics to the logs."""
        model = self.model
        of_training = [(variable, variable.numpy()) for variable in model.metrics_variables]
        loss, error, found = validate(
            self.mode, validation, self.validation_training, self.callbacks
        )
        outcome.logs.update(found)
        if outcome.interrupted:
            for variable, value in of_training:  # A resumed search continues from these.
                variable.assign(value)
        else:
            self.search.position.within[1].append(validation.num_batches)
        return loss, error

    def finish(self, outer_step, proposal, outcome):
        """Records what an outer step measured; without a loss it broke down."""
        for text in outcome.warnings:
            warnings.warn(text, RuntimeWarning, stacklevel=5)
        optimizer, search, problem = self.optimizer, self.search, self.problem
        coordinates, horizon = proposal.coordinates, proposal.horizon
        loss, error = outcome.loss, outcome.error
        skipped = outer_step - len(search.records)
        broke_down, hypergradients = loss is None, None
        if not broke_down and outcome.hypergradients is not None:
            hypergradients = np.array(outcome.hypergradients)
        search.observations.append(Observation(coordinates, horizon, loss, error, hypergradients))
        best = search.best.outer_step - skipped if search.best else None
        is_best = not broke_down and optimizer.outer.is_best(search.observations, best, problem)
        bands = optimizer.outer.bands(search.observations, problem) if is_best else None
        means = None
        if hypergradients is not None:
            means = in_short(self.buckets.means(hypergradients, horizon))
        record = Record(
            outer_step=outer_step + 1,
            horizon=horizon,
            status=BROKE_DOWN if broke_down else MEASURED,
            outcome="best" if is_best else "rejected" if broke_down else "accepted",
            logs=dict(sorted(outcome.logs.items())),  # As callbacks get them.
            values=in_short(optimizer.values),
            hypergradients=means,
            val_loss_error=error,
            spent=problem.spent(search.observations),
            bands=bands and [self.values_of_numbers(end) for end in bands],
            interpolations={h.name: h.interpolation for h in optimizer.hyperparameters},
            in_quantiles=[h.name for h in optimizer.hyperparameters if h.size > MOST_TOLD],
        )
        search.records.append(record)
        search.position, search.partial = search.position.next_outer_step(), None
        search.position.outer_step = outer_step + 1
        if is_best:
            stretched = coordinates
            if horizon < problem.horizon:
                stretched = optimizer.outer.over_whole(coordinates, horizon, problem)
            search.best = Best(loss, outer_step, horizon, stretched, self.model.get_weights())
        self.callbacks.on_epoch_end(outer_step, outcome.logs)

    def values_of_numbers(self, coordinates):
        """`{name: [num_buckets]}` at coordinates, without vectors."""
        values = self.buckets.values(coordinates)
        return {
            h.name: values[h.name].tolist() for h in self.buckets.hyperparameters if not h.is_vector
        }

    # ----------------------------------------------------------------- within an outer step
    def variables(self):
        """All variables of a run."""
        return [*self.state(), *(self.mode.checkpoint_variables or [])]

    def state(self):
        """The variables of a run that are not its mode's own."""
        every = [
            *self.model.variables,
            *self.model.metrics_variables,
            *self.mode.outside_variables,
            *self.optimizer.variables,
        ]
        return list({id(each): each for each in every}.values())

    def go_on(self, train):
        """Restores a partial outer step; returns the source of its batches."""
        partial, self.going_on = self.going_on, None
        for variable, array in zip(self.variables(), partial.state):
            variable.assign(tf.cast(array, variable.dtype))
        return train.replay(self.search.position.within[0])

    @contextlib.contextmanager
    def guarded(self, done):
        """Raises a `ValueError` when callbacks assign, within a run, what it depends on."""
        variables = self.guarded_variables if 0 < done < self.mode.horizon else []
        before = [tf.identity(variable.value) for variable in variables]
        yield
        self.check_rate()
        for variable, value in zip(variables, before):
            if not bool(tf.reduce_all(tf.equal(variable.value, value) | (value != value))):
                raise ValueError(
                    f"A callback assigns {variable.path!r} between the steps of a run, and "
                    "hypergradients know nothing of that. Let the model do it: a layer may count "
                    "steps and assign its own variables (`add_weight(trainable=False)`) in `call`. "
                    "For a variable that no step assigns, differentiation='forward' is right."
                )

    def present_rate(self):
        """The learning rate that a callback could set, or `None`."""
        optimizer = self.optimizer.optimizer
        learned = "learning_rate" in self.optimizer.names
        if learned or keras_optimizers.has_learning_rate_schedule(optimizer):
            return None
        return float(optimizer.learning_rate)

    def check_rate(self):
        """Raises a `ValueError` when a callback has set the learning rate."""
        if self.present_rate() != self.rate:
            self.optimizer.optimizer.learning_rate = self.rate
            refuse_rate_setters("A callback sets")

    # ------------------------------------------------------------------------ what is told
    def told_of_break_down(self, outer_step, steps, horizon, at_the_end):
        """A sentence about a run that is given up; raises when the data are at fault.

        A run may reach its end with weights that are not finite: ReLU may turn NaN into 0, so that
        losses tell nothing.
        """
        reason = f"the training loss {self.mode.break_down_reason}"
        if at_the_end:
            reason = "weights are not finite"
        not_finite = not_finite_in(self.data.train) if "finite" in reason else []
        at_fault = f" The training data hold NaN or infinities in their {' and '.join(not_finite)}."
        if not_finite and at_the_end:
            raise ValueError(f"Training leads to weights that are not finite.{at_fault}")
        if not_finite and steps == 1:
            raise ValueError(f"The training loss of the first batch is not finite.{at_fault}")
        return (
            f"Outer step {outer_step + 1}: {reason} at "
            f"inner step {steps} of {horizon}. This outer step is given up"
            + ("; the best so far is kept." if self.search.best else ".")
            + (at_fault if not_finite else "")
        )

    def told_of_unknown(self, hypergradients):
        """Sentences about hypergradients that are not a number."""
        by_name = self.buckets.split(hypergradients)
        unknown = [name for name, values in by_name.items() if np.isnan(values).any()]
        if not unknown:
            return []
        return [
            f"The hypergradients of {', '.join(map(repr, unknown))} are not a number, so "
            "they are left out. keras_fds.check_hypergradients(model, ...) finds the "
            "layer; a start value at the end of its range is another cause."
        ]
