"""`quorumq cluster`."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable

import click

from node.cli import failures
from node.cli.output import Output, as_dict, enum_name, shown, shown_bytes, shown_time, table
from node.cli.session import options, run, settings_of
from quorumq import Client
from quorumq.v1 import admin_pb2 as pb
from quorumq.v1 import errors_pb2

_NODE_COLUMNS = (
    "node",
    "state",
    "zone",
    "clients",
    "peers",
    "version",
    "replicas",
    "leaders",
    "disk free",
    "clock skew ms",
)
_OPERATION_COLUMNS = (
    ("operation", "operation_id"),
    ("kind", "kind"),
    ("state", "state"),
    ("node", "node_id"),
    ("topic", "topic"),
    ("done", "steps_done"),
    ("of", "steps_total"),
    ("progress", "progress"),
)
_CLOCK_SKEW_MS_MAX = 500

_node_id = click.argument("node_id", type=click.IntRange(1, (1 << 31) - 1))
_wait = click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Return when the operation has ended."
)


@click.group("cluster")
def command() -> None:
    """See and change the cluster."""


# --- looking --------------------------------------------------------------------------------------


@command.command("status")
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show the nodes and what they hold, as the controller's leader sees it."""
    cluster = run(ctx, _cluster)
    output = Output(settings_of(ctx).output)
    if output.form != "table":
        output.one(as_dict(cluster))
        return
    controller = str(cluster.controller.node_id) if cluster.HasField("controller") else "-"
    output.one(
        {
            "cluster": cluster.cluster_id,
            "controller": f"node {controller}",
            **as_dict(cluster.counts),
        }
    )
    table([_node_row(node) for node in cluster.nodes], _NODE_COLUMNS)


@command.command("health")
@click.pass_context
def health(ctx: click.Context) -> int:
    """Say whether all is well; the exit code is 1 when it is not.

    Well is: the controller has a leader, every node is alive with disk room and a true clock, every
    partition has a leader and all its replicas.
    """
    problems = problems_of(run(ctx, _cluster))
    output = Output(settings_of(ctx).output)
    if output.form == "table":
        print("\n".join(problems) or "healthy")
    else:
        output.one({"healthy": not problems, "problems": problems})
    return failures.OTHER if problems else failures.OK


@command.command("operations")
@click.option("--running", is_flag=True, help="Only those that have not ended.")
@click.pass_context
def operations(ctx: click.Context, running: bool) -> None:
    """List operations, newest first."""

    async def work(client: Client) -> list[pb.Operation]:
        return await client.admin.list_operations(running_only=running)

    rows = [as_dict(operation) for operation in run(ctx, work)]
    Output(settings_of(ctx).output).items(rows, _OPERATION_COLUMNS)


async def _cluster(client: Client) -> pb.GetClusterResponse:
    return await client.admin.get_cluster()


def problems_of(cluster: pb.GetClusterResponse) -> list[str]:
    """One line each; [] = all is well."""
    problems = []
    if not cluster.HasField("controller"):
        problems.append("the controller has no leader")
    for node in cluster.nodes:
        if node.state == pb.NODE_STATE_DEAD:
            problems.append(f"node {node.node_id} is dead")
        if node.disk_full:
            room = shown_bytes(node.disk_free_bytes)
            problems.append(f"node {node.node_id} takes no appends: {room} of disk room are left")
        if node.state == pb.NODE_STATE_ACTIVE and abs(node.clock_skew_ms) > _CLOCK_SKEW_MS_MAX:
            problems.append(f"node {node.node_id} has a clock that is {node.clock_skew_ms} ms off")
    if cluster.counts.leaderless_partitions:
        problems.append(f"{cluster.counts.leaderless_partitions} partitions have no leader")
    if cluster.counts.under_replicated_partitions:
        problems.append(
            f"{cluster.counts.under_replicated_partitions} partitions lack live replicas"
        )
    return problems


def _node_row(node: pb.NodeInfo) -> list[str]:
    room = "-"
    if node.disk_total_bytes:
        share = 100 * node.disk_free_bytes // node.disk_total_bytes
        full = ", FULL" if node.disk_full else ""
        room = f"{shown_bytes(node.disk_free_bytes)} ({share}%{full})"
    return [
        str(node.node_id),
        enum_name(pb.NodeState.DESCRIPTOR, node.state),
        node.zone or "-",
        node.client_endpoint,
        node.peer_endpoint,
        node.version or "-",
        f"{node.replica_count:,}",
        f"{node.leader_count:,}",
        room,
        str(node.clock_skew_ms),
    ]


# --- changing -------------------------------------------------------------------------------------


