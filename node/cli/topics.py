"""`quorumq topic`."""

from __future__ import annotations

import sys
from typing import Any

import click

from node.cli.output import Output, as_dict, enum_name, shown_time, table
from node.cli.session import options, parse_pairs, run, settings_of
from node.config_values import ValueRefused, parse_bytes
from quorumq import Client
from quorumq.v1 import admin_pb2 as pb

_LIST_COLUMNS = (
    ("topic", "name"),
    ("partitions", "partitions"),
    ("replicas", "replication_factor"),
    ("retention bytes", "retention_bytes"),
    ("retention ms", "retention_ms"),
    ("created", "created"),
    ("id", "topic_id"),
)
_PARTITION_COLUMNS = (
    ("partition", "partition"),
    ("leader", "leader"),
    ("replicas (* in sync, ~ learner)", "replicas"),
    ("earliest", "earliest_offset"),
    ("latest", "latest_offset"),
    ("records", "record_count"),
    ("bytes", "stored_bytes"),
    ("producers", "producer_count"),
    ("error", "error"),
)

_with_settings = options(
    click.option("--replication-factor", type=int, help="Copies of each partition."),
    click.option("--retention-bytes", metavar="SIZE", help="Of a partition; 0 = no limit."),
    click.option("--retention-ms", type=int, help="Age of records; 0 = no limit."),
    click.option(
        "--config",
        "more",
        multiple=True,
        metavar="NAME=VALUE",
        help="Any field of TopicConfig, see admin.proto.",
    ),
)


@click.group("topic")
def command() -> None:
    """Create, list, describe, alter and delete topics."""


@command.command("create")
@click.argument("name")
@click.option("--partitions", type=int, default=1, show_default=True)
@_with_settings
@click.pass_context
def create(
    ctx: click.Context, /, name: str, partitions: int, more: tuple[str, ...], **given: Any
) -> None:
    """Create a topic; one that is there with equal settings is fine."""
    wanted = _settings(more, given)

    async def work(client: Client) -> pb.TopicInfo:
        config = pb.TopicConfig(**wanted)  # type: ignore[arg-type]  # checked field by field
        return await client.admin.create_topic(name, partitions=partitions, config=config)

    topic = run(ctx, work, changes=True)
    Output(settings_of(ctx).output).one(_topic_dict(topic))


@command.command("list")
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--namespace", help="Only this namespace.")
@click.pass_context
def list_topics(ctx: click.Context, prefix: str, namespace: str | None) -> None:
    """List topics by name."""

    async def work(client: Client) -> list[pb.TopicInfo]:
        return await client.admin.list_topics(namespace=namespace, prefix=prefix)

    topics = [_topic_dict(topic) for topic in run(ctx, work)]
    Output(settings_of(ctx).output).items(topics, _LIST_COLUMNS)


@command.command("describe")
@click.argument("name")
@click.pass_context
def describe(ctx: click.Context, name: str) -> None:
    """Show a topic's settings, partitions and replicas."""

    async def work(client: Client) -> pb.DescribeTopicResponse:
        return await client.admin.describe_topic(name)

    described = run(ctx, work)
    output = Output(settings_of(ctx).output)
    if output.form != "table":
        output.one(as_dict(described))
        return
    output.one(_topic_dict(described.topic))
    rows = [_partition_row(partition) for partition in described.partitions]
    table(rows, [heading for heading, _ in _PARTITION_COLUMNS])
    if described.subscriptions:
        print(f"subscriptions: {', '.join(described.subscriptions)}")


@command.command("alter")
@click.argument("name")
@_with_settings
@click.option("--reset", multiple=True, metavar="NAME", help="Back to the default.")
@click.pass_context
def alter(
    ctx: click.Context, /, name: str, more: tuple[str, ...], reset: tuple[str, ...], **given: Any
) -> None:
    """Change settings of a topic."""
    wanted = _settings(more, given)
    for field in reset:
        _field(field)
    if not wanted and not reset:
        raise click.UsageError("nothing to change")

    async def work(client: Client) -> pb.AlterTopicResponse:
        return await client.admin.alter_topic(name, reset=reset, **wanted)

    altered = run(ctx, work, changes=True)
    shown = _topic_dict(altered.topic)
    if altered.HasField("operation_id"):
        shown["operation_id"] = altered.operation_id
    Output(settings_of(ctx).output).one(shown)


@command.command("delete")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def delete(ctx: click.Context, name: str, yes: bool) -> None:
    """Delete a topic with its records and subscriptions."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("deleting a topic without a terminal needs --yes")
        click.confirm(f"Delete topic {name} and all its records?", abort=True, err=True)

    async def work(client: Client) -> None:
        await client.admin.delete_topic(name)

    run(ctx, work, changes=True)


def _settings(more: tuple[str, ...], given: dict[str, Any]) -> dict[str, int]:
    """Fields of TopicConfig that were given, by whichever option."""
    pairs: list[tuple[str, str]] = parse_pairs(more, option="--config")
    pairs += [(name, str(value)) for name, value in given.items() if value is not None]
    return {name: _value(name, text) for name, text in pairs}


def _field(name: str) -> Any:
    field = pb.TopicConfig.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        known = ", ".join(pb.TopicConfig.DESCRIPTOR.fields_by_name)
        raise click.BadParameter(f"there is no setting {name!r}, only {known}")
    return field


def _value(name: str, text: str) -> int:
    field = _field(name)
    if field.enum_type is not None:
        for value in field.enum_type.values:
            if enum_name(field.enum_type, value.number) == text.upper().replace("-", "_"):
                return int(value.number)
        names = (enum_name(field.enum_type, value.number) for value in field.enum_type.values[1:])
        raise click.BadParameter(f"{name} is one of {', '.join(names)}, not {text!r}")
    try:
        number: int = parse_bytes(0)(text) if "bytes" in name else int(text)
    except (ValueError, ValueRefused) as error:
        raise click.BadParameter(f"{name}: {error}") from error
    if not 0 <= number < 1 << (32 if field.type == field.TYPE_UINT32 else 53):
        raise click.BadParameter(f"{name}: {text} is out of range")
    return number


def _topic_dict(topic: pb.TopicInfo) -> dict[str, Any]:
    return {
        "name": topic.name,
        "topic_id": topic.topic_id,
        **as_dict(topic.config),
        "hash_slots": topic.hash_slots,
        "partition_epoch": topic.partition_epoch,
        "created_at_ms": topic.created_at_ms,
        "created": shown_time(topic.created_at_ms),
    }


def _partition_row(partition: pb.PartitionDescription) -> list[str]:
    marks = []
    for replica in partition.replicas:
        learner = "~" if replica.role == pb.REPLICA_ROLE_LEARNER else ""
        marks.append(f"{learner}{replica.node_id}{'*' if replica.in_sync else ''}")
    return [
        str(partition.partition),
        str(partition.leader.node_id) if partition.HasField("leader") else "-",
        " ".join(marks),
        *(
            f"{number:,}"
            for number in (
                partition.earliest_offset,
                partition.latest_offset,
                partition.record_count,
                partition.stored_bytes,
                partition.producer_count,
            )
        ),
        partition.error.message if partition.HasField("error") else "-",
    ]
