"""Name the formats of files, and their size."""

from collections.abc import Sequence
from pathlib import Path

from llmkit.data import files

FORMATS = {".csv": "CSV", ".tsv": "TSV", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON"}
FORMATS |= {".parquet": "Parquet", ".arrow": "Arrow", **dict.fromkeys(files.TEXT_SUFFIXES, "text")}


def kinds_and_size(path: str, paths: Sequence[Path]) -> str:
    """Name the formats and the size of the files that `path` stands for."""
    kinds = dict.fromkeys(FORMATS.get(files.suffix(file), files.suffix(file).lstrip(".") or "text") for file in paths)
    size = sum(file.stat().st_size for file in paths)
    shown = next((f"{size / 10**n:.1f} {unit}" for n, unit in ((9, "GB"), (6, "MB"), (3, "kB")) if size >= 10**n), "")
    many = "" if len(paths) == 1 else f", {len(paths):,} files"
    return f"{path}{many}: {', '.join(kinds)}, {shown or f'{size} bytes'}"
