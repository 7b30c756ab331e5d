"""Ask the file system about a word that may be no path: too long, with a NUL in it, below a folder that is closed.

Path's own questions raise OSError or ValueError for such a word. Here the answer is no. And write files that are whole
or not there, and that others may read.
"""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BLOCK = 2**20  # bytes that are read at once
exists, is_file, is_dir = os.path.exists, os.path.isfile, os.path.isdir


def has_content(path: str | Path) -> bool:
    """Tell whether there is a file that is not empty: it is not overwritten unasked."""
    return is_file(path) and Path(path).stat().st_size > 0


def first_match(pattern: str) -> str | None:
    """Return one of the paths that match a pattern; None where none does, as below thousands of folders."""
    try:
        return next(glob.iglob(pattern, recursive=True), None)  # noqa: PTH207 - Path.glob is for relative ones
    except (OSError, RecursionError, ValueError):
        return None


def within(folder: Path, pattern: str) -> list[Path]:
    """List what matches a pattern in a folder; nothing where there is no such folder."""
    return sorted(folder.glob(pattern)) if is_dir(folder) else []


def cache_dir() -> Path:
    """Return the folder of what llmkit keeps between runs (tokens, tokenizers, files of addresses), in HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "llmkit"


@contextmanager
def drafted(path: Path, synced: bool = True) -> Iterator[BinaryIO]:
    """Open a draft of `path` for bytes; at the end sync it to disk if asked, and rename it; remove it on an error."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as out:
            yield out
            if synced:
                sync(out)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sync(file: BinaryIO) -> None:
    """Bring what was written to an open file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def checksum(path: Path) -> str:
    """Hash the content of a file (XXH3, 128 bits)."""
    import xxhash

    content = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            content.update(block)
    return str(content.hexdigest())


def new_draft(folder: Path) -> Path:
    """Make a folder `.draft-...` in `folder`, with the permissions of the umask; mkdtemp's would be one's own alone."""
    draft = folder / f".draft-{secrets.token_hex(8)}"
    draft.mkdir()
    return draft


def share_files(folder: Path) -> None:
    """Let whoever may look into `folder` read its files: safetensors 0.8 makes them one's own alone (0600).

    They get the permissions of the folder, which `mkdir` made as the umask says.
    """
    permissions = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 == 0o600:
            with suppress(OSError):  # a file system without permissions
                path.chmod(permissions)
