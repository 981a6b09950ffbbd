"""Which node should hold or lead what. Pure policy: the same question has the same answer, but
nothing relies on that: an answer is put into the catalog as a wish, and only the wish counts.

Zones come first (replicas of a partition in different zones as far as there are zones), then an
even number of replicas a node, then an even number of leaders. Nodes without a zone label count as
one zone. What is settled already is moved only where that makes things better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

CONTROLLER_VOTERS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLoad:
    """A node that may be given replicas, with what it has already."""

    node_id: int
    zone: str = ""
    replicas: int = 0
    leaders: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Of one replica of the group."""

    group_id: int
    from_node: int
    to_node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Led:
    """A group, the node that leads it, and the nodes that may lead it: live, with a voter of it.
    The leader's own is among them unless it should lead nothing (a draining node)."""

    group_id: int
    leader: int
    preferred: int
    candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VoterCandidate:
    """A member. `eligible`: ACTIVE. `alive`: heard of, or silent too shortly to matter."""

    node_id: int
    zone: str
    eligible: bool
    alive: bool


def assign(
    nodes: Sequence[NodeLoad], *, partitions: int, replication_factor: int, rotation: int
) -> tuple[tuple[int, ...], ...]:
    """Node ids for each partition of a new topic, the preferred leader first. `rotation` (any
    number, for example of topics so far) decides between equals, so that small topics do not all
    begin on the same node. Raises ValueError when there are fewer nodes than replicas."""
    if replication_factor < 1 or len(nodes) < replication_factor:
        raise ValueError(f"{replication_factor} replicas on {len(nodes)} nodes")
    ring = sorted(nodes, key=lambda node: node.node_id)
    load = {node.node_id: node.replicas for node in ring}
    leaders = {node.node_id: node.leaders for node in ring}
    sets: list[tuple[int, ...]] = []
    for partition in range(partitions):
        at = (rotation + partition) % len(ring)
        turned = [*ring[at:], *ring[:at]]
        chosen = _spread(turned, load, replication_factor)
        for node_id in chosen:
            load[node_id] += 1
        sets.append(tuple(chosen))
    first: list[int] = []
    for chosen_nodes in sets:
        leader = min(chosen_nodes, key=lambda node_id: leaders[node_id])
        leaders[leader] += 1
        first.append(leader)
    _even_out(first, sets, leaders, changes_max=partitions * replication_factor)
    return tuple(
        (leader, *(node_id for node_id in chosen if node_id != leader))
        for leader, chosen in zip(first, sets, strict=True)
    )


def replacement(
    staying: Sequence[int], nodes: Sequence[NodeLoad], zones: Mapping[int, str]
) -> int | None:
    """The node to take one more replica of a group whose other replicas are on `staying`. `nodes`:
    those that may be given replicas; `zones`: of every node. None if there is none."""
    used = [zones.get(node_id, "") for node_id in staying]
    candidates = [node for node in nodes if node.node_id not in staying]
    if not candidates:
        return None
    best = min(candidates, key=lambda n: (used.count(n.zone), n.replicas, n.node_id))
    return best.node_id


def surplus(node_ids: Sequence[int], nodes: Sequence[NodeLoad], zones: Mapping[int, str]) -> int:
    """The node to give up a replica of a group that has too many: one that may be given none, else
    where a zone has two, else not the preferred leader, else the most loaded."""
    load = {node.node_id: node.replicas for node in nodes}
    used = [zones.get(node_id, "") for node_id in node_ids]

    def cost(at: int) -> tuple[bool, int, bool, int, int]:
        node_id = node_ids[at]
        return (
            node_id not in load,
            used.count(used[at]),
            at > 0,
            load.get(node_id, 0),
            node_id,
        )

    return node_ids[max(range(len(node_ids)), key=cost)]


def rebalance_moves(
    groups: Mapping[int, Sequence[int]],
    *,
    eligible: Sequence[int],
    zones: Mapping[int, str],
    moves_max: int,
    fixed: Iterable[int] = (),
) -> list[Move]:
    """At most `moves_max` moves, of different groups, towards replicas spread over zones and then
    evenly over the `eligible` nodes. `groups`: the wished nodes of each. Groups in `fixed` count
    as load but are not moved (they are on the move already). Each move strictly improves the
    spread, or keeps it and strictly improves the balance, so repeated calls come to an end."""
    sets = {group_id: list(node_ids) for group_id, node_ids in groups.items()}
    load = dict.fromkeys(sorted(eligible), 0)
    for node_ids in sets.values():
        for node_id in node_ids:
            if node_id in load:
                load[node_id] += 1
    touched = dict.fromkeys(fixed)
    moves: list[Move] = []
    _spread_moves(sets, load, zones, touched, moves, moves_max)
    _balance_moves(sets, load, zones, touched, moves, moves_max)
    return moves


