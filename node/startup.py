"""Why a node did not start or had to stop: one line for a person, one exit code for a script.

Raised by whatever finds out (storage, founding, the server); `quorumq serve` prints the line and
exits with the code.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2


class StartupError(Exception):
    """The message is one line that says what to do about it where that is not plain."""

    exit_code = EXIT_FAILED
    reason = "FAILED"


class PortInUse(StartupError):
    exit_code = 10
    reason = "PORT_IN_USE"


class WrongDataFolder(StartupError):
    """The data folder belongs to another node, another cluster, or a node that was removed or
    replaced."""

    exit_code = 11
    reason = "WRONG_DATA_FOLDER"


class NewerFormat(StartupError):
    """The data folder was written by a newer version."""

    exit_code = 12
    reason = "NEWER_FORMAT"


class NoDiskRoom(StartupError):
    """Not even the room to start in."""

    exit_code = 13
    reason = "NO_DISK_ROOM"


class DataFolderInUse(StartupError):
    """Another process has it open."""

    exit_code = 14
    reason = "DATA_FOLDER_IN_USE"


class DataFolderUnusable(StartupError):
    """Missing rights, a read-only file system, a file in its place."""

    exit_code = 15
    reason = "DATA_FOLDER_UNUSABLE"


class StorageFailed(StartupError):
    """The disk failed while the node ran: it stopped at once and must not be trusted to go on
    (rule R13)."""

    exit_code = 16
    reason = "STORAGE_FAILED"
