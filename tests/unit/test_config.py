"""Settings come from four sources in one order, and contradictions are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from node import config
from node.config import ConfigError, NodeConfig, load
from node.config_values import ValueRefused, parse_bytes, parse_endpoint, parse_peers

README = Path(__file__).parent.parent.parent / "README.md"
PEERS = {1: "a:9500", 2: "b:9500", 3: "c:9500"}


def given(**flags: object) -> NodeConfig:
    return load({"node_id": "1", "data_dir": "/data", **flags}, {})


def refusal(**flags: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        given(**flags)
    return caught.value


# --- sources


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text(
        'node_id = 1\ndata_dir = "/file"\nzone = "file"\ntick_ms = 20\nlog_level="error"'
    )
    environment = {"QUORUMQ_DATA_DIR": "/environment", "QUORUMQ_ZONE": "environment"}
    loaded = load({"zone": "flag", "tick_ms": None}, environment, file)
    assert (loaded.zone, loaded.data_dir, loaded.tick_ms) == ("flag", Path("/environment"), 20)
    assert loaded.log_level == "error"


def test_an_empty_variable_and_a_stranger_are_ignored() -> None:
    environment = {"QUORUMQ_ZONE": "", "QUORUMQ_SERVICE_HOST": "10.0.0.1", "QUORUMQ_SERVERS": "x"}
    loaded = load({"node_id": "1", "data_dir": "/d"}, environment)
    assert loaded.zone == ""


def test_an_unknown_key_of_the_file_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('node_id = 1\ndata_dir = "/d"\nelection_tick = 5\n')
    with pytest.raises(ConfigError, match=r"election_tick: there is no such setting"):
        load({}, {}, file)


@pytest.mark.parametrize("content", [b"node_id = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "node.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load({}, {}, file)
    assert "is not TOML" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load({}, {}, tmp_path / "none.toml")


def test_a_refusal_says_where_the_value_came_from() -> None:
    with pytest.raises(
        ConfigError, match=r"^tick_ms: 'x' is not a whole number \(QUORUMQ_TICK_MS\)"
    ):
        load({"node_id": "1", "data_dir": "/d"}, {"QUORUMQ_TICK_MS": "x"})
    with pytest.raises(ConfigError, match=r"\(--tick-ms\)$"):
        given(tick_ms="1")


def test_peers_may_be_a_table_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('node_id = 2\ndata_dir = "/d"\n[peers]\n2 = "b:9500"\n1 = "a:9500"\n')
    loaded = load({}, {}, file)
    assert dict(loaded.peers) == {1: "a:9500", 2: "b:9500"}
    assert loaded.peer_advertise == "b:9500"


# --- what follows from what


def test_a_node_alone_is_its_only_peer_and_advertises_what_it_listens_on() -> None:
    alone = given(listen="localhost:1000", peer_listen="localhost:1001")
    assert alone.advertise == "localhost:1000"
    assert dict(alone.peers) == {1: "localhost:1001"}


def test_the_peer_address_is_the_entry_in_peers() -> None:
    node = given(peers="1=a:9500,2=b:9500", peer_listen="0.0.0.0:9500")
    assert node.peer_advertise == "a:9500"


# --- contradictions


def test_node_id_and_data_dir_are_required() -> None:
    with pytest.raises(ConfigError, match="node_id: is not set"):
        load({"data_dir": "/d"}, {})
    with pytest.raises(ConfigError, match="data_dir: is not set"):
        load({"node_id": "1"}, {})


@pytest.mark.parametrize(
    ("flags", "setting", "words"),
    [
        ({"node_id": "0"}, "node_id", "below 1"),
        ({"node_id": str(1 << 31)}, "node_id", "above"),
        ({"peers": "2=b:9500"}, "peers", "this node, 1, is not among them"),
        ({"peers": "1=a:9500,1=b:9500"}, "peers", "there twice"),
        ({"peers": "1=a:9500,2=a:9500"}, "peers", "nodes 1 and 2 are both a:9500"),
        ({"peers": "1=a:9500,2=0.0.0.0:9500"}, "peers", "no address to reach"),
        ({"peers": "1=a"}, "peers", "not host:port"),
        ({"peers": "a:9500"}, "peers", "not a whole number"),
        ({"peers": "1="}, "peers", "no endpoint"),
        ({"peers": "1=a:9500", "peer_advertise": "b:9500"}, "peer_advertise", "is not a:9500"),
        ({"listen": "0.0.0.0:9400"}, "advertise", "no address that others can reach"),
        ({"peer_listen": "[::]:9500"}, "peer_advertise", "no address that others can reach"),
        ({"listen": "x:1", "peer_listen": "x:1"}, "peer_listen", "same port as listen"),
        (
            {"listen": "x:1", "peer_listen": "0.0.0.0:1", "peer_advertise": "x:2"},
            "peer_listen",
            "same port",
        ),
        ({"metrics_listen": "127.0.0.1:9400"}, "metrics_listen", "same port as listen"),
        ({"advertise": "a:1", "peer_advertise": "a:1"}, "advertise", "same as peer_advertise"),
        ({"listen": "a:99999"}, "listen", "no port between"),
        ({"listen": ""}, "listen", "is empty"),
        ({"log_format": "xml"}, "log_format", "none of json, console"),
        ({"log_level": "loud"}, "log_level", "none of"),
        ({"heartbeat_ticks": "6"}, "heartbeat_ticks", "more than half"),
        ({"tail_budget_bytes": "1KiB"}, "tail_budget_bytes", "below"),
        ({"inflight_bytes_max": "lots"}, "inflight_bytes_max", "not a size"),
        (
            {"inflight_bytes_max": "32MiB", "connection_inflight_bytes_max": "64MiB"},
            "connection_inflight_bytes_max",
            "above inflight_bytes_max",
        ),
        ({"grace_ms": True}, "grace_ms", "not a whole number"),
        ({"zone": "a\nb"}, "zone", "unprintable"),
    ],
)
def test_contradictions_name_the_setting(
    flags: dict[str, object], setting: str, words: str
) -> None:
    error = refusal(**flags)
    assert error.setting == setting
    assert words in str(error)
    assert "\n" not in str(error)


def test_a_data_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.touch()
    assert "is not a folder" in str(refusal(data_dir=str(file)))


# --- values


def test_sizes_have_units() -> None:
    parse = parse_bytes(0)
    assert [parse(text) for text in ("7", "7B", "7KiB", "7 MiB", "1GiB")] == [
        7,
        7,
        7 << 10,
        7 << 20,
        1 << 30,
    ]
    for wrong in ("7KB", "-1", "1.5MiB", "", "MiB"):
        with pytest.raises(ValueRefused):
            parse(wrong)


def test_endpoints() -> None:
    assert parse_endpoint(" [::1]:9400 ") == "[::1]:9400"
    assert parse_endpoint("host:09400") == "host:9400"
    for wrong in ("host", "host:", "host:0", "ho st:1", "host:1x", "::1:9400", "host:٣"):
        with pytest.raises(ValueRefused):
            parse_endpoint(wrong)


def test_peers_are_sorted_by_id() -> None:
    assert list(parse_peers("3=c:9500, 1=a:9500,2=b:9500")) == list(PEERS)


# --- the table


def test_every_setting_has_a_meaning_and_a_default_that_passes_its_own_check() -> None:
    for setting in config.SETTINGS:
        assert setting.metadata["meaning"]
        if not setting.metadata["shown"]:
            assert setting.metadata["parse"](setting.default) == setting.default


def test_the_readme_has_the_table() -> None:
    if not README.exists() or "| setting |" not in README.read_text():
        pytest.skip("there is no README yet")
    assert config.table() in README.read_text(), "run `python -m node.config` and paste its output"
