"""Ask the file system about a word that may be no path: too long, with a NUL in it, below a folder that is closed.

Path's own questions raise OSError or ValueError for such a word. Here the answer is no.
"""

import os
from pathlib import Path

exists, is_file, is_dir = os.path.exists, os.path.isfile, os.path.isdir


def within(folder: Path, pattern: str) -> list[Path]:
    """List what matches a pattern in a folder; nothing where there is no such folder."""
    return sorted(folder.glob(pattern)) if is_dir(folder) else []
