"""The words that decided: integrated gradients over the input embeddings of a finished model.

The words of an input are led, in a straight line, from the embedding of the mask token (of the pad token, where there
is none) to their own. What a token's embedding has changed of the model's score on the way is the token's part in it,
and all parts together are the difference of the scores at both ends (Sundararajan et al. 2017, arXiv:1703.01365, which
calls it completeness). The rest of the input stays as it is: special tokens, positions, types.

What is explained is what the model predicts: of a class or of the tag of a word its log odds, which are the difference
of the two logits where there are two, and the logit itself where classes do not exclude one another; of a regression
its value; of a choice its logit; of an answer the sum of its two logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import regex
import torch

from llmkit import hub, tasks
from llmkit.data.rows import tagging
from llmkit.data.rows.batches import models_own
from llmkit.data.rows.choices import read_beginnings, read_choices
from llmkit.data.rows.examples import Encoded, kept
from llmkit.data.rows.labels import REGRESSION, SINGLE
from llmkit.data.rows.screening import view
from llmkit.data.rows.table import Rows
from llmkit.errors import quantity, say
from llmkit.language import UNSPACED
from llmkit.models import loading
from llmkit.models.loading import without_adapter
from llmkit.runs.finished import data_of, one_task_of, record_of
from llmkit.tasks import question_answering, token_classification
from llmkit.tasks.inputs import choose_length, fit_for_batches

TOLERANCE = 0.02  # how far the sum may be from the difference, as a share of it
INTERVALS = (16, 32, 64, 128, 256)  # of the line; each set of points holds the one before
AT_ONCE = 4096  # tokens
_UNSPACED = "".join(dict.fromkeys(letters.strip("[]") for _, letters in UNSPACED.values()))
_LETTERS = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--[{_UNSPACED}]]+"
# What is never cut: a word, with an apostrophe inside; of scripts without blanks, and of all else, a character.
SEGMENT = regex.compile(rf"(?V1){_LETTERS}(?:['’]{_LETTERS})*|\X")
CHARACTER = regex.compile(r"\X")

Place = tuple[int, int, int]  # of a token: the number of its text, where it begins and ends there, in characters


class Unexplained(Exception):
    """Raised for a model whose embeddings are not where they are looked for."""


class Word(NamedTuple):
    """A word as it stands in a text: the characters from `begin` to `end` of the text with the number `part`."""

    text: str
    score: float
    part: int
    begin: int
    end: int


@dataclass(frozen=True)
class Attribution:
    """What each word of a row has to do with what the model says of it.

    Attributes:
        row: the number of the row among those asked about.
        explained: the class, tag, value, choice or answer that is explained; "" is no answer.
        texts: what the model reads, such as a question and its context.
        words: the words that it reads, in their order; above 0 they speak for what is explained, below against it.
        word: the number of the word whose tag is explained.
        difference: between the score of the input and that of the input without its words.
        gap: how far the sum over the words is from the difference, as a share of it.
    """

    row: int
    explained: str
    texts: tuple[str, ...]
    words: tuple[Word, ...]
    word: int | None
    difference: float
    gap: float


@dataclass(frozen=True)
class _Question:
    """What is asked about a row: which score, of which input.

    `inputs` are the model's, of one example; `places` are where its tokens stand in `texts`, None for special tokens,
    and None where that is not clear. `score` makes [B] of the model's outputs. `at` is the token whose tag it is about.
    """

    inputs: Mapping[str, torch.Tensor]
    texts: tuple[str, ...]
    places: Sequence[Place | None] | None
    explained: str
    score: Callable[[Any], torch.Tensor]
    at: int | None = None


@dataclass(frozen=True)
class _Asked:
    """The rows to explain, read as for the model, and what their questions are made with."""

    model: Any
    tokenizer: Any
    columns: Mapping[str, str]
    label_spec: Any
    table: Rows
    rows: Sequence[Mapping[str, Any]]
    encoded: Encoded
    data: Any
    length: int

    def examples_of(self, number: int) -> list[int]:
        return np.flatnonzero(np.asarray(self.encoded.row) == number).tolist()

    def tensors(self, example: int) -> dict[str, torch.Tensor]:
        """Return an example as a batch of one."""
        made = {
            name: torch.from_numpy(values[example].astype(np.int64))[None].to(self.model.device)
            for name, values in self.encoded.inputs.items()
        }
        return {**made, "attention_mask": torch.ones_like(made["input_ids"])}


def explain(
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    class_names: Mapping[str, tuple[str, ...]] | None = None,
    tolerance: float = TOLERANCE,
) -> list[Attribution]:
    """Explain what a finished run, in fp32, predicts for each of `rows`, as the task's reader gives them.

    Of a row of words it explains one tag, the surest of those that are wrong, or of all where none is or where the row
    has no tags; of several classes the likeliest. A row is missing where its tokens are not found in its text.

    Args:
        directory: the run.
        rows: may be without the columns of labels.
        class_names: what numbers in a column of tags stand for, as `Rows.class_names`.
        tolerance: how far the sum over the words may be from the difference, as a share of it. The points on the line
            are doubled until it is not farther, up to 257 of them.
    """
    name = str(directory)
    task = one_task_of(name)
    if task not in QUESTIONS:
        say(f"note: what a model for {task} says has no words that are shown to decide it")
        return []
    if not rows:
        return []
    # A new adapter's weights are drawn before they are read.
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
        asked = _read(name, task, rows, class_names or {})
        if not asked.tokenizer.is_fast:
            say("note: the tokenizer does not say where its tokens stand in the text, so that no words are shown")
            return []
        try:
            explained = list(_explained(asked, QUESTIONS[task], tolerance))
        except Unexplained as problem:
            say(f"note: no words are shown that decided: {problem}")
            return []
    if missing := len(rows) - len(explained):
        say(f"note: the words of {quantity(missing, 'row')} are not shown: the tokens are not the text's")
    far = [each.gap for each in explained if each.gap > tolerance]
    if far:
        say(
            f"note: the words of {quantity(len(far), 'row')} add up to what they explain but for {max(far):.0%} at most"
        )
    return explained


def _read(
    name: str, task: str, rows: Sequence[Mapping[str, Any]], class_names: Mapping[str, tuple[str, ...]]
) -> _Asked:
    """Load the model and read the rows, as `llmkit predict` does."""
    module, record, data = tasks.row_task(task), record_of(name), data_of(name, task)
    model = loading.load_model(name, tasks.model_class(task), from_pretrained_options={"dtype": torch.float32})
    tokenizer = loading.load_tokenizer(name, hub.commit(name))
    fit_for_batches(tokenizer, model.config)
    length = choose_length(record.get("max_length") or data.max_length, model.config)
    places_of_rows = [f"row {number}" for number in range(1, len(rows) + 1)]
    table = Rows(lambda: zip(places_of_rows, rows, strict=True), tuple(rows[0]), class_names, "", "the rows to explain")
    columns = dict(record["columns"])
    labels = [role for role in columns if role in module.reader.LABEL_ROLES]
    for role in labels:
        if role != "tags" or columns[role] not in table.columns:
            del columns[role]
    table = view(table, columns)
    assert module.label_spec_from_config is not None
    label_spec = module.label_spec_from_config(model.config, record, data, tokenizer)
    encoded = module.encode(table, columns, tokenizer, data, length)
    read = [row for _, row in table.read()]
    return _Asked(model, tokenizer, columns, label_spec, table, read, encoded, data, length)


def _explained(
    asked: _Asked, question_of: Callable[[_Asked, int], _Question | None], tolerance: float
) -> Iterator[Attribution]:
    mask = asked.tokenizer.mask_token_id
    baseline = asked.tokenizer.pad_token_id if mask is None else mask
    segment = CHARACTER if question_of is _tag else SEGMENT
    for number in range(len(asked.rows)):
        question = question_of(asked, number)
        if question is None or question.places is None:
            continue
        of_text = torch.tensor([place is not None for place in question.places], device=asked.model.device)
        scores, difference = integrated_gradients(
            asked.model, question.inputs, of_text, baseline, question.score, tolerance
        )
        words = to_words(question.texts, question.places, scores.tolist(), segment)
        place = None if question.at is None else question.places[question.at]
        at = [i for i, each in enumerate(words) if place and each.begin <= place[1] < each.end]
        yield Attribution(
            number,
            question.explained,
            question.texts,
            tuple(words),
            at[0] if at else None,
            difference,
            gap_of(float(scores.sum()), difference),
        )


# ---- what is asked of a row, by task -------------------------------------------------------------------------------


def _log_odds(logits: torch.Tensor, number: int) -> torch.Tensor:
    """Logits [B, C] -> the logarithm of how much likelier the class is than all others together, [B]."""
    others = [i for i in range(logits.shape[1]) if i != number]
    return logits[:, number] - logits[:, others].logsumexp(dim=1)


def _outputs(asked: _Asked, inputs: Mapping[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        return asked.model(**models_own(inputs))


def _class(asked: _Asked, number: int) -> _Question:
    row, columns, spec = asked.rows[number], asked.columns, asked.label_spec
    inputs = asked.tensors(*asked.examples_of(number))
    logits = _outputs(asked, inputs).logits[0]
    best = int(logits.argmax())
    answer = f"{float(logits[0]):.4g}" if spec.problem_type == REGRESSION else spec.names[best]

    def score(outputs: Any) -> torch.Tensor:
        return _log_odds(outputs.logits, best) if spec.problem_type == SINGLE else outputs.logits[:, best]

    texts = tuple(
        kept(row[columns[role]] or "", asked.length, asked.tokenizer)
        for role in ("text", "text_pair")
        if role in columns
    )
    return _Question(inputs, texts, places(asked.tokenizer, texts, inputs["input_ids"][0].tolist()), answer, score)


def _choice(asked: _Asked, number: int) -> _Question:
    """The choices are read one by one: no score depends on another choice."""
    (example,), row = asked.examples_of(number), asked.rows[number]
    whole = asked.tensors(example)
    sizes = [size for size in whole.pop("choices")[0].tolist() if size >= 0]
    each = [
        {name: value[None] for name, value in zip(whole, values, strict=True)}
        for values in zip(*(value.split(sizes, dim=1) for value in whole.values()), strict=True)
    ]
    best = int(torch.cat([_outputs(asked, inputs).logits for inputs in each]).argmax())
    first, begins = read_beginnings(row, asked.columns)
    choice = read_choices(row, asked.columns)[0][best]
    texts = (first, f"{begins} {choice}" if begins else choice)
    where = places(asked.tokenizer, texts, each[best]["input_ids"][0, 0].tolist())
    return _Question(each[best], texts, where, choice, lambda outputs: outputs.logits[:, 0])


def _tag(asked: _Asked, number: int) -> _Question | None:
    row, names = asked.rows[number], asked.label_spec.names
    words, tags = tagging.read_words(row, asked.columns)
    truth: list[str] = []
    if "tags" in asked.columns:
        meant = tagging.meanings(asked.data, asked.table, asked.columns["tags"])
        truth = [tagging.name_of(tagging.tag_in(tag), meant) for tag in tags]
    surest: tuple[Any, ...] = ()
    for example in asked.examples_of(number):
        inputs = asked.tensors(example)
        of = inputs[token_classification.WORD][0]
        chances = _outputs(asked, inputs).logits[0].softmax(dim=1).max(dim=1)
        for at in torch.nonzero(of >= 0)[:, 0].tolist():
            tag, word = int(chances.indices[at]), int(of[at])
            wrong = bool(truth) and truth[word] not in (names[tag], tagging.UNTAGGED)
            rank = wrong, names[tag] != token_classification.OUTSIDE, float(chances.values[at])
            surest = max(surest, (rank, example, at, tag), key=lambda found: found[:1])
    if not surest:
        return None
    _, example, at, tag = surest
    inputs = asked.tensors(example)
    text = row[asked.columns["text"]] if "text" in asked.columns else " ".join(words)
    where = _places_of_words(asked.tokenizer, words, text, inputs, at)
    return _Question(inputs, (text,), where, names[tag], lambda outputs: _log_odds(outputs.logits[:, at], tag), at)


def _places_of_words(
    tokenizer: Any, words: Sequence[str], text: str, inputs: Mapping[str, torch.Tensor], at: int
) -> list[Place | None]:
    """Return where the word of each token stands; `at` is the first token of a word, which the inputs name."""
    template, special = token_classification.template_of(tokenizer)
    before = len(template["input_ids"][0])
    blank = " " * token_classification.needs_blank(tokenizer)
    pieces = tokenizer([blank + word for word in words], add_special_tokens=False, verbose=False)["input_ids"]
    spans: list[Place] = []
    for word in words:
        begin = text.index(word, spans[-1][2] if spans else 0)
        spans.append((0, begin, begin + len(word)))
    of = [number for number, ids in enumerate(pieces) for _ in ids]
    begin = of.index(int(inputs[token_classification.WORD][0, at])) - at + before
    size = inputs["input_ids"].shape[1] - special
    return [*[None] * before, *(spans[number] for number in of[begin : begin + size]), *[None] * (special - before)]


def _answer(asked: _Asked, number: int) -> _Question:
    spec, examples = asked.label_spec, asked.examples_of(number)
    part = question_answering.examples(asked.encoded, spec, True)
    windows = [
        {**asked.tensors(example), "index": torch.tensor([example], device=asked.model.device)} for example in examples
    ]
    kept = np.concatenate(
        [
            question_answering.preprocess_logits_for_metrics(asked.model, _outputs(asked, each), each, spec)
            .cpu()
            .numpy()
            for each in windows
        ]
    )
    ((_, (best, *_)),) = question_answering.ranked(kept, part, spec)
    spans = kept[:, 2:].reshape(len(kept), 3, -1)  # scores, first tokens, last tokens; the best first
    if best["start"] is None:
        inputs = windows[int(kept[:, 1].argmin())]
        first = last = int((inputs["offset_start"][0] == question_answering.NO_ANSWER).int().argmax())
    else:
        surest = int(spans[:, 0, 0].argmax())
        inputs, (first, last) = windows[surest], map(int, spans[surest, 1:, 0])
    texts = asked.encoded.targets[number][:2]
    where = places(asked.tokenizer, texts, inputs["input_ids"][0].tolist())
    if where is not None:  # of two windows with the same tokens, the inputs know which it is
        inside = zip(inputs["offset_start"][0].tolist(), inputs["offset_end"][0].tolist(), strict=True)
        where = [(1, *span) if span[0] >= 0 else place for place, span in zip(where, inside, strict=True)]

    def score(outputs: Any) -> torch.Tensor:
        return outputs.start_logits[:, first] + outputs.end_logits[:, last]

    return _Question(inputs, texts, where, best["text"], score)


QUESTIONS: dict[str, Callable[[_Asked, int], _Question | None]] = {
    "text-classification": _class,
    "multiple-choice": _choice,
    "token-classification": _tag,
    "question-answering": _answer,
}


# ---- the integral --------------------------------------------------------------------------------------------------


def integrated_gradients(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    of_text: torch.Tensor,
    baseline: int,
    score: Callable[[Any], torch.Tensor],
    tolerance: float = TOLERANCE,
) -> tuple[torch.Tensor, float]:
    """Return the part of each token in `score`, [T], and the difference of the scores at both ends of the line.

    The points are those of Clenshaw and Curtis (1960): every second point of a set is one of the set before, and with
    few of them the sum is as near as with Gauss and Legendre's.

    Args:
        model: in evaluation mode; nothing of it changes.
        inputs: one example.
        of_text: which of its tokens begin as `baseline`, [T].
        baseline: the id of that token.
        score: (outputs for B examples) -> [B].
        tolerance: the points are doubled until the sum is not farther from the difference, as a share of it.
    """
    embedding, own = model.get_input_embeddings(), models_own(inputs)
    ids = own["input_ids"].reshape(1, -1)
    with torch.no_grad():
        begin, end = embedding(ids.masked_fill(of_text, baseline)), embedding(ids)
    slopes, values = torch.empty(0, ids.shape[1], device=ids.device), torch.empty(0, device=ids.device)
    for intervals in INTERVALS:
        alphas, weights = (torch.tensor(each, dtype=torch.float32, device=ids.device) for each in line(intervals))
        new = alphas if not len(slopes) else alphas[1::2]
        steps_of_path = [
            _at(model, embedding, own, begin, end, some, score) for some in new.split(max(1, AT_ONCE // ids.shape[1]))
        ]
        fresh_values, fresh_slopes = (torch.cat(each) for each in zip(*steps_of_path, strict=True))
        values, slopes = _merged(values, fresh_values), _merged(slopes, fresh_slopes)
        parts, difference = weights @ slopes, float(values[-1] - values[0])
        if gap_of(float(parts.sum()), difference) <= tolerance:
            break
    return parts, difference


def _merged(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Set each of the new points between two of the old."""
    if not len(old):
        return new
    both = torch.empty(len(old) + len(new), *old.shape[1:], device=old.device)
    both[::2], both[1::2] = old, new
    return both


