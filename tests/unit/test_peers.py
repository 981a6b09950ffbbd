"""What nodes know of each other's leaderships, and that nothing of it is lost for good."""

from __future__ import annotations

import asyncio

from cluster.interfaces import NodeBeat, Peer
from cluster.peers import Peers

GROUP = 7
SILENCE_TICKS = 10


def two() -> tuple[Peers, Peers]:
    one, other = Peers(1, silence_ticks=SILENCE_TICKS), Peers(2, silence_ticks=SILENCE_TICKS)
    one.set_node(2)
    other.set_node(1)
    return one, other


def beat(sender: Peers, receiver: Peers) -> NodeBeat:
    """As the host sends it."""
    told = NodeBeat(
        0, sender.leads_for(receiver.node_id), asks_leads=sender.asks_leads(receiver.node_id)
    )
    peer = Peer(sender.node_id, "i", f"boot of {sender.node_id}")
    receiver.heard(peer, told, wall_ms=0)
    return told


def test_leaderships_are_told_once_and_when_they_change() -> None:
    one, other = two()
    beat(other, one)
    one.observe(GROUP, term=3, node_id=1, leads_here=True)
    assert beat(one, other).leads == ((GROUP, 3),)
    assert other.leader_of(GROUP) == (1, 3)
    assert beat(one, other).leads is None
    one.observe(GROUP, term=4, node_id=0, leads_here=False)
    assert beat(one, other).leads == ()
    assert other.leader_of(GROUP) is None


def test_what_was_forgotten_in_a_silence_is_asked_for_again() -> None:
    """The silent node stood still, led on, and has no news of its own to tell."""
    one, other = two()
    one.observe(GROUP, term=3, node_id=1, leads_here=True)
    beat(one, other)
    assert [other.tick() for _ in range(SILENCE_TICKS)][-1] == [1]
    other.forget_leads_of(1)
    assert other.leader_of(GROUP) is None
    assert beat(one, other).leads is None
    assert beat(other, one).asks_leads
    beat(one, other)
    assert other.leader_of(GROUP) == (1, 3)
    assert not beat(other, one).asks_leads


def test_a_node_whose_replica_went_elsewhere_still_knows_who_leads() -> None:
    one, other = two()
    one.observe(GROUP, term=3, node_id=1, leads_here=True)
    beat(one, other)
    other.replica_gone(GROUP)
    assert other.leader_of(GROUP) == (1, 3)
    one.replica_gone(GROUP)
    assert one.leader_of(GROUP) is None
    beat(one, other)
    assert other.leader_of(GROUP) is None


def test_of_a_deleted_group_nothing_is_kept() -> None:
    one, other = two()
    one.observe(GROUP, term=3, node_id=1, leads_here=True)
    beat(one, other)
    other.group_gone(GROUP)
    assert other.leader_of(GROUP) is None


async def test_a_change_of_leader_is_seen_though_it_is_undone_at_once() -> None:
    """One that leads and is not ready says NOT_LEADER; before those who wait for a change get to
    run, its next message says again that it leads."""
    one, _ = two()
    one.observe(GROUP, term=3, node_id=2, leads_here=False)
    changed = asyncio.ensure_future(one.leader_change(GROUP, (2, 3)))
    await asyncio.sleep(0)
    one.observe(GROUP, term=3, node_id=2, leads_here=False)
    await asyncio.sleep(0)
    assert not changed.done()
    one.forget_leader(GROUP, node_id=2, term=3)
    one.observe(GROUP, term=3, node_id=2, leads_here=False)
    await changed
    assert one.leader_of(GROUP) == (2, 3)
