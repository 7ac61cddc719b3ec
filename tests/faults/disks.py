"""Disks that are full or read-only, for real: file systems of their own, which only the calling process sees.

To be called in a fork: what it mounts lasts as long as it does.
"""

import ctypes
import os
from pathlib import Path

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
_LIBC = ctypes.CDLL(None, use_errno=True)


def small(folder: Path, size: int) -> None:
    """A disk of `size` bytes at `folder`, empty."""
    _alone()
    folder.mkdir(parents=True, exist_ok=True)
    _mount("tmpfs", folder, "tmpfs", 0, f"size={size}")


def read_only(folder: Path) -> None:
    """`folder` as it is, but nothing can be written in it."""
    _alone()
    folder.mkdir(parents=True, exist_ok=True)
    _mount(str(folder), folder, "none", BIND)
    _mount("none", folder, "none", BIND | REMOUNT | READ_ONLY)


def _alone() -> None:
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(NEW_MOUNTS if user == 0 else NEW_MOUNTS | NEW_USER) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _mount("none", Path("/"), "none", RECURSIVE | PRIVATE)


def _mount(source: str, target: Path, kind: str, flags: int, options: str = "") -> None:
    if _LIBC.mount(source.encode(), str(target).encode(), kind.encode(), flags, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")
