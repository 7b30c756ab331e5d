"""Token classification: a tag for each word, such as named entities (NER) or parts of speech.

A long row is read in windows that overlap. The first sub-word of a word predicts its tag (Devlin et al. 2018,
arXiv:1810.04805, section 5.3), in the window where it stands farthest from an edge. A word that gives no token at all
(a control character, a variation selector that stands alone) keeps its place and gets no prediction: it counts as O.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from llmkit import metrics as measures
from llmkit.data.rows import batches, tagging
from llmkit.data.rows.batches import Examples, models_own
from llmkit.data.rows.examples import Encoded, chunks, key_of, places, refuse
from llmkit.data.rows.labels import in_the_order_of, names_in
from llmkit.data.rows.ragged import Ragged
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.table import Rows
from llmkit.data.rows.tagging import (
    INTEGER,
    LISTS,
    NUMBERS,
    UNTAGGED,
    Sentence,
    meanings,
    name_of,
    names_in_recipe,
    read_words,
    tag_in,
)
from llmkit.errors import UserError
from llmkit.recipe.data_tables import TaggingData
from llmkit.tasks.task import Result, Results
from llmkit.tasks.trivial import Trivial

if TYPE_CHECKING:
    from llmkit.tasks import token_classification
    from llmkit.tasks.task import RowTask

    task: RowTask = token_classification

reader: RowReader = tagging  # how its rows are read

# What this task does without (`tasks/task.py`).
LONGEST_INPUT = references = prepare_model = None

METRICS = ("precision", "recall", "f1", "accuracy", "f1_macro")

STRIDE = 128  # tokens that two windows share; less where inputs are short
OUTSIDE = "O"
NO_TAG = -100  # the number of a word that has no tag: it is neither learned nor counted
# The input that numbers the word of its row whose tag a token predicts (-1: none), under a name that batches know.
WORD = "offset_start"
SHOWN_NAMES = 10  # of the tags, in a message


@dataclass(frozen=True)
class TagSpec:
    """What the outputs of a tagger mean: the names of the tags in their order.

    `kinds` are the types of entities that they mark, none where they are no marks of entities. `unknown` are tags that
    only the data to evaluate on has; their numbers are those behind the names. `rows` are, for evaluation, the right
    tags of each row's words, by number; for `predict`, its sentences.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    rows: Sequence[Any] = ()


