"""The data folder: whose it is, and what happens when it cannot be trusted."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node.storage.folder import (
    FORMAT_VERSION,
    DamagedIdentity,
    DataFolder,
    EngineNotOpened,
    FolderInUse,
    FolderLimits,
    FolderNotWritable,
    NewerFormat,
    NoDiskRoom,
    NotAFolderOfOurs,
    OtherCluster,
    OtherNode,
)

LIMITS = FolderLimits(disk_free_bytes_min=1 << 20, ballast_bytes=1 << 20)
IDENTITY = "identity.json"


def opened(path: Path, node_id: int = 1, limits: FolderLimits = LIMITS) -> DataFolder:
    return DataFolder.open(path, node_id=node_id, limits=limits)


async def put(folder: DataFolder, key: bytes, value: bytes) -> None:
    batch = folder.engine.new_batch()
    batch.put(key, value)
    folder.engine.write(batch)
    await folder.engine.sync()


def edit(path: Path, **changes: Any) -> None:
    identity = path / IDENTITY
    identity.write_text(json.dumps({**json.loads(identity.read_text()), **changes}))


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


async def test_a_new_folder_is_initialised_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there yet"
    folder = opened(path)
    assert (folder.node_id, folder.cluster_id, folder.former_cluster_id) == (1, None, None)
    assert folder.lost_durable_data is None
    incarnation = folder.incarnation
    assert len(incarnation) == 32
    await put(folder, b"a", b"1")
    folder.bind_cluster("one")
    folder.bind_cluster("one")
    folder.close()
    folder = opened(path)
    assert (folder.incarnation, folder.cluster_id) == (incarnation, "one")
    assert folder.engine.get(b"a") == b"1"
    folder.close()


def test_each_initialisation_draws_its_own_incarnation(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        folder = opened(tmp_path / name)
        drawn.append(folder.incarnation)
        folder.close()
    assert drawn[0] != drawn[1]


def test_a_folder_of_another_node_is_refused(tmp_path: Path) -> None:
    opened(tmp_path, node_id=1).close()
    with pytest.raises(OtherNode, match=r"belongs to node 1, not to 2"):
        opened(tmp_path, node_id=2)
    opened(tmp_path, node_id=1).close()


def test_a_folder_of_another_cluster_is_refused(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.bind_cluster("one")
    with pytest.raises(OtherCluster, match="belongs to cluster one, not to two"):
        folder.bind_cluster("two")
    folder.close()


def test_a_folder_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    edit(tmp_path, format_version=FORMAT_VERSION + 1, unheard_of=True)
    before = (tmp_path / IDENTITY).read_bytes()
    with pytest.raises(NewerFormat, match=f"format {FORMAT_VERSION + 1}"):
        opened(tmp_path)
    assert (tmp_path / IDENTITY).read_bytes() == before
    assert not any(name.startswith("set-aside") for name in names(tmp_path))


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(NotAFolderOfOurs, match=r"thesis\.tex"):
        opened(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format_version": 1, "node_id": "x"}', "\x00" * 100, "null"]
)
def test_a_damaged_identity_is_never_taken_for_an_empty_folder(tmp_path: Path, text: str) -> None:
    """Bug class 10: never drop data because the file that describes it cannot be understood."""
    opened(tmp_path).close()
    before = names(tmp_path)
    (tmp_path / IDENTITY).write_text(text)
    with pytest.raises(DamagedIdentity):
        opened(tmp_path)
    assert names(tmp_path) == before


def test_one_process_at_a_time(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        opened(tmp_path)
    script = (
        "import sys; from pathlib import Path; from node.storage.folder import *\n"
        "try: DataFolder.open(Path(sys.argv[1]), node_id=1)\n"
        "except FolderInUse: print('in use')"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    root = Path(__file__).parents[2]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert output == "in use\n"
    folder.close()
    opened(tmp_path).close()


def test_a_path_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/quorumq")):
        with pytest.raises(FolderNotWritable, match="cannot"):
            opened(path)


def test_a_new_node_needs_disk_free_bytes_min(tmp_path: Path) -> None:
    with pytest.raises(NoDiskRoom, match="disk_free_bytes_min"):
        opened(tmp_path, limits=FolderLimits(disk_free_bytes_min=1 << 60))
    assert IDENTITY not in names(tmp_path)


def test_the_ballast_is_given_up_when_a_node_starts_on_a_full_disk(tmp_path: Path) -> None:
    opened(tmp_path).close()
    ballast = tmp_path / "ballast"
    assert ballast.stat().st_blocks * 512 >= LIMITS.ballast_bytes
    folder = opened(tmp_path, limits=FolderLimits(disk_free_bytes_min=1 << 60))
    assert not ballast.exists()
    assert not folder.restore_ballast()
    folder.close()
    folder = opened(tmp_path)
    assert ballast.exists()
    assert folder.release_ballast() == LIMITS.ballast_bytes
    assert folder.release_ballast() == 0
    assert folder.restore_ballast()
    folder.close()


def damage_mark(path: Path) -> None:
    (path / "durable.mark").unlink()


def damage_engine(path: Path) -> None:
    next((path / "engine").glob("MANIFEST-*")).write_bytes(b"x")


def remove_engine(path: Path) -> None:
    (path / "engine").rename(path.parent / "elsewhere")


@pytest.mark.parametrize("damage", [damage_mark, damage_engine, remove_engine])
async def test_a_folder_that_lost_durable_data_is_set_aside_and_never_deleted(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "data"
    folder = opened(path)
    folder.bind_cluster("one")
    await put(folder, b"a", b"1")
    incarnation = folder.incarnation
    folder.close()
    damage(path)
    left = [name for name in names(path) if name in ("engine", "durable.mark", IDENTITY)]
    folder = opened(path)
    assert folder.lost_durable_data
    assert "\n" not in folder.lost_durable_data
    assert folder.engine.get(b"a") is None
    assert folder.incarnation != incarnation
    assert (folder.cluster_id, folder.former_cluster_id) == (None, "one")
    aside = path / "set-aside-1"
    assert set(left) < set(names(aside))
    assert json.loads((aside / IDENTITY).read_text())["incarnation"] == incarnation
    assert (aside / "reason.txt").read_text().strip() == folder.lost_durable_data
    with pytest.raises(OtherCluster):
        folder.bind_cluster("two")
    folder.bind_cluster("one")
    folder.close()
    folder = opened(path)
    assert folder.lost_durable_data is None
    assert folder.cluster_id == "one"
    folder.close()


async def test_a_log_that_turns_out_damaged_later_sets_the_folder_aside(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.bind_cluster("one")
    for round_ in (1, 2):
        await put(folder, b"a", b"%d" % round_)
        incarnation, engine = folder.incarnation, folder.engine
        folder.set_aside("entry 5 of group 3 is missing")
        assert folder.engine is not engine
        assert folder.engine.get(b"a") is None
        assert folder.incarnation != incarnation
        assert folder.former_cluster_id == "one"
        assert f"set-aside-{round_}" in names(tmp_path)
    folder.close()


async def test_engine_files_without_an_identity_are_set_aside_too(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    await put(folder, b"a", b"1")
    folder.close()
    (tmp_path / IDENTITY).unlink()
    folder = opened(tmp_path)
    assert folder.lost_durable_data is not None
    assert "identity.json is missing" in folder.lost_durable_data
    assert (tmp_path / "set-aside-1" / "engine").is_dir()
    folder.close()


@pytest.mark.parametrize("left", [[], ["engine"], ["engine", "durable.mark"]])
def test_an_initialisation_that_was_cut_short_is_done_again(
    tmp_path: Path, left: list[str]
) -> None:
    opened(tmp_path).close()
    edit(tmp_path, ready=False)
    incarnation = json.loads((tmp_path / IDENTITY).read_text())["incarnation"]
    for name in ("engine", "durable.mark"):
        if name not in left:
            (tmp_path / name).rename(tmp_path.parent / name)
    folder = opened(tmp_path)
    assert folder.lost_durable_data is None
    assert folder.incarnation != incarnation
    folder.close()


@pytest.mark.parametrize("moved", [["engine"], ["engine", "durable.mark"]])
async def test_a_crash_while_setting_aside_ends_in_the_same_place(
    tmp_path: Path, moved: list[str]
) -> None:
    folder = opened(tmp_path)
    folder.bind_cluster("one")
    await put(folder, b"a", b"1")
    folder.close()
    (tmp_path / "set-aside-1").mkdir()
    for name in moved:
        (tmp_path / name).rename(tmp_path / "set-aside-1" / name)
    folder = opened(tmp_path)
    assert folder.lost_durable_data
    assert folder.former_cluster_id == "one"
    assert folder.engine.get(b"a") is None
    folder.close()


async def test_a_machine_in_the_way_sets_nothing_aside(tmp_path: Path) -> None:
    """Too few file handles, at every step of opening: the data is not to blame."""
    folder = opened(tmp_path)
    folder.bind_cluster("one")
    await put(folder, b"a", b"1")
    folder.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    fillers = [os.open("/dev/null", os.O_RDONLY)]
    while fillers[-1] < highest:
        fillers.append(os.open("/dev/null", os.O_RDONLY))
    refused = 0
    try:
        for handles in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1 + handles, hard))
            try:
                opened(tmp_path).close()
            except (EngineNotOpened, FolderNotWritable):
                refused += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)
    assert refused >= 5
    assert not any(name.startswith("set-aside") for name in names(tmp_path))
    folder = opened(tmp_path)
    assert (folder.cluster_id, folder.lost_durable_data) == ("one", None)
    assert folder.engine.get(b"a") == b"1"
    folder.close()
