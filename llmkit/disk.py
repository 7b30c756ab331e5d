"""Ask the file system about a word that may be no path: too long, with a NUL in it, below a folder that is closed.

Path's own questions raise OSError or ValueError for such a word. Here the answer is no. And make what others may read.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

exists, is_file, is_dir = os.path.exists, os.path.isfile, os.path.isdir


def has_content(path: str | Path) -> bool:
    """Tell whether there is a file that is not empty: it is not overwritten unasked."""
    return is_file(path) and Path(path).stat().st_size > 0


def within(folder: Path, pattern: str) -> list[Path]:
    """List what matches a pattern in a folder; nothing where there is no such folder."""
    return sorted(folder.glob(pattern)) if is_dir(folder) else []


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
