"""What a node can be told: one table, four sources.

    flags  >  environment QUORUMQ_*  >  TOML file (--config)  >  defaults

The fields of NodeConfig are the table: each one has its meaning, unit and default here, its flag
(`--data-dir`), its variable (`QUORUMQ_DATA_DIR`) and its key in the file (`data_dir`) follow from
the name, and the README's table is generated from it. A contradiction is a ConfigError: one line
that names the setting and where its value came from.

Unknown keys of the file are refused, for they are typing errors. Unknown variables are not:
orchestrators put their own there (QUORUMQ_SERVICE_HOST), and clients read QUORUMQ_SERVERS.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from node.config_values import (
    ValueRefused,
    parse_bytes,
    parse_endpoint,
    parse_number,
    parse_path,
    parse_peers,
    parse_text,
    port_of,
    show,
)

ENVIRONMENT_PREFIX = "QUORUMQ_"
LOG_FORMATS = ("json", "console")
LOG_LEVELS = ("debug", "info", "warning", "error")
WILDCARD_HOSTS = ("0.0.0.0", "[::]", "::", "*", "")
NODE_ID_MAX = (1 << 31) - 1
_NO_PATH = Path()


class ConfigError(Exception):
    """One line for the person who started the node. `setting` is the field's name."""

    def __init__(self, setting: str, problem: str, source: str = "") -> None:
        where = f" ({source})" if source else ""
        super().__init__(f"{setting}: {problem}{where}")
        self.setting = setting
        self.problem = problem
        self.source = source


def _setting(default: Any, parse: Callable[[object], Any], meaning: str, *, shown: str = "") -> Any:
    """One row of the table. `shown`: the default as the table words it, if not by its value."""
    metadata = {"parse": parse, "meaning": meaning, "shown": shown}
    if default == {}:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def _text(default: str, meaning: str, *, shown: str = "") -> Any:
    return _setting(default, parse_text, meaning, shown=shown)


def _endpoint(default: str, meaning: str, *, shown: str = "") -> Any:
    return _setting(default, parse_endpoint, meaning, shown=shown)


def _bytes(default: int, meaning: str, *, least: int = 0) -> Any:
    return _setting(default, parse_bytes(least), meaning)