# ---- rows -> features ----------------------------------------------------------------------------------------------


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: TaggingData, length: int) -> Encoded:
    """Tokenize the words of every row into windows of at most `length` tokens; nothing is cut off.

    Every word is tokenized as one that stands behind a blank. Targets are the tags as they were read, or Sentences
    where there are none.
    """
    template, num_special = template_of(tokenizer)
    stride = data.stride if data.stride is not None else min(STRIDE, length // 4)
    room = length - num_special
    if room <= stride:
        raise UserError(
            f"data.stride = {stride} leaves no room in inputs of {length} tokens", "lower it, or raise data.max_length"
        )
    blank = " " * needs_blank(tokenizer)
    pieces: dict[str, list[int]] = {}  # of each word that has occurred, its tokens
    done = Encoded(rows)
    mistakes: dict[int, str] = {}
    for chunk in chunks(rows.read()):
        read: list[list[str]] = []
        for _, row in chunk:
            number = len(done.targets)
            words: list[str] = []
            target: Any = None
            try:
                words, target = read_words(row, columns)
                done.keys.append(key_of(*words))
            except ValueError as mistake:
                mistakes[number] = str(mistake)
            if not "".join(words).strip():
                done.empty.append(number)
            done.targets.append(target)
            read.append(words)
        if mistakes:
            continue
        new = sorted(set(chain.from_iterable(read)) - pieces.keys())
        if new:
            texts = [blank + word for word in new]
            ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
            pieces.update(zip(new, ids, strict=True))
        for sentence in read:
            done.lengths.append(num_special + sum(len(pieces[word]) for word in sentence))
            _add_windows(done, [pieces[word] for word in sentence], template, room, stride, tokenizer.pad_token_id)
    refuse(rows, mistakes, "that cannot be read", LISTS)
    return done.finish()


def template_of(tokenizer: Any) -> tuple[dict[str, tuple[list[int], int, list[int]]], int]:
    """For each input of the model what stands before, in and behind the tokens of a text; and how many are not of it.

    In all but `input_ids` the tokens of one text have one value.
    """
    whole = tokenizer("a", return_special_tokens_mask=True, return_attention_mask=False)
    own = [place for place, special in enumerate(whole.pop("special_tokens_mask")) if not special]
    first, behind = own[0], own[-1] + 1
    template = {name: (values[:first], values[first], values[behind:]) for name, values in whole.items()}
    return template, len(whole["input_ids"]) - len(own)


def needs_blank(tokenizer: Any) -> bool:
    """Whether a word is tokenized as inside a text only behind a blank, as byte-level BPE does it."""
    alone, two, behind_blank = tokenizer(["a", "a a", " a"], add_special_tokens=False)["input_ids"]
    second = two[len(alone) :]
    return bool(second != alone and second == behind_blank)


def _add_windows(
    done: Encoded,
    pieces: list[list[int]],
    template: Mapping[str, tuple[list[int], int, list[int]]],
    room: int,
    stride: int,
    padding: int,
) -> None:
    row, before, after = len(done.cut), len(template["input_ids"][0]), len(template["input_ids"][2])
    sizes = np.array([len(ids) for ids in pieces], np.int64)
    ids = list(chain.from_iterable(pieces))
    done.cut.append(0)
    if not ids and not before + after:
        ids = [padding]  # no model reads an input of no tokens
    words = np.full(len(ids), -1, np.int32)
    given = np.flatnonzero(sizes)
    words[(np.cumsum(sizes) - sizes)[given]] = given
    for begin, stop, first, behind in windows(len(ids), room, stride):
        for name, (prefix, inside, suffix) in template.items():
            done.add(name, prefix + (ids[begin:stop] if name == "input_ids" else [inside] * (stop - begin)) + suffix)
        own = np.full(before + stop - begin + after, -1, np.int32)
        own[before + first - begin : before + behind - begin] = words[first:behind]
        done.add(WORD, own)
        done.row.append(row)


def windows(size: int, room: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """(begin, stop, first, behind) of each window over `size` tokens; it predicts for those from first to behind.

    Two neighbours share `stride` tokens, the first half of which is farther from an edge in the window before.
    """
    begin = first = 0
    while begin + room < size:
        stop, following = begin + room, begin + room - stride
        behind = (following + stop + 1) // 2
        yield begin, stop, first, behind
        begin, first = following, behind
    yield begin, size, first, size


def collator(tokenizer: Any, config: Any, multiple: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Examples -> a batch with a label for each token."""
    return batches.collator(tokenizer, multiple, labelled_tokens=True)


# ---- labels --------------------------------------------------------------------------------------------------------


def resolve_labels(
    data: TaggingData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> TagSpec:
    """Resolve what the tags mean, from the whole column; written into `config`. The targets become the tags' numbers.

    The names are the recipe's, else the data set's own, else those of the training data, sorted behind O. A model that
    was a tagger of the same names keeps their order. `fixed`: the model is not trained, its outputs mean what its
    config says. A tag that only the data to evaluate on has is counted wrong, with a warning. Raises UserError that
    names the rows with a tag that is no tag, out of range or not to be learned.
    """
    parts = [*([train] if train is not None else []), *validation.values()]
    meant = [meanings(data, part.source, columns["tags"]) for part in parts]
    named = [_named(part, ids) for part, ids in zip(parts, meant, strict=True)]
    of_model, own = names_in(config), names_in_recipe(data, columns) or meant[0]
    if fixed:
        names = of_model or own or tuple(str(i) for i in range(config.num_labels))
        if len(names) != config.num_labels:
            raise UserError(f"the model has {config.num_labels} tags and the data {len(names)}: {_shown(names)}")
    else:
        used = set(chain.from_iterable(named[0])) - {UNTAGGED}
        if "text" in columns:  # of spans: a type may have one word here and two elsewhere
            used |= {f"I-{tag[2:]}" for tag in used if tag.startswith("B-")}
        names = in_the_order_of(of_model, tuple(own) if own else _sorted(used))
    if len(set(names)) < len(names):
        raise UserError(f"data.label_names holds a name twice: {', '.join(names)}")
    why = "the model does not know" if fixed else "no row of the training data has"
    if own and not fixed:
        why = f"is not in {'data.label_names' if data.label_names else 'the names of the column'}"
    tested = named if train is None else named[1:]
    unknown = tuple(sorted(set(chain.from_iterable(chain.from_iterable(tested))) - {UNTAGGED, *names}))
    for part, tags in zip(parts, named, strict=True):
        _number(part, tags, names, () if part is train else unknown, why)
    if train is not None:
        used = set(chain.from_iterable(named[0])) - {UNTAGGED}
        if len(used) < 2:
            every = f"every word has the tag {used.pop()}: nothing can be learned" if used else "no row has a tag"
            raise UserError(f"{train.source.source}: {every}", "is it the right column?")
    config.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    return TagSpec(names, kinds_of(names), unknown)


def _named(part: Encoded, meant: Sequence[str] | None) -> list[list[str]]:
    """The tags of every row by name; `meant` says what numbers stand for."""
    tags_by_row: list[list[str]] = []
    mistakes: dict[int, str] = {}
    for row, tags in enumerate(part.targets):
        tags_by_row.append([])
        try:
            for tag in tags:
                tags_by_row[-1].append(name_of(tag_in(tag), meant))
        except ValueError as mistake:
            mistakes[row] = f"word {len(tags_by_row[-1]) + 1}: {mistake}"
    refuse(part.source, mistakes, "whose tags cannot be used", NUMBERS)
    return tags_by_row


def _number(part: Encoded, named: list[list[str]], names: Sequence[str], unknown: Sequence[str], why: str) -> None:
    """Let `part.targets` be the tags of each row as numbers, and make the labels of its tokens.

    The `unknown` tags have the numbers behind `names`, and are no labels. `why` says what is wrong with any other tag.
    """
    index = {name: number for number, name in enumerate([*names, *unknown])} | {UNTAGGED: NO_TAG}
    numbers: list[np.ndarray] = []
    mistakes: dict[int, str] = {}
    for row, tags in enumerate(named):
        numbers.append(np.array([index.get(tag, -1) for tag in tags], np.int64))
        for word in np.flatnonzero(numbers[-1] == -1)[:1]:
            mistakes[row] = f'word {word + 1}: tag "{tags[word]}", which {why}; the tags are {_shown(names)}'
    refuse(part.source, mistakes, "whose tags cannot be used", "fix these rows, or remove them")
    strange = [row for row, numbers_of_row in enumerate(numbers) if (numbers_of_row >= len(names)).any()]
    if strange:
        values = np.concatenate(numbers)
        beyond = values[values >= len(names)]
        shown = _shown([unknown[number - len(names)] for number in np.unique(beyond)])
        if not ((values >= 0) & (values < len(names))).any():
            raise UserError(
                f"{part.source.source}: every tag is one that {why}: {shown}",
                f"the tags are {_shown(names)}; is it the right column?",
            )
        part.warnings.append(
            f"words of {len(strange):,} row{'s' * (len(strange) > 1)} have a tag that {why} ({shown}) and count as "
            f"wrong, such as in {places(part.source, strange[:1])[0]}"
        )
    labels, words = Ragged(), part.inputs[WORD]
    for window, row in enumerate(part.row):
        own = np.full(len(words[window]), -100, np.int64)
        at = words[window] >= 0
        right = numbers[row][words[window][at]]
        own[at] = np.where(right < len(names), right, NO_TAG)
        labels.append(own)
    labels.finish()
    part.inputs["labels"], part.targets = labels, numbers


def _sorted(names: set[str]) -> tuple[str, ...]:
    if all(map(INTEGER.fullmatch, names)):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names, key=lambda name: (name != OUTSIDE, name)))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


def kinds_of(names: Sequence[str]) -> tuple[str, ...]:
    """Return the types of entities that the tags mark, sorted; none where no tag has a prefix.

    Letters alone (B, M, E, S) mark entities of one kind, such as words, if there is no other tag.
    """
    kinds = {name: kind for name in names for kind, _, _ in measures.entities([name])}
    if not kinds.keys() >= set(names) - {OUTSIDE} and not any(len(name) > 1 for name in kinds):
        return ()
    return tuple(sorted(set(kinds.values())))


def examples(encoded: Encoded, label_spec: TagSpec, evaluation: bool) -> Examples:
    """Return the windows as the model's inputs and labels."""
    return Examples(encoded, replace(label_spec, rows=encoded.targets), by_length=evaluation)


def record(label_spec: TagSpec) -> dict[str, Any]:
    """Return what the run's record says for `predict`: nothing, the model's config has it."""
    return {}


def metric_names(label_spec: TagSpec) -> tuple[str, ...]:
    """Name the metrics that fit these tags; of entities also the F1 of each type."""
    if label_spec.kinds:
        return (*METRICS[:4], *(f"f1_{kind}" for kind in label_spec.kinds))
    return METRICS[3:]


def label_counts(part: Encoded, label_spec: TagSpec) -> dict[str, Any]:
    """Count in how many rows each type of entity occurs, or each tag where they mark no entities."""
    every = (*label_spec.names, *label_spec.unknown)
    marks = [measures.entities([name]) for name in every] if label_spec.kinds else []
    kind_of = [mark[0][0] if mark else None for mark in marks] if label_spec.kinds else list(every)
    counts = dict.fromkeys(label_spec.kinds or label_spec.names, 0)
    for tags in part.targets:
        for kind in {kind_of[number] for number in set(tags.tolist()) - {NO_TAG}} - {None}:
            counts[str(kind)] = counts.get(str(kind), 0) + 1
    return counts


# ---- loss, predictions, metrics ------------------------------------------------------------------------------------


def losses(
    outputs: Any,
    batch: Mapping[str, torch.Tensor],
    label_spec: TagSpec,
    training: bool = False,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy (nats) of each token's tag, [B, T]; 0 where it has none."""
    return F.cross_entropy(
        outputs.logits.float().transpose(1, 2),
        batch["labels"],
        reduction="none",
        label_smoothing=label_smoothing if training else 0.0,
    )


def preprocess_logits_for_metrics(
    model: Any, outputs: Any, batch: Mapping[str, torch.Tensor], label_spec: TagSpec
) -> torch.Tensor:
    """Return the tag of every token, [B, T]: batches differ in T, and Trainer pads them on the right."""
    return outputs.logits.argmax(dim=-1).float()


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Precision, recall and F1 of entities and accuracy over words, from what was kept of every window.

    Of tags that mark no entities, accuracy and the mean of each tag's F1 (a word without a token is a miss there).
    """
    return _figures(_tagged(kept, part), part.extra)


def _figures(tagged: Sequence[np.ndarray], label_spec: TagSpec) -> dict[str, float]:
    """The metrics of the tags' numbers, by row."""
    predicted, gold = np.concatenate(tagged), np.concatenate(label_spec.rows)
    predicted, gold = predicted[gold != NO_TAG], gold[gold != NO_TAG]
    accuracy = measures.accuracy(predicted, gold)
    if not label_spec.kinds:
        classes = np.union1d(predicted[predicted >= 0], gold)
        f1 = measures.multilabel_f1(predicted[:, None] == classes, gold[:, None] == classes, "macro")
        return {"accuracy": accuracy, "f1_macro": f1}
    scores = measures.entity_scores(*_named_tags(tagged, label_spec))
    return {**dict.fromkeys(metric_names(label_spec), 0.0), **scores, "accuracy": accuracy}


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[list[list[str]], list[list[str]]]:
    """Return the names of the tags given to each row's words, and of those that are right; not of untagged words."""
    return _named_tags(_tagged(kept, part), part.extra)


def _named_tags(tagged: Sequence[np.ndarray], label_spec: TagSpec) -> tuple[list[list[str]], list[list[str]]]:
    names = [*label_spec.names, *label_spec.unknown, OUTSIDE]  # -1 is the last
    told = [tags != NO_TAG for tags in label_spec.rows]
    sides = (tagged, label_spec.rows)
    predicted, gold = (
        [[names[number] for number in tags[has].tolist()] for tags, has in zip(side, told, strict=True)]
        for side in sides
    )
    return predicted, gold


def results(kept: np.ndarray, part: Examples, columns: Mapping[str, str]) -> Results:
    """The entities of each row and those that were found, or its tags, and how many are wrong; most errors first.

    An entity that is found as another type is one error, and so is one that is missed or that is none.
    """
    label_spec: TagSpec = part.extra
    found, gold = predictions_and_references(kept, part)

    def result(row: int, words: list[str], true: list[str], chosen: list[str]) -> Result:
        decisions: list[tuple[str | None, str | None]] = list(zip(true, chosen, strict=True))
        said: dict[str, Any] = {"truth": true, "prediction": chosen}
        if label_spec.kinds:
            spans = [{(first, last): kind for kind, first, last in measures.entities(tags)} for tags in (true, chosen)]
            decisions = [(spans[0].get(at), spans[1].get(at)) for at in sorted(spans[0].keys() | spans[1].keys())]
            for key, entities in zip(said, spans, strict=True):
                said[key] = [
                    {"text": " ".join(words[first : last + 1]), "label": kind}
                    for (first, last), kind in entities.items()
                ]
        errors = sum(right != other for right, other in decisions)
        return Result(row, {**said, "errors": errors, "right": not errors}, (errors,), decisions)

    texts = (read_words(row, columns)[0] for _, row in part.source.read())
    told = (
        [word for word, tag in zip(words, tags.tolist(), strict=True) if tag != NO_TAG]
        for words, tags in zip(texts, label_spec.rows, strict=True)
    )
    classes = sorted({*chain.from_iterable(gold), *chain.from_iterable(found)})
    if label_spec.kinds:
        classes = sorted({*label_spec.kinds, *kinds_of(classes)})
    rows = map(result, range(len(gold)), told, gold, found)
    return Results(rows, classes, "entities" if label_spec.kinds else "words")


def _tagged(kept: np.ndarray, part: Examples) -> list[np.ndarray]:
    """The numbers of the tags given to the words of each row; O, or -1 where there is none, for want of a token."""
    label_spec: TagSpec = part.extra
    tags_by_row = [np.full(len(tags), _outside(label_spec), np.int64) for tags in label_spec.rows]
    for values, window in zip(kept, part.order, strict=True):
        words = part.inputs[WORD][window]
        at = words >= 0
        tags_by_row[part.row[window]][words[at]] = values[: len(words)][at]
    return tags_by_row


def _outside(label_spec: TagSpec) -> int:
    return label_spec.names.index(OUTSIDE) if OUTSIDE in label_spec.names else -1


def trivial_answer(train: Encoded, label_spec: TagSpec) -> dict[str, Any]:
    """The tag that most words have."""
    tags = np.concatenate(train.targets)
    return {"tag": label_spec.names[int(np.bincount(tags[tags != NO_TAG]).argmax())]}


def trivial(known: Mapping[str, Any], kept: np.ndarray, part: Examples) -> Trivial:
    """Always the tag that most words have."""
    label_spec: TagSpec = part.extra
    tagged = _tagged(kept, part)
    always = [np.full_like(tags, label_spec.names.index(known["tag"])) for tags in label_spec.rows]
    told = np.array([(tags != NO_TAG).sum() for tags in label_spec.rows])

    def right(side: Sequence[np.ndarray]) -> np.ndarray:
        same = [(a == b).sum() for a, b in zip(side, label_spec.rows, strict=True)]  # no one predicts NO_TAG
        return np.stack([same, told], axis=1)

    def entities(side: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(*_named_tags(side, label_spec), strict=True)
        marks = [(set(measures.entities(a)), set(measures.entities(b))) for a, b in pairs]
        return np.array([(2 * len(a & b), len(a) + len(b)) for a, b in marks])

    rows = {"accuracy": (right(tagged), right(always))}
    if label_spec.kinds:
        rows["f1"] = entities(tagged), entities(always)
    names, _ = _named_tags(always, label_spec)
    return Trivial(f'always "{known["tag"]}"', _figures(always, label_spec), names, rows)


def label_spec_from_config(config: Any, record: Mapping[str, Any], data: TaggingData, tokenizer: Any) -> TagSpec:
    """Return what the outputs of a finished model mean, from its config."""
    names = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return TagSpec(names, kinds_of(names))


def forward_for_predict(model: Any, batch: Mapping[str, torch.Tensor], label_spec: TagSpec) -> torch.Tensor:
    """What `postprocess` needs of the model, [words, 4]: the example, the word, its tag and how probable that is."""
    logits = model(**models_own(batch)).logits
    example, place = torch.nonzero(batch[WORD] >= 0, as_tuple=True)
    scores, tags = logits[example, place].double().softmax(dim=-1).max(dim=-1)
    return torch.stack([batch["index"][example], batch[WORD][example, place], tags, scores], dim=1)


def postprocess(kept: np.ndarray, part: Examples, label_spec: TagSpec) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what `predict` says of it): the entities, the words if it was a text, and the tag of each word.

    The score of an entity is the mean of the probabilities of its words' tags. The places of its first and behind its
    last character are those in the text; in the words joined by blanks, where they came as a list.
    """
    sentences: Sequence[Sentence] = part.extra.rows
    names: list[Any] = [*label_spec.names, OUTSIDE if label_spec.kinds else None]
    tags_by_row = [[names[_outside(label_spec)]] * len(sentence.spans) for sentence in sentences]
    scores = [[0.0] * len(sentence.spans) for sentence in sentences]
    for index, word, tag, score in kept.tolist():
        row = int(part.row[int(index)])
        tags_by_row[row][int(word)], scores[row][int(word)] = names[int(tag)], score
    for row, (sentence, tags) in enumerate(zip(sentences, tags_by_row, strict=True)):
        answer: dict[str, Any] = {}
        if label_spec.kinds:
            answer["entities"] = [
                {
                    "text": sentence.text[sentence.spans[first][0] : sentence.spans[last][1]],
                    "label": kind,
                    "score": round(sum(scores[row][first : last + 1]) / (last + 1 - first), 6),
                    "start": sentence.spans[first][0],
                    "end": sentence.spans[last][1],
                }
                for kind, first, last in measures.entities(tags)
            ]
        if not sentence.listed:
            answer["tokens"] = [sentence.text[begin:end] for begin, end in sentence.spans]
        yield row, {**answer, "tags": tags}