@command.command("add-node")
@_node_id
@click.argument("peer_endpoint")
@_wait
@click.pass_context
def add_node(ctx: click.Context, node_id: int, peer_endpoint: str, wait: bool) -> None:
    """Take node NODE_ID in, which runs and is reached by other nodes at PEER_ENDPOINT."""
    _operate(ctx, lambda client: client.admin.add_node(node_id, peer_endpoint), wait=wait)


@command.command("drain")
@_node_id
@click.option("--cancel", is_flag=True, help="The node takes part again.")
@_wait
@click.pass_context
def drain(ctx: click.Context, node_id: int, cancel: bool, wait: bool) -> None:
    """Move all replicas and leaderships away from node NODE_ID."""
    if cancel:
        operation = run(ctx, lambda client: client.admin.drain_node(node_id, cancel=True))
        _show(ctx, operation)
        return
    _operate(ctx, lambda client: client.admin.drain_node(node_id), wait=wait)


@command.command("remove-node")
@_node_id
@click.option("--force", is_flag=True, help="Also when it is neither drained nor dead.")
@_wait
@click.pass_context
def remove_node(ctx: click.Context, node_id: int, force: bool, wait: bool) -> None:
    """Take a drained or dead node out of the cluster."""
    _operate(ctx, lambda client: client.admin.remove_node(node_id, force=force), wait=wait)


@command.command("move-replica")
@click.argument("topic")
@click.argument("partition", type=click.IntRange(0))
@options(
    click.option("--from", "from_node", type=int, required=True, help="Gives the replica up."),
    click.option("--to", "to_node", type=int, required=True, help="Gets the replica."),
)
@_wait
@click.pass_context
def move_replica(
    ctx: click.Context, topic: str, partition: int, from_node: int, to_node: int, wait: bool
) -> None:
    """Move a replica of PARTITION of TOPIC to another node."""

    def start(client: Client) -> Awaitable[pb.Operation]:
        return client.admin.move_replica(
            topic, partition, from_node_id=from_node, to_node_id=to_node
        )

    _operate(ctx, start, wait=wait)


@command.command("transfer-leader")
@click.argument("topic", required=False)
@click.argument("partition", type=click.IntRange(0), required=False)
@click.option("--controller", is_flag=True, help="Of the controller instead of a partition.")
@click.option("--to", "to_node", type=int, help="Default: whoever is furthest along.")
@click.pass_context
def transfer_leader(
    ctx: click.Context,
    topic: str | None,
    partition: int | None,
    controller: bool,
    to_node: int | None,
) -> None:
    """Hand over the leadership of PARTITION of TOPIC, or with --controller the controller's."""
    if controller == (topic is not None) or (topic is None) != (partition is None):
        raise click.UsageError("give TOPIC and PARTITION, or --controller")

    async def work(client: Client) -> errors_pb2.Leader:
        return await client.admin.transfer_leader(topic or "", partition or 0, to_node_id=to_node)

    Output(settings_of(ctx).output).one(as_dict(run(ctx, work, changes=True)))


def _operate(
    ctx: click.Context, start: Callable[[Client], Awaitable[pb.Operation]], *, wait: bool
) -> None:
    """Begin an operation and watch it to its end; --timeout is for each request, not for all of it.
    Raises CommandFailed when it did not end well."""

    async def work(client: Client) -> pb.Operation:
        last = await start(client)
        if not wait:
            return last
        print(f"operation {last.operation_id}", file=sys.stderr)
        said = ""
        async for operation in client.admin.watch_operation(last.operation_id):
            last, told = operation, _told(operation)
            if told != said:
                print(told, file=sys.stderr)
            said = told
        return last

    operation = run(ctx, work, changes=True)
    _show(ctx, operation)
    if operation.state == pb.OPERATION_STATE_FAILED:
        reason = errors_pb2.Reason.Name(operation.error.reason).removeprefix("REASON_")
        raise failures.CommandFailed(reason, operation.error.message)
    if operation.state == pb.OPERATION_STATE_CANCELLED:
        raise failures.CommandFailed("CANCELLED", "another request ended the operation")


def _show(ctx: click.Context, operation: pb.Operation) -> None:
    output = Output(settings_of(ctx).output)
    shown_operation = as_dict(operation)
    if output.form == "table":
        for name in ("started_at_ms", "ended_at_ms"):
            if name in shown_operation:
                shown_operation[name.removesuffix("_at_ms")] = shown_time(shown_operation.pop(name))
    output.one(shown_operation)


def _told(operation: pb.Operation) -> str:
    state = enum_name(pb.OperationState.DESCRIPTOR, operation.state).lower()
    steps = f" {shown(operation.steps_done)}/{shown(operation.steps_total)}"
    progress = f": {operation.progress}" if operation.progress and state == "running" else ""
    return f"{state}{steps if operation.steps_total else ''}{progress}"
