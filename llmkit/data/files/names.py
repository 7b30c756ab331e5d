"""Tell from its name what a file is: a split of the data, or a remark on it such as a README."""

import re
from collections.abc import Collection
from pathlib import PurePath

VALIDATION_NAMES = ("validation", "valid", "val", "dev")  # the first that is there counts; `datasets` has the same
# CoNLL 2003 calls its splits eng.train, eng.testa and eng.testb.
_NAMES = {"train": "train", **{name: name for name in VALIDATION_NAMES}, "test": "test"}
_NAMES |= {"testa": "validation", "testb": "test", "devel": "dev"}
_NAMES |= {"training": "train", "testing": "test", "eval": "test", "evaluation": "test"}  # as `datasets` reads them
_ANY = "|".join(sorted(_NAMES, key=len, reverse=True))
_SHARD = r"([-_.]?\d+([-_]of[-_]\d+)?)?"  # train-00000-of-00001
_WHOLE = re.compile(rf"({_ANY}){_SHARD}", re.IGNORECASE)
_BEGIN = re.compile(rf"({_ANY})(?![a-z])", re.IGNORECASE)
_END = re.compile(rf"(?<![a-z])({_ANY}){_SHARD}", re.IGNORECASE)
_INSIDE = re.compile(rf"(?<![a-z])({_ANY})(?![a-z])", re.IGNORECASE)
_VERSIONED = re.compile(rf"(?<=\d[-_.])({_ANY})(?![a-z])", re.IGNORECASE)  # name_1.0_dev_matched

# Files that stand beside data and say something about it.
_ABOUT = re.compile(
    r"readme.*\.(md|txt|rst|text|html|pdf)|readme[^.]*"
    r"|(licen[sc]e|copying|citation|changelog|contributing)(-[\w.-]+)?(\.(md|txt|rst|cff|bib|html))?"
    r"|((sha|md5)\w*sums?|checksums?)([-_.]\w+)*|manifest(\.(txt|json))?|requirements[\w-]*\.txt|.*\.(lock|md5|sha256|sha1)"
    r"|(dataset_infos?|dataset_dict|state|croissant|datapackage)\.json"
    r"|(.*[-_.])?(meta|metadata|config|schema|vocab|label_?map|label2id|id2label)\.json",
    re.IGNORECASE,
)


def is_about(name: str) -> bool:
    """Tell whether a file of this name is a README, a licence, a list of checksums or the like, and no data."""
    return _ABOUT.fullmatch(name) is not None


def split_name(inside: PurePath) -> tuple[str, bool] | None:
    """Find the split that a file belongs to by its path in a folder, and whether a name says that and no more.

    `train.csv`, `test-00000-of-00001.parquet` and what stands in a folder `dev` do; `dev-v2.0.json`, `name_train.csv`,
    `eng.testa`, `emerging.dev.conll` and `name_1.0_dev_matched.jsonl` are of a split too; `trainer.csv`, `contest.csv`
    and `latest.txt` are of none.
    """
    *folders, name = inside.parts
    parts = name.split(".")
    stem = parts[0] or name
    for whole in (stem, *reversed(folders)):
        if match := _WHOLE.fullmatch(whole):
            return _NAMES[match[1].lower()], True
    for part in (*parts[:1], *reversed(parts[1:])):
        # Behind the first dot stand suffixes; one of them may be a split (`wnut17.train`).
        match = (_BEGIN.match(part) or _end(part)) if part == parts[0] else _WHOLE.fullmatch(part)
        if match:
            return _NAMES[match[1].lower()], False
    if match := _VERSIONED.search(name):
        return _NAMES[match[1].lower()], False
    for folder in reversed(folders):
        if match := _BEGIN.match(folder) or _end(folder):
            return _NAMES[match[1].lower()], False
    return None


def split_among(inside: PurePath, others: Collection[PurePath]) -> tuple[str, bool] | None:
    """Find the split of a file as `split_name` does, or by others whose paths say another split in the same place.

    `msra_train_bio.txt` and `msra_test_bio.txt` are splits beside each other.
    """
    if (found := split_name(inside)) is not None:
        return found
    for match in _INSIDE.finditer(inside.name):
        before, after = inside.name[: match.start()], inside.name[match.end() :]
        siblings = {before + name + after for name in _NAMES} - {inside.name}
        if any(inside.with_name(name) in others for name in siblings):
            return _NAMES[match[1].lower()], False
    return None


def _end(part: str) -> re.Match[str] | None:
    return next((match for match in _END.finditer(part) if match.end() == len(part)), None)
