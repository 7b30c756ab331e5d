"""Make temporary folders, and remove those that killed processes have left."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmkit.errors import UserError

PREFIX, LOCK = "llmkit-", "lock"
ROOM = 2**16  # bytes that must be free: for what is written into a folder


@contextmanager
def folder() -> Iterator[Path]:
    """Make a temporary folder, which is removed at the end; raise UserError where there is no room for one.

    Its users hold a lock of it, which goes with their processes however they end.
    """
    try:
        _sweep(Path(tempfile.gettempdir()))
        new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}"))
        try:
            (new / LOCK).write_bytes(bytes(ROOM))
            lock = hold(new)
            path = new.rename(new.with_name(new.name.removeprefix(".")))  # now that it is locked others may find it
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
    except OSError as problem:
        raise UserError(
            f"no temporary folder can be made: {problem.strerror}", "free some disk space, or name another with TMPDIR"
        ) from problem
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def hold(path: Path) -> int:
    """Take the lock of a temporary folder together with its other users; return the file that holds it while open."""
    lock = os.open(path / LOCK, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _sweep(root: Path) -> None:
    """Remove our own folders that nobody uses any more."""
    for path in root.glob(f"{PREFIX}*/"):
        with suppress(OSError):  # it is another user's, in use, or gone
            lock = os.open(path / LOCK, os.O_RDONLY)
            try:
                if path.stat().st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
