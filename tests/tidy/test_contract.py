"""The public contract keeps its promises: documented, safe numbers, error table, vectors."""

import json
import re
import zlib
from collections.abc import Iterator

import grpc

from tests.tidy.source import ROOT

PROTO = ROOT / "proto/quorumq/v1"
FIELD = re.compile(
    r"^\s*(?P<label>optional |repeated )?(?P<type>map<[^>]+>|[A-Za-z][\w.]*) (?P<name>\w+) = \d+"
)
ENUM_VALUE = re.compile(r"^\s*(?P<name>[A-Z][A-Z0-9_]+) = \d+;")
REASON = re.compile(
    r"^(?P<code>[A-Z_]+), (not )?retriable, outcome (known|unknown)\. .+\bDo: .+", re.DOTALL
)


def commented(text: str) -> Iterator[tuple[str, str]]:
    """(line, the comment just above it) of each field, enum value and definition."""
    comment: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("//"):
            comment.append(stripped.removeprefix("//").strip())
            continue
        defines = re.match(r"^\s*(message|enum|service|rpc|oneof) ", line)
        if defines or FIELD.match(line) or ENUM_VALUE.match(line):
            yield stripped, " ".join(comment)
        comment = []


def undocumented(text: str) -> list[str]:
    return [line for line, comment in commented(text) if not comment]


def wrong_numbers(text: str) -> list[str]:
    """`_ms` is int64 everywhere and nothing else is signed: negative offsets have no meaning."""
    wrong = []
    for line in text.splitlines():
        field = FIELD.match(line)
        if field is None or line.strip().startswith(("option ", "syntax ")):
            continue
        is_ms = field["name"].endswith(("_ms", "_ms_max"))
        if is_ms != (field["type"] in ("int64", "sint64", "sfixed64", "int32", "sint32")):
            wrong.append(line.strip())
    return wrong


def reasons() -> list[tuple[str, str]]:
    text = (PROTO / "errors.proto").read_text()
    values = ((ENUM_VALUE.match(line), comment) for line, comment in commented(text))
    return [(value["name"], comment) for value, comment in values if value]


def test_every_field_is_documented() -> None:
    for path in sorted(PROTO.glob("*.proto")):
        assert undocumented(path.read_text()) == [], path.name


def test_every_ms_is_int64_and_nothing_else_is_signed() -> None:
    for path in sorted(PROTO.glob("*.proto")):
        assert wrong_numbers(path.read_text()) == [], path.name


def test_every_reason_tells_its_code_and_what_to_do() -> None:
    codes = {code.name for code in grpc.StatusCode}
    assert len(reasons()) > 30
    for name, comment in reasons():
        row = REASON.match(comment)
        assert row, f"{name}: {comment}"
        assert row["code"] in codes, name


def test_unavailable_and_exhausted_mean_certainly_not_stored() -> None:
    for name, comment in reasons():
        if comment.startswith(("UNAVAILABLE", "RESOURCE_EXHAUSTED")):
            assert ", retriable, outcome known." in comment, name


def test_the_partitioner_vectors_follow_the_rule() -> None:
    vectors = json.loads((PROTO / "partitioner.json").read_text())["vectors"]
    assert {"", "00"} <= {vector["key_hex"] for vector in vectors}
    for vector in vectors:
        crc = zlib.crc32(bytes.fromhex(vector["key_hex"]))
        slots = vector["partitions"] * 64
        slot = crc % slots
        expected = (crc, slots, slot, slot % vector["partitions"])
        given = (vector["crc32"], vector["hash_slots"], vector["slot"], vector["partition"])
        assert given == expected, vector


def test_the_service_config_retries_what_is_certainly_not_stored() -> None:
    config = json.loads((PROTO / "service_config.json").read_text())
    (method,) = config["methodConfig"]
    services = {f"quorumq.v1.{name}" for name in ("MessagingService", "AdminService")}
    assert {name["service"] for name in method["name"]} == services
    codes = method["retryPolicy"]["retryableStatusCodes"]
    assert codes == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]
    # A node that is about to stop says so: callers then leave it before it goes.
    assert config["healthCheckConfig"]["serviceName"] in services


def test_the_contract_rules_can_fail() -> None:
    assert undocumented("// What.\nmessage M {\n  uint32 a = 1;\n}") == ["uint32 a = 1;"]
    assert undocumented("// What.\nenum E {\n  E_UNSPECIFIED = 0;\n}") == ["E_UNSPECIFIED = 0;"]
    assert wrong_numbers("  uint64 wait_ms = 1;\n  int64 offset = 2;") == [
        "uint64 wait_ms = 1;",
        "int64 offset = 2;",
    ]
    assert REASON.match("ABORTED, retriable. Something.") is None