def leader_moves(groups: Sequence[Led], *, moves_max: int) -> list[tuple[int, int]]:
    """(group_id, node that should lead it), at most `moves_max`. First away from leaders that are
    no candidates, then home to the preferred leader where that makes the balance no worse, then
    whatever evens it out."""
    leaders: dict[int, int] = {}
    for group in groups:
        for node_id in (group.leader, *group.candidates):
            leaders.setdefault(node_id, 0)
        leaders[group.leader] += 1
    target = [group.leader for group in groups]
    changes = 0
    for at, group in enumerate(groups):
        if changes < moves_max and group.candidates and group.leader not in group.candidates:
            to = min(group.candidates, key=lambda node_id: leaders[node_id])
            leaders[to] += 1
            leaders[group.leader] -= 1
            target[at] = to
            changes += 1
    for at, group in enumerate(groups):
        home = group.preferred
        if changes >= moves_max or home == group.leader or home not in group.candidates:
            continue
        if target[at] != group.leader:
            continue
        if leaders[home] < leaders[group.leader]:
            leaders[home] += 1
            leaders[group.leader] -= 1
            target[at] = home
            changes += 1
    choices = [group.candidates for group in groups]
    _even_out(target, choices, leaders, changes_max=moves_max - changes)
    return [
        (group.group_id, node_id)
        for group, node_id in zip(groups, target, strict=True)
        if node_id != group.leader
    ]


def controller_voter_count(members: int) -> int:
    """Odd, at most 5. Two members both vote: that survives no failure, as one voter would not
    either, but a disk that is lost does not take the only copy of the catalog along."""
    if members <= 3:
        return members
    return min(CONTROLLER_VOTERS_MAX, members if members % 2 else members - 1)


def controller_voters(members: Sequence[VoterCandidate], current: Sequence[int]) -> tuple[int, ...]:
    """Node ids that should vote in the controller group; those of `current` that stay come first,
    in their order. Spread over zones; of equals who votes now goes on. A dead voter is replaced
    when a live member can take its place. Nodes that are not eligible vote only where there would
    be fewer than three voters without them: they can, as long as they are there."""
    eligible = sum(member.eligible for member in members)
    count = min(controller_voter_count(len(members)), max(3, controller_voter_count(eligible)))
    chosen: list[VoterCandidate] = []
    for _ in range(count):
        zones = [member.zone for member in chosen]
        chosen.append(
            min(
                (member for member in members if member not in chosen),
                key=lambda m: (
                    not m.eligible,
                    not m.alive,
                    zones.count(m.zone),
                    m.node_id not in current,
                    m.node_id,
                ),
            )
        )
    node_ids = sorted(member.node_id for member in chosen)
    staying = [node_id for node_id in current if node_id in node_ids]
    return (*staying, *(node_id for node_id in node_ids if node_id not in staying))


def _spread(turned: Sequence[NodeLoad], load: Mapping[int, int], count: int) -> list[int]:
    """`count` nodes: the zone with the fewest of them so far, then the least loaded, then turn."""
    chosen: list[int] = []
    used: dict[str, int] = {}
    rest = list(turned)
    for _ in range(count):
        best = rest[0]
        best_key = (used.get(best.zone, 0), load[best.node_id])
        for node in rest[1:]:
            key = (used.get(node.zone, 0), load[node.node_id])
            if key < best_key:
                best, best_key = node, key
        rest.remove(best)
        chosen.append(best.node_id)
        used[best.zone] = used.get(best.zone, 0) + 1
    return chosen


def _spread_moves(
    sets: dict[int, list[int]],
    load: dict[int, int],
    zones: Mapping[int, str],
    touched: dict[int, None],
    moves: list[Move],
    moves_max: int,
) -> None:
    """Two replicas in a zone while another zone has none: one of them goes there."""
    for group_id in sorted(sets):
        if len(moves) >= moves_max:
            return
        node_ids = sets[group_id]
        used = [zones.get(node_id, "") for node_id in node_ids]
        if group_id in touched or len(set(used)) == len(used):
            continue
        doubled = [n for n in node_ids if n in load and used.count(zones.get(n, "")) > 1]
        free = [node_id for node_id in load if zones.get(node_id, "") not in used]
        if doubled and free:
            from_node = max(doubled, key=lambda node_id: (load[node_id], node_id))
            to_node = min(free, key=lambda node_id: (load[node_id], node_id))
            _move(group_id, from_node, to_node, sets, load, touched, moves)


