"""RaftLog against a plain dict: any sequence of writes, crashes and restarts in between."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cluster.interfaces import CheckpointMeta
from cluster.raft.configuration import Configuration
from cluster.raft.messages import Entry, EntryKind, HardState
from node.storage.raft_log import RaftLog
from node.storage.tail_cache import TailBudget
from tests.simulation.memory_engine import MemoryEngine

GROUP = 3
BIG = 1 << 30


@dataclass
class Model:
    """What a log is: entries by index, where the tail begins and ends, and little else."""

    entries: dict[int, Entry] = field(default_factory=dict)
    first: int = 1
    last: int = 0
    base_term: int = 0
    configurations: list[tuple[int, Configuration]] = field(
        default_factory=lambda: [(0, Configuration())]
    )
    hard_state: HardState = field(default_factory=HardState)
    staged: dict[int, Entry] = field(default_factory=dict)

    def term(self, index: int) -> int:
        return self.base_term if index == self.first - 1 else self.entries[index].term

    def truncate(self, index: int) -> None:
        self.entries = {i: e for i, e in self.entries.items() if i < index}
        self.configurations = [c for c in self.configurations if c[0] < index]


class LogAgainstModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = MemoryEngine()
        self.budget = TailBudget(2_000)
        self.log = RaftLog(self.engine, GROUP, self.budget)
        self.model = Model()
        self.batch = self.engine.new_batch()
        self.written = [copy.deepcopy(self.model)]  # one for each batch since the last sync
        self.term = 1

    def entry(self, index: int, data: bytes) -> Entry:
        kind = EntryKind.COMMAND
        if data[:1] == b"c":
            kind = EntryKind.CONFIGURATION
            data = Configuration.of([1, 2 + len(data)]).encode()
        return Entry.create(index=index, term=self.term, kind=kind, data=data)

    @rule(
        back=st.integers(0, 6),
        datas=st.lists(st.binary(max_size=40) | st.just(b"c") | st.just(b"cc"), min_size=1),
        new_term=st.booleans(),
    )
    def append(self, back: int, datas: list[bytes], new_term: bool) -> None:
        model = self.model
        first = max(model.first, model.last + 1 - back)
        self.term += new_term or first <= model.last
        entries = [self.entry(first + at, data) for at, data in enumerate(datas)]
        self.log.append(self.batch, entries)
        model.truncate(first)
        for entry in entries:
            model.entries[entry.index] = entry
            if entry.kind is EntryKind.CONFIGURATION:
                model.configurations.append((entry.index, Configuration.decode(entry.data)))
        model.last = entries[-1].index

    @rule(voted_for=st.integers(0, 3))
    def put_hard_state(self, voted_for: int) -> None:
        self.model.hard_state = HardState(self.term, voted_for, self.model.first - 1)
        self.log.put_hard_state(self.batch, self.model.hard_state)

    @precondition(lambda self: self.model.last >= self.model.first)
    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        model = self.model
        index = data.draw(st.integers(model.first, model.last))
        self.log.compact(self.batch, index)
        model.base_term = model.term(index)
        below = [c for c in model.configurations if c[0] <= index]
        model.configurations = [below[-1], *model.configurations[len(below) :]]
        model.first = index + 1
        if model.staged and max(model.staged) <= index:
            model.staged = {}

    @rule(below=st.integers(1, 300))
    def delete_history(self, below: int) -> None:
        self.log.delete_history(self.batch, below)
        below = min(below, self.model.first)
        self.model.entries = {i: e for i, e in self.model.entries.items() if i >= below}

    @precondition(lambda self: self.model.first > 1)
    @rule(data=st.data())
    def delete_entries(self, data: st.DataObject) -> None:
        last = data.draw(st.integers(1, self.model.first - 1))
        first = data.draw(st.integers(1, last))
        self.log.delete_entries(self.batch, first, last)
        for index in range(first, last + 1):
            self.model.entries.pop(index, None)

    @rule(gaps=st.lists(st.integers(1, 4), min_size=1, max_size=8))
    def stage(self, gaps: list[int]) -> None:
        index = max(self.model.last, max(self.model.staged, default=0))
        entries = []
        for gap in gaps:
            index += gap
            entries.append(self.entry(index, b"staged"))
        self.log.stage(self.batch, entries)
        self.model.staged.update((entry.index, entry) for entry in entries)

    @precondition(lambda self: self.model.staged)
    @rule(data=st.data(), beyond=st.integers(-3, 3))
    def switch(self, data: st.DataObject, beyond: int) -> None:
        model = self.model
        applied = data.draw(st.integers(model.first - 1, model.last))
        index = max(applied + 1, max(model.staged) + beyond)
        meta = CheckpointMeta(index, self.term, Configuration.of([1, 9]), 0)
        self.log.switch(self.batch, meta, applied)
        model.truncate(applied + 1)
        model.entries |= {i: e for i, e in model.staged.items() if applied < i <= index}
        model.staged = {}
        model.first, model.last, model.base_term = index + 1, index, self.term
        model.configurations = [(index, meta.configuration)]

    @rule()
    def write(self) -> None:
        self.engine.write(self.batch)
        self.batch = self.engine.new_batch()
        self.written.append(copy.deepcopy(self.model))

    @rule()
    def sync(self) -> None:
        asyncio.run(self.engine.sync())
        self.written = self.written[-1:]

    @rule()
    def restart(self) -> None:
        self.write()
        self.log = RaftLog(self.engine, GROUP, self.budget)

    @rule(seed=st.integers(0, 1000))
    def crash(self, seed: int) -> None:
        before = self.engine.durable_number
        self.engine = self.engine.crash(Random(seed))
        self.model = self.written[self.engine.recovered_number - before]
        self.written = [copy.deepcopy(self.model)]
        self.batch = self.engine.new_batch()
        self.log = RaftLog(self.engine, GROUP, self.budget)

    @invariant()
    def tail_agrees(self) -> None:
        log, model = self.log, self.model
        assert (log.first_index, log.last_index) == (model.first, model.last)
        assert list(log.configurations) == model.configurations
        assert log.hard_state == model.hard_state
        assert log.staged_index == max(model.staged, default=0)
        indexes = range(model.first - 1, model.last + 1)
        assert [log.term(i) for i in indexes] == [model.term(i) for i in indexes]

    @precondition(lambda self: not getattr(self.batch, "writes", None))
    @invariant()
    def every_entry_agrees_once_it_is_written(self) -> None:
        log, model = self.log, self.model
        end = max([model.last, *model.staged]) + 2
        assert [log.entry(i) for i in range(1, end)] == [
            model.entries.get(i) for i in range(1, end)
        ]
        if model.last >= model.first:
            tail = [model.entries[i] for i in range(model.first, model.last + 1)]
            assert log.entries(model.first, model.last, BIG) == tail


TestLogAgainstModel = LogAgainstModel.TestCase
TestLogAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
