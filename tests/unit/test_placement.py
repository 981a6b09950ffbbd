"""Placement: zones first, then balance, and no more movement than that needs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.controller.placement import (
    Led,
    Move,
    NodeLoad,
    VoterCandidate,
    assign,
    controller_voter_count,
    controller_voters,
    leader_moves,
    rebalance_moves,
    replacement,
    surplus,
)

ZONES = ("", "a", "b", "c")


@st.composite
def node_lists(draw: st.DrawFn, *, loaded: bool = False) -> list[NodeLoad]:
    ids = draw(st.lists(st.integers(1, 99), min_size=1, max_size=9, unique=True))
    busy = st.integers(0, 20) if loaded else st.just(0)
    return [
        NodeLoad(
            node_id=node_id,
            zone=draw(st.sampled_from(ZONES)),
            replicas=draw(busy),
            leaders=draw(busy),
        )
        for node_id in ids
    ]


def spread(counts: Counter[int], node_ids: list[int]) -> int:
    values = [counts[node_id] for node_id in node_ids]
    return max(values) - min(values)


@given(node_lists(loaded=True), st.integers(1, 30), st.integers(1, 7), st.integers(0, 1000))
def test_assigned_replicas_are_on_different_nodes_and_in_as_many_zones_as_there_are(
    nodes: list[NodeLoad], partitions: int, factor: int, rotation: int
) -> None:
    factor = min(factor, len(nodes))
    zones = {node.node_id: node.zone for node in nodes}
    result = assign(nodes, partitions=partitions, replication_factor=factor, rotation=rotation)
    assert len(result) == partitions
    for node_ids in result:
        assert len(set(node_ids)) == factor
        assert set(node_ids) <= set(zones)
        assert len({zones[n] for n in node_ids}) == min(factor, len(set(zones.values())))


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 7), st.integers(0, 1000))
def test_without_zones_replicas_and_leaders_differ_by_one_at_most(
    count: int, partitions: int, factor: int, rotation: int
) -> None:
    node_ids = list(range(1, count + 1))
    result = assign(
        [NodeLoad(node_id=node_id) for node_id in node_ids],
        partitions=partitions,
        replication_factor=min(factor, count),
        rotation=rotation,
    )
    assert spread(Counter(n for chosen in result for n in chosen), node_ids) <= 1
    assert spread(Counter(chosen[0] for chosen in result), node_ids) <= 1


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(0, 1000))
def test_with_zones_of_equal_size_replicas_differ_by_one_at_most(
    per_zone: int, partitions: int, factor: int, rotation: int
) -> None:
    nodes = [NodeLoad(node_id=n, zone=f"z{n % 3}") for n in range(1, 3 * per_zone + 1)]
    result = assign(nodes, partitions=partitions, replication_factor=factor, rotation=rotation)
    counts = Counter(n for chosen in result for n in chosen)
    assert spread(counts, [node.node_id for node in nodes]) <= 1


@given(st.integers(2, 9), st.lists(st.integers(1, 5), min_size=10, max_size=20))
def test_many_small_topics_balance_as_one_large_topic_does(count: int, sizes: list[int]) -> None:
    replicas: Counter[int] = Counter()
    leaders: Counter[int] = Counter()
    node_ids = list(range(1, count + 1))
    for rotation, partitions in enumerate(sizes):
        nodes = [NodeLoad(node_id=n, replicas=replicas[n], leaders=leaders[n]) for n in node_ids]
        factor = min(3, count)
        for chosen in assign(
            nodes, partitions=partitions, replication_factor=factor, rotation=rotation
        ):
            replicas.update(chosen)
            leaders[chosen[0]] += 1
    assert spread(replicas, node_ids) <= 1
    assert spread(leaders, node_ids) <= 1 + count // 4  # a topic's own sets bound what it can mend


def test_too_few_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 replicas on 2 nodes"):
        assign(
            [NodeLoad(node_id=1), NodeLoad(node_id=2)],
            partitions=1,
            replication_factor=3,
            rotation=0,
        )


def test_one_partition_topics_begin_on_different_nodes() -> None:
    nodes = [NodeLoad(node_id=n) for n in (1, 2, 3)]
    first = [
        assign(nodes, partitions=1, replication_factor=1, rotation=rotation)[0][0]
        for rotation in range(3)
    ]
    assert sorted(first) == [1, 2, 3]


@given(node_lists(loaded=True), st.data())
def test_a_replacement_is_a_new_node_in_an_unused_zone_if_there_is_one(
    nodes: list[NodeLoad], data: st.DataObject
) -> None:
    zones = {node.node_id: node.zone for node in nodes}
    staying = data.draw(st.lists(st.sampled_from(sorted(zones)), unique=True, max_size=6))
    found = replacement(staying, nodes, zones)
    others = [node for node in nodes if node.node_id not in staying]
    if not others:
        assert found is None
        return
    assert found in [node.node_id for node in others]
    used = {zones[n] for n in staying}
    unused = [node for node in others if node.zone not in used]
    if unused:
        assert zones[found or 0] not in used
        lightest = min(node.replicas for node in unused)
        assert next(n.replicas for n in unused if n.node_id == found) == lightest


def test_surplus_gives_up_the_node_that_leaves_then_the_doubled_zone_then_the_loaded() -> None:
    zones = {1: "a", 2: "b", 3: "b", 4: "c"}
    nodes = [NodeLoad(node_id=n, zone=zones[n], replicas=n) for n in (1, 2, 3, 4)]
    assert surplus((1, 2, 9), nodes, zones) == 9
    assert surplus((1, 2, 3, 4), nodes, zones) == 3
    assert surplus((1, 3, 4), nodes, zones) == 4
    assert surplus((4, 1, 2), nodes, zones) == 2, "the preferred leader stays"


@st.composite
def placed_groups(draw: st.DrawFn) -> tuple[dict[int, tuple[int, ...]], list[int], dict[int, str]]:
    """Any state: unbalanced, badly spread, on nodes that are to get nothing more."""
    node_ids = list(range(1, draw(st.integers(2, 8)) + 1))
    zones = {node_id: draw(st.sampled_from(ZONES)) for node_id in node_ids}
    sets = st.lists(st.sampled_from(node_ids), unique=True, min_size=1, max_size=3)
    groups = {g: tuple(draw(sets)) for g in range(2, draw(st.integers(2, 30)))}
    eligible = draw(st.lists(st.sampled_from(node_ids), unique=True, min_size=1))
    return groups, eligible, zones


def moved(groups: dict[int, tuple[int, ...]], moves: list[Move]) -> dict[int, tuple[int, ...]]:
    result = dict(groups)
    for move in moves:
        assert move.from_node in result[move.group_id]
        assert move.to_node not in result[move.group_id]
        result[move.group_id] = tuple(
            move.to_node if n == move.from_node else n for n in result[move.group_id]
        )
    return result


def settle(
    groups: dict[int, tuple[int, ...]], eligible: list[int], zones: dict[int, str]
) -> tuple[dict[int, tuple[int, ...]], int]:
    """Call until nothing is to move any more, as the reconciler does."""
    count = 0
    for _ in range(1000):
        moves = rebalance_moves(groups, eligible=eligible, zones=zones, moves_max=4)
        assert len(moves) <= 4
        assert len({move.group_id for move in moves}) == len(moves)
        if not moves:
            return groups, count
        groups = moved(groups, moves)
        count += len(moves)
    raise AssertionError("rebalancing does not come to an end")


@given(placed_groups())
def test_rebalancing_ends_and_never_spreads_worse(
    placed: tuple[dict[int, tuple[int, ...]], list[int], dict[int, str]],
) -> None:
    groups, eligible, zones = placed
    after, _ = settle(groups, eligible, zones)
    for group_id, node_ids in groups.items():
        before = len({zones[n] for n in node_ids})
        assert len({zones[n] for n in after[group_id]}) >= before
        assert len(set(after[group_id])) == len(node_ids)


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 3))
def test_an_added_node_gets_its_share_by_no_more_moves_than_that(
    count: int, partitions: int, factor: int
) -> None:
    node_ids = list(range(1, count + 1))
    sets = assign(
        [NodeLoad(node_id=n) for n in node_ids],
        partitions=partitions,
        replication_factor=min(factor, count),
        rotation=0,
    )
    groups = dict(enumerate(sets))
    everyone = [*node_ids, count + 1]
    after, moves = settle(groups, everyone, {})
    counts = Counter(n for chosen in after.values() for n in chosen)
    assert spread(counts, everyone) <= 1
    assert moves == counts[count + 1], "every move went to the new node"


def test_a_group_on_the_move_is_left_alone_but_counts_as_load() -> None:
    groups = {2: (1,), 3: (1,), 4: (1,)}
    moves = rebalance_moves(groups, eligible=[1, 2], zones={}, moves_max=9, fixed=[2])
    assert moves == [Move(group_id=3, from_node=1, to_node=2)]


def test_a_node_in_a_new_zone_gets_one_replica_of_each_doubled_partition() -> None:
    groups = {2: (1, 2), 3: (2, 1)}
    zones = {1: "a", 2: "a", 3: "b"}
    moves = rebalance_moves(groups, eligible=[1, 2, 3], zones=zones, moves_max=9)
    assert [move.to_node for move in moves] == [3, 3]


@st.composite
def led_groups(draw: st.DrawFn) -> list[Led]:
    node_ids = list(range(1, draw(st.integers(1, 6)) + 1))
    sets = st.lists(st.sampled_from(node_ids), unique=True, min_size=1, max_size=3)
    groups = []
    for group_id in range(2, draw(st.integers(2, 25))):
        node_set = draw(sets)
        leader = draw(st.sampled_from(node_set))
        live = tuple(n for n in node_set if n == leader or draw(st.booleans()))
        groups.append(Led(group_id=group_id, leader=leader, preferred=node_set[0], candidates=live))
    return groups


@given(led_groups())
def test_leader_moves_end_in_a_balance_that_no_single_move_betters(groups: list[Led]) -> None:
    for _ in range(200):
        moves = leader_moves(groups, moves_max=3)
        assert len(moves) <= 3
        if not moves:
            break
        by_group = dict(moves)
        for group in groups:
            assert by_group.get(group.group_id, group.leader) in group.candidates
        groups = [
            Led(
                group_id=g.group_id,
                leader=by_group.get(g.group_id, g.leader),
                preferred=g.preferred,
                candidates=g.candidates,
            )
            for g in groups
        ]
    else:
        raise AssertionError("leaders move for ever")
    counts = Counter(group.leader for group in groups)
    for group in groups:
        for node_id in group.candidates:
            assert counts[group.leader] - counts[node_id] <= 1


def test_a_chain_of_moves_longer_than_allowed_does_not_keep_shorter_ones_from_being_made() -> None:
    chain = [(4, (4, 6)), (4, (4,)), (4, (4,)), (6, (5, 6)), (6, (6,)), (5, (5, 1)), (5, (5,))]
    shorter = [(1, (1,)), (1, (1, 3))]
    groups = [
        Led(group_id=group_id, leader=leader, preferred=leader, candidates=candidates)
        for group_id, (leader, candidates) in enumerate([*chain, *shorter], 2)
    ]
    assert leader_moves(groups, moves_max=3) == [(10, 3)]


def test_a_leader_goes_home_when_that_unbalances_nothing() -> None:
    groups = [
        Led(group_id=2, leader=2, preferred=1, candidates=(1, 2, 3)),
        Led(group_id=3, leader=2, preferred=2, candidates=(1, 2, 3)),
        Led(group_id=4, leader=3, preferred=3, candidates=(1, 2, 3)),
    ]
    assert leader_moves(groups, moves_max=9) == [(2, 1)]


def test_a_node_that_should_lead_nothing_is_relieved_first() -> None:
    groups = [
        Led(group_id=2, leader=1, preferred=1, candidates=(1, 2)),
        Led(group_id=3, leader=3, preferred=3, candidates=(1, 2)),
    ]
    assert leader_moves(groups, moves_max=9) == [(3, 2)]


def test_a_leader_does_not_go_home_to_a_dead_node() -> None:
    groups = [Led(group_id=2, leader=2, preferred=1, candidates=(2, 3))]
    assert leader_moves(groups, moves_max=9) == []


def test_controller_voters_are_odd_up_to_five_but_two_of_two() -> None:
    counts = [controller_voter_count(members) for members in range(1, 9)]
    assert counts == [1, 2, 3, 3, 5, 5, 5, 5]


@given(
    st.lists(
        st.builds(
            VoterCandidate,
            node_id=st.integers(1, 50),
            zone=st.sampled_from(ZONES),
            eligible=st.booleans(),
            alive=st.booleans(),
        ),
        max_size=10,
        unique_by=lambda member: member.node_id,
    ),
    st.data(),
)
def test_chosen_controller_voters_are_stable_eligible_and_alive_if_possible(
    members: list[VoterCandidate], data: st.DataObject
) -> None:
    known = sorted(member.node_id for member in members) or [99]
    current = tuple(data.draw(st.lists(st.sampled_from(known), unique=True, max_size=5)))
    chosen = controller_voters(members, current)
    eligible = {member.node_id for member in members if member.eligible}
    alive = {member.node_id for member in members if member.eligible and member.alive}
    everyone = {member.node_id for member in members}
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= everyone
    assert len(chosen) >= min(3, len(everyone))
    assert set(chosen) <= eligible or (eligible <= set(chosen) and len(chosen) <= 3)
    assert set(chosen) <= alive or alive <= set(chosen)
    assert controller_voters(members, chosen) == chosen, "asked again, nothing changes"


def test_controller_voters_spread_over_zones_and_a_dead_one_is_replaced() -> None:
    def member(node_id: int, zone: str, *, alive: bool = True) -> VoterCandidate:
        return VoterCandidate(node_id=node_id, zone=zone, eligible=True, alive=alive)

    zoned = [member(1, "a"), member(2, "a"), member(3, "b"), member(4, "c")]
    assert controller_voters(zoned, (1, 2, 3)) == (1, 3, 4)
    flat = [member(1, ""), member(2, "", alive=False), member(3, ""), member(4, "")]
    assert controller_voters(flat, (1, 2, 3)) == (1, 3, 4)
    assert controller_voters(flat[:3], (1, 2, 3)) == (1, 2, 3), "nobody to take its place"
