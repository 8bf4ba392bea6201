"""The outer loop in rounds: every worker makes an outer step of its own at the same time."""

import dataclasses
import json

import numpy as np

from keras_fds.outer import Proposal
from keras_fds.search.loop import OuterLoop
from keras_fds.search.state import Outcome, Position


class Rounds(OuterLoop):
    """The outer loop of several processes that share no training.

    In a round the chief's rule proposes up to one outer step for each process, which trains it
    alone. Then all processes get what each has measured, and record the outer steps in their order,
    with the same observations, weights and callbacks. What is saved before all of them are recorded
    is the search before the round.
    """

    def can_go_on(self, partial):
        """An interrupted round begins anew."""
        return False

    def proposals(self):
        """The chief's: others may compute other last digits."""
        found, rule, processes = [], self.optimizer.outer, self.replicas.processes
        if self.replicas.is_chief:
            found = rule.propose_several(self.search.observations, self.problem, processes)
        found = self.from_process(0, [dataclasses.astuple(each) for each in found])
        return [Proposal(np.array(coordinates), *rest) for coordinates, *rest in found]

    def outer_steps(self, first, proposals):
        """Makes the outer steps of a round; returns the logs of the last one."""
        search, own = self.search, self.replicas.process
        search.begin_round(first)
        outcome, within, state = None, None, b""
        if own < len(proposals):
            outcome = self.train(first + own, proposals[own])
            within = search.position.within
            state = b"".join(variable.numpy().tobytes() for variable in self.state())
        measured = outcome and [dataclasses.asdict(outcome), within]
        numbers = range(len(proposals))
        every = [self.from_process(number, measured) for number in numbers]
        outcomes = [Outcome(**each) for each, _ in every]
        if any(each.interrupted for each in outcomes):  # The round has measured nothing.
            search.position = search.before_round.position
            if outcome:
                self.callbacks.on_epoch_end(first + own, outcome.logs)
            return outcomes[0].logs
        before = search.before_round.position.before
        for number, (proposal, outcome, (_, within)) in enumerate(zip(proposals, outcomes, every)):
            self.callbacks.set_params({**self.callbacks.params, "steps": proposal.horizon})
            if number != own:
                self.data.replay(within)
                self.callbacks.on_epoch_begin(first + number)
            self.assign(self.replicas.from_process(number, state))
            search.position = Position(first + number, before=before, within=within)
            if number == numbers[-1]:
                search.before_round = None
            self.finish(first + number, proposal, outcome)
            before = search.position.before
        return outcome.logs

    def from_process(self, number, content):
        """What a process passes, something that JSON can hold; those of others do not count."""
        text = json.dumps(content, default=lambda number: number.tolist())
        return json.loads(self.replicas.from_process(number, text.encode()))

    def assign(self, state):
        """Makes the state of an outer step, its bytes, the present one."""
        begin = 0
        for variable in self.state():
            like = variable.numpy()
            array = np.frombuffer(state, like.dtype, like.size, begin).reshape(like.shape)
            variable.assign(array)
            begin += like.nbytes