def _number(default: int, meaning: str, *, least: int = 1) -> Any:
    return _setting(default, parse_number(least), meaning)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """Checked and complete: raises ConfigError when its values contradict each other. Endpoints
    are `host:port`. `peers` holds this node too."""

    # --- who it is
    node_id: int = _setting(
        0,
        parse_number(1),
        "this node's number, 1 to 2147483647, never that of another node",
        shown="required",
    )
    data_dir: Path = _setting(  # noqa: RUF009
        _NO_PATH, parse_path, "folder of its data", shown="required"
    )
    zone: str = _text("", "what fails together: replicas go to different zones", shown="none")

    # --- network
    listen: str = _endpoint("127.0.0.1:9400", "where clients are served")
    advertise: str = _endpoint(
        "", "`host:port` by which clients reach it", shown="`listen`, if it names a host"
    )
    peer_listen: str = _endpoint("127.0.0.1:9500", "where other nodes are served")
    peer_advertise: str = _endpoint(
        "",
        "`host:port` by which other nodes reach it",
        shown="its entry in `peers`, else `peer_listen`, if it names a host",
    )
    peers: Mapping[int, str] = _setting(
        {},
        parse_peers,
        "the initial members' peer endpoints, this node included: `1=a:9500,2=b:9500,3=c:9500`",
        shown="this node alone",
    )
    metrics_listen: str = _endpoint(
        "", "where `/metrics`, `/healthz` and `/readyz` are served", shown="not served"
    )

    # --- logs
    log_format: str = _text("json", "`json` or `console`")
    log_level: str = _text("info", "`debug`, `info`, `warning` or `error`")

    # --- time
    tick_ms: int = _number(50, "one tick of the clocks below", least=5)
    election_ticks: int = _number(
        10, "a leader silent this long (up to twice as long) is replaced", least=4
    )
    heartbeat_ticks: int = _number(2, "between two signs of life of a leader")
    quiesce_ticks: int = _number(
        20, "a partition idle this long stops its clocks; 0 = never", least=0
    )
    clock_skew_ms_max: int = _number(
        500, "a leader's clock further than this from the nodes' median is not used"
    )
    grace_ms: int = _number(
        10_000, "how long a stop may take to hand leaderships over and end calls"
    )
    retention_interval_ms: int = _number(5_000, "between two looks for records to trim", least=10)
    flush_slow_ms: int = _number(1_500, "a leader whose disk takes longer to flush hands over")

    # --- disk
    disk_free_bytes_min: int = _bytes(
        512 << 20, "with less room it refuses appends and hands leaderships over"
    )
    disk_ballast_bytes: int = _bytes(16 << 20, "kept aside so that a full node can start")
    checkpoint_entries_max: int = _number(
        10_000, "entries applied until a partition's next checkpoint"
    )
    checkpoint_bytes_max: int = _bytes(
        64 << 20, "bytes applied until a partition's next checkpoint", least=1
    )
    tail_bytes_max: int = _bytes(
        32 << 20,
        "a partition's newest entries, kept though trimmed for replicas that are behind",
    )
    tail_budget_bytes: int = _bytes(
        32 << 20,
        "newest entries of all logs, kept in memory for replicas and readers",
        least=1 << 20,
    )
    write_buffer_bytes: int = _bytes(16 << 20, "RocksDB write buffer", least=1 << 20)
    block_cache_bytes: int = _bytes(32 << 20, "RocksDB block cache", least=1 << 20)

    # --- limits: what is above them is refused with the reason named. Those of topics and of the
    # catalog are not here: every node must decide alike, so they are the topic's or constants.
    inflight_bytes_max: int = _bytes(
        128 << 20, "produced and not answered, this node; THROTTLED", least=32 << 20
    )
    connection_inflight_bytes_max: int = _bytes(
        32 << 20, "produced and not answered, one stream; THROTTLED", least=16 << 20
    )
    connection_inflight_requests_max: int = _number(
        1_024, "produced and not answered, one stream; THROTTLED"
    )
    uncommitted_bytes_max: int = _bytes(
        32 << 20, "proposed and not committed, one partition; THROTTLED", least=16 << 20
    )
    calls_max: int = _number(10_000, "calls and streams at a time; THROTTLED")
    read_streams_max: int = _number(2_000, "Read streams at a time; THROTTLED")
    catch_ups_max: int = _number(
        2, "replicas that fetch a checkpoint here, or from here, at a time; the others wait"
    )

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the idiom for derived fields of a frozen class
        if not self.peer_advertise:
            set_field(self, "peer_advertise", self.peers.get(self.node_id, self.peer_listen))
        if not self.peers:
            set_field(self, "peers", {self.node_id: self.peer_advertise})
        if not self.advertise:
            set_field(self, "advertise", self.listen)
        check(self)


SETTINGS: tuple[Field[Any], ...] = fields(NodeConfig)