def _balance_moves(
    sets: dict[int, list[int]],
    load: dict[int, int],
    zones: Mapping[int, str],
    touched: dict[int, None],
    moves: list[Move],
    moves_max: int,
) -> None:
    on_node: dict[int, list[int]] = {node_id: [] for node_id in load}
    for group_id in sorted(sets):
        for node_id in sets[group_id]:
            if node_id in on_node and group_id not in touched:
                on_node[node_id].append(group_id)
    while len(moves) < moves_max:
        found = _balance_move(sets, load, zones, on_node)
        if found is None:
            return
        for node_id in sets[found[0]]:
            if node_id in on_node:
                on_node[node_id].remove(found[0])
        _move(*found, sets, load, touched, moves)


def _balance_move(
    sets: dict[int, list[int]],
    load: dict[int, int],
    zones: Mapping[int, str],
    on_node: dict[int, list[int]],
) -> tuple[int, int, int] | None:
    """(group, from, to) between the most different two nodes where any group may be moved."""
    rising = sorted(load, key=lambda node_id: (load[node_id], node_id))
    for high in reversed(rising):
        for low in rising:
            if load[high] - load[low] < 2:
                break
            for group_id in on_node[high]:
                node_ids = sets[group_id]
                if low in node_ids:
                    continue
                others = [zones.get(n, "") for n in node_ids if n != high]
                if zones.get(low, "") not in others or zones.get(high, "") in others:
                    return group_id, high, low
    return None


def _move(
    group_id: int,
    from_node: int,
    to_node: int,
    sets: dict[int, list[int]],
    load: dict[int, int],
    touched: dict[int, None],
    moves: list[Move],
) -> None:
    sets[group_id] = [to_node if n == from_node else n for n in sets[group_id]]
    load[from_node] -= 1
    load[to_node] += 1
    touched[group_id] = None
    moves.append(Move(group_id=group_id, from_node=from_node, to_node=to_node))


def _even_out(
    leader: list[int],
    choices: Sequence[Sequence[int]],
    leaders: dict[int, int],
    *,
    changes_max: int,
) -> None:
    """Change `leader` (one a group, out of its `choices`) so that the counts in `leaders` differ as
    little as they can, by at most `changes_max` changes. `leaders` may count other groups too.
    Shortest augmenting paths: node a leads a group that b could lead, b one that c could, and c
    leads at least two fewer than a; each path lowers the sum of squares, so it ends."""
    led: dict[int, list[int]] = {}
    for at, node_id in enumerate(leader):
        led.setdefault(node_id, []).append(at)
    while changes_max > 0:
        path: list[tuple[int, int]] = []
        for start in sorted(led, key=lambda node_id: (-leaders[node_id], node_id)):
            path = _path(start, led, choices, leaders)
            if 0 < len(path) <= changes_max:  # one that is too long must not hide a shorter one
                break
        else:
            return
        changes_max -= len(path)
        for at, node_id in path:
            led[leader[at]].remove(at)
            leaders[leader[at]] -= 1
            leader[at] = node_id
            led.setdefault(node_id, []).append(at)
            leaders[node_id] += 1


def _path(
    start: int,
    led: Mapping[int, Sequence[int]],
    choices: Sequence[Sequence[int]],
    leaders: Mapping[int, int],
) -> list[tuple[int, int]]:
    """(group, its new leader) from `start` to a node that leads at least two fewer; [] if none."""
    came: dict[int, tuple[int, int]] = {}  # node: (group that it would take over, from which node)
    queue = [start]
    for node_id in queue:  # grows while it is walked
        for at in led.get(node_id, ()):
            for other in choices[at]:
                if other == start or other in came:
                    continue
                came[other] = (at, node_id)
                if leaders[other] <= leaders[start] - 2:
                    return _walk_back(start, other, came)
                queue.append(other)
    return []


def _walk_back(start: int, end: int, came: Mapping[int, tuple[int, int]]) -> list[tuple[int, int]]:
    path: list[tuple[int, int]] = []
    node_id = end
    while node_id != start:
        at, before = came[node_id]
        path.append((at, node_id))
        node_id = before
    return path[::-1]