def line(intervals: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the points from 0 to 1 at which a function is taken, and their weights in its integral.

    As in Trefethen 2008, "Is Gauss quadrature better than Clenshaw-Curtis?"; `intervals` is even.
    """
    k, j = np.arange(intervals + 1), np.arange(1, intervals // 2 + 1)
    terms = np.where(2 * j == intervals, 1, 2) / (4 * j**2 - 1) * np.cos(2 * np.pi * np.outer(k, j) / intervals)
    weights = (1 - terms.sum(axis=1)) / intervals
    weights[[0, -1]] /= 2
    return (1 - np.cos(np.pi * k / intervals)) / 2, weights


def _at(
    model: Any,
    embedding: torch.nn.Module,
    own: Mapping[str, torch.Tensor],
    begin: torch.Tensor,
    end: torch.Tensor,
    alphas: torch.Tensor,
    score: Callable[[Any], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the score at each point, [A], and how each token changes it there on the way from begin to end, [A, T].

    The model reads the ids, by which it finds positions, padding and the end of the input, and gets other embeddings.
    """
    points = (begin + alphas[:, None, None] * (end - begin)).requires_grad_()
    calls = 0

    def replace(module: torch.nn.Module, arguments: Any, embeddings: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.cat([points, embeddings[:, points.shape[1] :]], dim=1)  # some models add padding

    handle = embedding.register_forward_hook(replace)
    try:
        scores = score(model(**{name: values.repeat_interleave(len(alphas), 0) for name, values in own.items()}))
    finally:
        handle.remove()
    if calls != 1:
        raise Unexplained(f"{type(without_adapter(model)).__name__} does not read its input embeddings once")
    (slopes,) = torch.autograd.grad(scores.sum(), points)
    return scores.detach(), (slopes * (end - begin)).sum(dim=-1)


def gap_of(total: float, difference: float) -> float:
    """Return how far a sum is from the difference that it should be, as a share of it."""
    return abs(total - difference) / abs(difference) if difference else float(total != 0)


# ---- from tokens to words ------------------------------------------------------------------------------------------


def places(tokenizer: Any, texts: Sequence[str], ids: Sequence[int]) -> list[Place | None] | None:
    """Return where each token of an input stands in its one or two texts; None for special tokens.

    Of each text the input holds a part without gaps. None where it holds something else.
    """
    read = tokenizer(*texts, truncation=False, return_offsets_mapping=True, verbose=False)
    whole, of = read["input_ids"], read.sequence_ids(0)
    offsets = read["offset_mapping"]
    bounds = [(of.index(part), len(of) - of[::-1].index(part)) if part in of else None for part in (0, 1)]
    (first, stop), (second, behind) = bounds[0] or (0, 0), bounds[1] or (len(of), len(of))
    between, after = whole[stop:second], whole[behind:]
    room = len(ids) - first - len(between) - len(after)
    for size in range(min(stop - first, room), max(0, room - (behind - second)) - 1, -1):
        at, rest = first + size + len(between), room - size
        head, tail = [*ids[first : first + size]], [*ids[at : at + rest]]
        if [*ids[:first], *ids[first + size : at], *ids[at + rest :]] != [*whole[:first], *between, *after]:
            continue
        begin, begin_second = _find(head, whole[first:stop]), _find(tail, whole[second:behind])
        if begin is not None and begin_second is not None:
            spans = [offsets[i : i + n] for i, n in ((first + begin, size), (second + begin_second, rest))]
            of_texts = [[(part, *span) for span in spans_of_text] for part, spans_of_text in enumerate(spans)]
            return [*[None] * first, *of_texts[0], *[None] * len(between), *of_texts[1], *[None] * len(after)]
    return None


def _find(part: list[int], whole: list[int]) -> int | None:
    """Return where the part begins: at the beginning, so that it ends at the end, or elsewhere."""
    last = len(whole) - len(part)
    starts = (i for i in (0, last, *range(1, last)) if 0 <= i <= last)
    return next((i for i in starts if whole[i : i + 1] == part[:1] and whole[i : i + len(part)] == part), None)


def to_words(
    texts: Sequence[str], where: Sequence[Place | None], scores: Sequence[float], segment: Any = SEGMENT
) -> list[Word]:
    """Join tokens to the words of `texts`, whose scores are the sums of theirs.

    No word ends inside a token, or inside what `segment` matches. A token of nothing but blanks belongs to the word
    behind it.
    """
    inside = [bytearray(len(text) + 1) for text in texts]  # whether the place before a character is inside a word
    for text, marks in zip(texts, inside, strict=True):
        for match in segment.finditer(text):
            marks[match.start() + 1 : match.end()] = b"\1" * (match.end() - match.start() - 1)
    found: dict[tuple[int, int], float] = {}
    tokens = []
    for place, score in zip(where, scores, strict=True):
        if place is not None:
            part, begin, end = place
            text = texts[part][begin:end]
            begin, end = end - len(text.lstrip()), begin + len(text.rstrip())
            tokens.append((part, begin, end, score))
            inside[part][begin + 1 : end] = b"\1" * (end - begin - 1)
    waiting = 0.0
    for part, begin, end, score in tokens:
        waiting += score
        if begin < end:
            while inside[part][begin]:
                begin -= 1
            found[part, begin] = found.get((part, begin), 0.0) + waiting
            waiting = 0.0
    if found:
        found[next(reversed(found))] += waiting
    words = []
    for (part, begin), score in sorted(found.items()):
        end = begin + 1
        while inside[part][end]:
            end += 1
        words.append(Word(texts[part][begin:end], score, part, begin, end))
    return words