def load(
    flags: Mapping[str, object] | None = None,
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> NodeConfig:
    """`flags`: by field name, None = not given. Raises ConfigError."""
    values: dict[str, Any] = {}
    for source, given in (
        (str(file), _read_file(file) if file else {}),
        ("environment", _from_environment(environment)),
        ("flag", {name: value for name, value in (flags or {}).items() if value is not None}),
    ):
        for setting in SETTINGS:
            if setting.name in given:
                values[setting.name] = _parse(setting, given[setting.name], source)
    return NodeConfig(**values)


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


def shown_default(setting: Field[Any]) -> str:
    """As the table words it."""
    return setting.metadata["shown"] or show(setting.default, setting.name)


def _parse(setting: Field[Any], value: object, source: str) -> Any:
    where = {"flag": flag_of(setting.name), "environment": variable_of(setting.name)}
    try:
        return setting.metadata["parse"](value)
    except ValueRefused as error:
        raise ConfigError(setting.name, str(error), where.get(source, source)) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    """A variable that is set to nothing counts as not set."""
    named = {setting.name: environment.get(variable_of(setting.name)) for setting in SETTINGS}
    return {name: value for name, value in named.items() if value}


def _read_file(path: Path) -> Mapping[str, object]:
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError("config", f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("config", f"{path} is not TOML: {error}") from error
    known = [setting.name for setting in SETTINGS]
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ConfigError(unknown[0], "there is no such setting", str(path))
    return content


def check(config: NodeConfig) -> None:
    """Raises ConfigError for values that are fine alone and not together."""
    if not config.node_id:
        raise _missing("node_id")
    if config.node_id > NODE_ID_MAX:
        raise ConfigError("node_id", f"{config.node_id} is above {NODE_ID_MAX}")
    if config.data_dir == _NO_PATH:
        raise _missing("data_dir")
    if config.data_dir.exists() and not config.data_dir.is_dir():
        raise ConfigError("data_dir", f"{config.data_dir} is not a folder")
    _check_choice("log_format", config.log_format, LOG_FORMATS)
    _check_choice("log_level", config.log_level, LOG_LEVELS)
    _check_network(config)
    _check_peers(config)
    _check_sizes(config)


def _missing(name: str) -> ConfigError:
    return ConfigError(name, f"is not set: give {flag_of(name)}, {variable_of(name)} or a file")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(name, f"{value!r} is none of {', '.join(choices)}")


def _check_network(config: NodeConfig) -> None:
    for name in ("listen", "peer_listen"):
        if not getattr(config, name):
            raise ConfigError(name, "is empty")
    listening: dict[tuple[str, int], str] = {}
    for name in ("listen", "peer_listen", "metrics_listen"):
        endpoint = getattr(config, name)
        if not endpoint:
            continue
        host, port = endpoint.rsplit(":", 1)[0], port_of(endpoint)
        for (other_host, other_port), other in listening.items():
            overlap = host == other_host or host in WILDCARD_HOSTS or other_host in WILDCARD_HOSTS
            if port == other_port and overlap:
                raise ConfigError(name, f"{endpoint} is the same port as {other}")
        listening[host, port] = name
    for name in ("advertise", "peer_advertise"):
        host = getattr(config, name).rsplit(":", 1)[0]
        if host in WILDCARD_HOSTS:
            raise ConfigError(
                name, f"{getattr(config, name)} is no address that others can reach: set {name}"
            )


def _check_peers(config: NodeConfig) -> None:
    if config.node_id not in config.peers:
        raise ConfigError("peers", f"this node, {config.node_id}, is not among them")
    own = config.peers[config.node_id]
    if own != config.peer_advertise:
        raise ConfigError(
            "peer_advertise", f"{config.peer_advertise} is not {own}, its entry in peers"
        )
    seen: dict[str, int] = {}
    for node_id, endpoint in config.peers.items():
        if endpoint in seen:
            raise ConfigError("peers", f"nodes {seen[endpoint]} and {node_id} are both {endpoint}")
        if endpoint.rsplit(":", 1)[0] in WILDCARD_HOSTS:
            raise ConfigError("peers", f"{endpoint} of node {node_id} is no address to reach")
        seen[endpoint] = node_id
    if config.advertise == config.peer_advertise:
        raise ConfigError("advertise", f"{config.advertise} is the same as peer_advertise")


def _check_sizes(config: NodeConfig) -> None:
    low, high = config.connection_inflight_bytes_max, config.inflight_bytes_max
    if low > high:
        raise ConfigError(
            "connection_inflight_bytes_max", f"{low} is above inflight_bytes_max, {high}"
        )
    if config.heartbeat_ticks * 2 > config.election_ticks:
        raise ConfigError(
            "heartbeat_ticks",
            f"{config.heartbeat_ticks} is more than half of election_ticks,"
            f" {config.election_ticks}: one late heartbeat would end a leadership",
        )


def table() -> str:
    """The README's configuration table, Markdown."""
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    for setting in SETTINGS:
        default = setting.metadata["shown"] or f"`{shown_default(setting)}`"
        lines.append(f"| `{setting.name}` | {default} | {setting.metadata['meaning']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
