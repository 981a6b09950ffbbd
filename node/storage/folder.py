"""The data folder of a node: who it belongs to, and what is done when it can not be trusted.

    lock               held while a process uses the folder
    identity.json      format, node id, incarnation, cluster id
    engine/            the engine's files
    durable.mark       see durable_mark.py
    logs-before-open/  see engine.py; empty but for an open that went wrong
    ballast            room to give up so that a node with a full disk can start
    set-aside-<n>/     what was here when durable data was found to be gone, with reason.txt

A folder whose durable data is gone is never used again and never deleted: it is set aside, and the
node goes on as a new incarnation, which the cluster does not take for the old one (house §4.13).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.interfaces import StorageError
from node.storage.engine import EngineSettings, LostDurableData, RocksEngine

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_LOCK, _IDENTITY, _ENGINE, _MARK = "lock", "identity.json", "engine", "durable.mark"
_LOGS, _BALLAST, _SET_ASIDE = "logs-before-open", "ballast", "set-aside-"
_TEMPORARY = ".new"
_OURS = (
    _LOCK,
    _IDENTITY,
    _IDENTITY + _TEMPORARY,
    _ENGINE,
    _MARK,
    _LOGS,
    _BALLAST,
    _BALLAST + _TEMPORARY,
    "lost+found",
)
# The engine cannot open without writing: it flushes what it recovers.
_ROOM_TO_OPEN_BYTES = 16 << 20


class FolderError(Exception):
    """The folder cannot be used as it is. One line, naming the folder and what to do."""


class FolderInUse(FolderError):
    """Another process holds the folder."""


class FolderNotWritable(FolderError):
    """It cannot be created, or this user may not write in it."""


class NotAFolderOfOurs(FolderError):
    """It holds files that quorumq did not put there and no identity."""


class DamagedIdentity(FolderError):
    """identity.json cannot be understood. Nothing was changed."""


class NewerFormat(FolderError):
    """It was written by a newer version of quorumq."""


class OtherNode(FolderError):
    """It belongs to another node id."""


class OtherCluster(FolderError):
    """It belongs to another cluster."""


class NoDiskRoom(FolderError):
    """Too little room on the disk to begin or to go on."""


class EngineNotOpened(FolderError):
    """The engine did not open, and the machine is to blame (disk, rights), not the data."""


@dataclass(frozen=True, slots=True)
class FolderLimits:
    """`disk_free_bytes_min`: a new folder is refused below it; a running node takes no appends
    below it. `ballast_bytes`: 0 for none."""

    disk_free_bytes_min: int = 1 << 30
    ballast_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class Identity:
    """`incarnation` is drawn whenever the folder is initialised. `former_cluster_id`: the cluster
    that data set aside belonged to; such a node may join that one and found none. `ready`: the
    engine was created; before that nothing was promised by this incarnation."""

    node_id: int
    incarnation: str
    cluster_id: str | None = None
    former_cluster_id: str | None = None
    ready: bool = False


class DataFolder:
    """An open folder. `lost_durable_data` says why the folder's data was set aside at this open, in
    one line; None in any normal case."""

    def __init__(
        self, path: Path, lock: int, limits: FolderLimits, settings: EngineSettings | None
    ) -> None:
        self.path = path
        self.lost_durable_data: str | None = None
        self._lock = lock
        self._limits = limits
        self._settings = settings
        self._identity: Identity
        self.engine: RocksEngine

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        node_id: int,
        limits: FolderLimits | None = None,
        settings: EngineSettings | None = None,
    ) -> DataFolder:
        """Initialises a folder that is empty or does not exist. Raises FolderError."""
        limits = FolderLimits() if limits is None else limits
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            lock = _take_lock(path)
        except OSError as error:
            raise FolderNotWritable(f"cannot write in {path}: {error}") from error
        folder = cls(path, lock, limits, settings)
        try:
            folder._open(node_id)
        except BaseException:
            os.close(lock)
            raise
        return folder

    @property
    def node_id(self) -> int:
        return self._identity.node_id

    @property
    def incarnation(self) -> str:
        return self._identity.incarnation

    @property
    def cluster_id(self) -> str | None:
        return self._identity.cluster_id

    @property
    def former_cluster_id(self) -> str | None:
        return self._identity.former_cluster_id

    def bind_cluster(self, cluster_id: str) -> None:
        """From now on the folder belongs to this cluster; durable on return. Raises OtherCluster,
        also for data set aside that belonged to another one."""
        bound = self._identity.cluster_id or self._identity.former_cluster_id
        if bound is not None and bound != cluster_id:
            raise OtherCluster(
                f"{self.path} belongs to cluster {bound}, not to {cluster_id}: check the peers"
                " configured, or use another folder"
            )
        if self._identity.cluster_id is None:
            self._write_identity(replace(self._identity, cluster_id=cluster_id))

    def set_aside(self, reason: str) -> None:
        """Durable data turned out to be gone (a damaged log, a damaged checkpoint): move everything
        aside and begin again, empty, with a new incarnation and a new `engine`. Raises
        FolderError."""
        self.engine.close()
        self._set_aside(reason)
        self._initialise(self._identity)

    def disk_free_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def disk_total_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_blocks * status.f_frsize

    def release_ballast(self) -> int:
        """Give its room back to the disk; the bytes that were freed."""
        ballast = self.path / _BALLAST
        try:
            size = ballast.stat().st_size
            ballast.unlink()
        except FileNotFoundError:
            return 0
        _log.warning("released the ballast of %s: %d bytes", self.path, size)
        return size

    def restore_ballast(self) -> bool:
        """Put the ballast back when there is room for it; whether it is there."""
        ballast, size = self.path / _BALLAST, self._limits.ballast_bytes
        if ballast.exists():
            return True
        if not size or self.disk_free_bytes() < self._limits.disk_free_bytes_min + size:
            return False
        temporary = ballast.with_name(_BALLAST + _TEMPORARY)
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            _log.warning("no ballast in %s: %s", self.path, error)
            temporary.unlink()
            return False
        finally:
            os.close(file)
        temporary.rename(ballast)
        return True

    def close(self) -> None:
        self.engine.close()
        os.close(self._lock)

    def _open(self, node_id: int) -> None:
        try:
            identity = self._read_identity(node_id)
            self._make_room(is_new=identity is None)
            if identity is None or not identity.ready:
                self._begin(node_id, identity)
            else:
                self._identity = identity
                self._open_engine()
            self.restore_ballast()
        except OSError as error:
            raise FolderNotWritable(f"cannot use {self.path}: {error}") from error

    def _begin(self, node_id: int, identity: Identity | None) -> None:
        """A new folder, or one whose initialisation was cut short: it promised nothing. Engine
        files without an identity are somebody's data all the same."""
        fresh = Identity(node_id, "") if identity is None else identity
        if identity is None and (self.path / _MARK).exists():
            self._identity = fresh
            self._set_aside(f"{self.path / _IDENTITY} is missing")
        elif identity is not None:
            shutil.rmtree(self.path / _ENGINE, ignore_errors=True)
            (self.path / _MARK).unlink(missing_ok=True)
        self._initialise(fresh)

    def _initialise(self, identity: Identity) -> None:
        """`identity` with a new incarnation, and an empty engine."""
        identity = replace(identity, incarnation=secrets.token_hex(16), ready=False)
        self._write_identity(identity)
        try:
            self.engine = RocksEngine.create(
                self.path / _ENGINE, mark_path=self.path / _MARK, settings=self._settings
            )
        except StorageError as error:
            raise EngineNotOpened(str(error)) from error
        self._write_identity(replace(identity, ready=True))

    def _open_engine(self) -> None:
        try:
            self.engine = RocksEngine.open(
                self.path / _ENGINE, mark_path=self.path / _MARK, settings=self._settings
            )
        except LostDurableData as error:
            self._set_aside(str(error))
            self._initialise(self._identity)
        except StorageError as error:
            raise EngineNotOpened(str(error)) from error

    def _set_aside(self, reason: str) -> None:
        """The identity goes last: until it is gone the rest counts as damaged, whatever is left."""
        number = 1
        while (aside := self.path / f"{_SET_ASIDE}{number}").exists():
            number += 1
        aside.mkdir()
        (aside / "reason.txt").write_text(reason + "\n")
        for name in (_ENGINE, _MARK, _LOGS, _IDENTITY):
            if (self.path / name).exists():
                (self.path / name).rename(aside / name)
        _sync_directory(aside)
        _sync_directory(self.path)
        former = self._identity.cluster_id or self._identity.former_cluster_id
        self._identity = Identity(self._identity.node_id, "", former_cluster_id=former)
        self.lost_durable_data = reason
        _log.critical(
            "durable data of node %d is gone: %s. It was set aside in %s; the node goes on empty,"
            " as a new incarnation",
            self._identity.node_id,
            reason,
            aside,
        )

    def _make_room(self, *, is_new: bool) -> None:
        free, least = self.disk_free_bytes(), self._limits.disk_free_bytes_min
        if is_new:
            if free < least:
                raise NoDiskRoom(
                    f"{self.path} has {free} bytes of disk room, and a new node needs"
                    f" disk_free_bytes_min = {least}"
                )
            return
        if free < least:
            free += self.release_ballast()
        if free < _ROOM_TO_OPEN_BYTES:
            raise NoDiskRoom(
                f"{self.path} has {free} bytes of disk room, and opening takes"
                f" {_ROOM_TO_OPEN_BYTES}: free some"
            )

    def _read_identity(self, node_id: int) -> Identity | None:
        path = self.path / _IDENTITY
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            content = json.loads(text)
            version = int(content.pop("format_version"))
            if version > FORMAT_VERSION:
                raise NewerFormat(
                    f"{self.path} has format {version}, and this version of quorumq knows"
                    f" {FORMAT_VERSION}: use the newer one"
                )
            identity = _identity(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedIdentity(
                f"{path} is damaged ({error}): restore it, or move the folder away to let the node"
                " rejoin empty"
            ) from error
        if identity.node_id != node_id:
            raise OtherNode(
                f"{self.path} belongs to node {identity.node_id}, not to {node_id}: check node_id"
                " and the folder configured"
            )
        return identity

    def _write_identity(self, identity: Identity) -> None:
        """Whole or not at all, and durable on return."""
        path = self.path / _IDENTITY
        temporary = path.with_name(_IDENTITY + _TEMPORARY)
        content = {"format_version": FORMAT_VERSION, **asdict(identity)}
        with temporary.open("w") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_directory(self.path)
        self._identity = identity


def _identity(content: dict[str, Any]) -> Identity:
    """Raises TypeError at unknown or missing fields and ValueError at wrong ones."""
    identity = Identity(**content)
    if type(identity.node_id) is not int or not identity.incarnation:
        raise ValueError("node_id or incarnation is not one")
    return identity


def _refuse_foreign(path: Path) -> None:
    names = sorted(entry.name for entry in path.iterdir())
    if _IDENTITY in names:
        return
    foreign = [n for n in names if n not in _OURS and not n.startswith(_SET_ASIDE)]
    if foreign:
        raise NotAFolderOfOurs(
            f"{path} is not a data folder of quorumq: it holds {foreign[0]}; name an empty folder"
        )


def _take_lock(path: Path) -> int:
    """An open file that holds the lock as long as it, or the process, lives."""
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise FolderInUse(f"{path} is in use by process {holder or 'unknown'}") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
