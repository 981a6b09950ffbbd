"""The simulated stories of `make test`, with many more seeds."""

from __future__ import annotations

import os

import pytest

from tests.simulation import test_cluster, test_membership, test_producing

COUNT = int(os.environ.get("QUORUMQ_RIG_SEEDS", "25"))
FIRST = 1000 * int(os.environ.get("QUORUMQ_RIG_SEED", "1"))
SEEDS = range(FIRST, FIRST + COUNT)


@pytest.mark.parametrize("seed", SEEDS)
def test_crashes_of_nodes(seed: int) -> None:
    test_cluster.test_crashes_of_any_node_lose_and_repeat_nothing(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_bad_networks(seed: int) -> None:
    test_cluster.test_a_bad_network_loses_and_repeats_nothing(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_while_nodes_crash(seed: int) -> None:
    test_producing.test_streams_through_any_node_keep_order_while_nodes_crash(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_streams_over_bad_networks(seed: int) -> None:
    test_producing.test_streams_through_any_node_keep_order_over_a_bad_network(seed)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(1, COUNT // 5)))
def test_members_come_and_go(seed: int) -> None:
    test_membership.test_an_added_node_gets_its_share_under_load(seed)
    test_membership.test_a_drain_goes_on_through_crashes_of_the_nodes_that_lead(seed)
    test_membership.test_a_wiped_node_comes_back_as_somebody_new_and_is_filled_again(seed)
    test_membership.test_a_dead_node_is_replaced_by_another(seed)
