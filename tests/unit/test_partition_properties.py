"""Any sequence of commands: offsets dense, dedup exact, replicas byte-equal, checkpoint + replay =
state (rules R15, R16; house §4.2; bug classes 7, 36-38)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node import codec
from node.partition.commands import Append, Appended, Command, RecordsAppended, Refused
from node.partition.machine import Outcome, PartitionMachine
from tests.unit.partition_model import COMMANDS, PartitionModel

HISTORIES = st.lists(COMMANDS, max_size=60)


class Checkpoint:
    """What a snapshot store keeps: each freeze adds what changed."""

    def __init__(self) -> None:
        self.index = 0
        self.segments: dict[bytes, bytes] = {}

    def take(self, machine: PartitionMachine) -> int:
        frozen = machine.freeze()
        self.index = frozen.applied_index
        changed = list(frozen.changed_segments())
        for name, data in changed:
            if data is None:
                self.segments.pop(name, None)
            else:
                self.segments[name] = data
        return len(changed)

    def restore(self) -> PartitionMachine:
        return PartitionMachine.restored(self.index, self.segments.items())


def whole_state(machine: PartitionMachine) -> dict[bytes, bytes]:
    """Of a machine that was never frozen: then everything is changed."""
    checkpoint = Checkpoint()
    checkpoint.take(machine)
    return checkpoint.segments


@given(HISTORIES)
@settings(max_examples=300, deadline=None)
def test_the_machine_answers_as_the_model_does(history: list[Command]) -> None:
    machine, model = PartitionMachine(), PartitionModel()
    for index, command in enumerate(history, 1):
        reply, _ = machine.apply(index, 1, command)
        expected = model.answer(command)
        if expected is not None:
            assert (reply.reason if isinstance(reply, Refused) else reply) == expected, command
        assert machine.next_offset == model.next_offset
        assert machine.first_offset == model.first_offset
        assert machine.settings == model.settings
    positions = {name: machine.positions.get(name) for name in ("one", "two", "drei")}
    held = {name: known.position for name, known in positions.items() if known is not None}
    assert held == model.positions
    assert machine.producers.count == len(model.producers)


@given(HISTORIES)
@settings(max_examples=200, deadline=None)
def test_offsets_are_dense_and_append_times_never_fall(history: list[Command]) -> None:
    machine = PartitionMachine()
    next_offset = append_time_ms = stored_bytes = 0
    for index, command in enumerate(history, 1):
        reply, effects = machine.apply(index, 1, command)
        for effect in effects:
            if isinstance(effect, RecordsAppended):
                assert isinstance(command, Append)
                assert isinstance(reply, Appended)
                assert effect.base_offset == reply.base_offset == next_offset
                assert effect.append_time_ms >= append_time_ms
                assert effect.start_bytes == stored_bytes
                next_offset += effect.record_count
                append_time_ms = effect.append_time_ms
                stored_bytes += len(command.batch)
    assert machine.next_offset == next_offset
    assert machine.first_offset <= machine.next_offset


@given(HISTORIES, st.data())
@settings(max_examples=300, deadline=None)
def test_checkpoint_and_replay_give_the_state(history: list[Command], data: st.DataObject) -> None:
    """One replica lives through; the other takes checkpoints, crashes, restores and replays what
    came after its last one. At the end and in every answer they are equal, byte for byte."""
    steady, shaky, checkpoint = PartitionMachine(), PartitionMachine(), Checkpoint()
    outcomes: list[Outcome] = []
    for index, command in enumerate(history, 1):
        outcomes.append(steady.apply(index, 1, command))
        assert shaky.apply(index, 1, command) == outcomes[-1]
        event = data.draw(st.sampled_from(["goes on", "goes on", "checkpoint", "crash"]))
        if event == "checkpoint":
            checkpoint.take(shaky)
        elif event == "crash" and checkpoint.index:
            shaky = checkpoint.restore()
            for at in range(checkpoint.index + 1, index + 1):
                assert shaky.apply(at, 1, history[at - 1]) == outcomes[at - 1]
    checkpoint.take(shaky)
    assert checkpoint.segments == whole_state(steady)
    changed = checkpoint.restore().freeze().changed_segments()
    assert list(changed) == [(b"core", checkpoint.segments[b"core"])], "restored is not changed"


@given(st.lists(COMMANDS, max_size=30))
@settings(max_examples=200, deadline=None)
def test_commands_mean_the_same_after_the_codec(history: list[Command]) -> None:
    direct, stored = PartitionMachine(), PartitionMachine()
    for index, command in enumerate(history, 1):
        decoded = codec.decode(codec.encode(command))
        assert decoded == command
        assert stored.apply(index, 1, decoded) == direct.apply(index, 1, command)
    assert whole_state(stored) == whole_state(direct)
