"""What others may read of a run and of the cache: as the umask says, and no more."""

import os

import pytest

from llmkit import disk


def open_to_group(folder):
    """Each path below a folder, with what its group may do with it."""
    return {str(path.relative_to(folder)): path.stat().st_mode >> 3 & 7 for path in folder.rglob("*")}


@pytest.mark.parametrize(("umask", "of_folders", "of_files"), [(0o007, 7, 6), (0o027, 5, 4), (0o077, 0, 0)])
def test_a_run_and_the_cache_are_open_to_the_group_as_the_umask_says(
    umask, of_folders, of_files, workplace, llmkit, monkeypatch
):
    cache = workplace / "cache"
    for module in ("data.text.token_cache", "models.tokenizer", "data.cleaning.pipeline"):
        monkeypatch.setattr(f"llmkit.{module}.cache_dir", lambda: cache)
    before = os.umask(umask)
    try:
        words = ("data.clean.repair=true", "trainer.max_steps=2", "trainer.save_steps=1", "trainer.save_total_limit=2")
        done = llmkit("pretrain", "causal.toml", *words, "--output-dir", "run")
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.stderr
    for folder in (workplace / "run", cache):
        found = open_to_group(folder)
        assert {name for name, rights in found.items() if rights != of_folders and (folder / name).is_dir()} == set()
        assert {name for name, rights in found.items() if rights != of_files and (folder / name).is_file()} == set()
    assert (workplace / "run/checkpoint-2/optimizer.safetensors").is_file()
    assert (
        len([path for path in cache.iterdir() if path.is_dir()]) == 5
    )  # cleaned texts and tokens to train and evaluate on, a tokenizer


def test_only_what_a_library_made_ones_own_alone_is_opened(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o750)
    for name, mode in (("own", 0o600), ("read-only", 0o400), ("inside/own", 0o600)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        (folder / name).chmod(mode)
    disk.share_files(folder)
    assert {name: (folder / name).stat().st_mode & 0o777 for name in ("own", "read-only", "inside/own")} == {
        "own": 0o640,
        "read-only": 0o400,
        "inside/own": 0o640,
    }
