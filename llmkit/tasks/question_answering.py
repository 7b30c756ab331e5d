"""Extractive question answering: where in a text the answer to a question stands, or that it has none (SQuAD).

A long text is read in windows that overlap. The score of a span is the sum of two logits, that its first token begins
an answer and that its last ends one; the best span of all windows is the answer, unless the score of no answer is
higher (Rajpurkar et al. 2018, arXiv:1806.03822; the null score of Devlin et al. 2018, arXiv:1810.04805, section 4.3).
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from llmkit import metrics as measures
from llmkit.data.rows import answering
from llmkit.data.rows.answering import read_answers
from llmkit.data.rows.batches import Examples, models_own
from llmkit.data.rows.examples import Encoded, chunks, column_texts, key_of, located
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.language import WORDS, Units
from llmkit.recipe.data_tables import AnsweringData
from llmkit.tasks.task import Result, Results
from llmkit.tasks.trivial import Trivial, mean_rows

if TYPE_CHECKING:
    from llmkit.tasks import question_answering
    from llmkit.tasks.task import RowTask

    task: RowTask = question_answering

reader: RowReader = answering  # how its rows are read

# What this task does without (`tasks/task.py`).
collator = LONGEST_INPUT = prepare_model = None

METRICS = ("exact_match", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
STRIDE = 128  # as in Devlin et al. 2018; less where inputs are short
IMPOSSIBLE = -1e9  # the score of a token that is not in the context
NOWHERE, NO_ANSWER = -1, -2  # for `offset_start`: a token outside the context, and the one that stands for no answer
# Whether a character is a space, by its code; the last entry stands for all that follow, none of which is.
BLANK = np.array([chr(code).isspace() for code in range(0x3002)])


@dataclass(frozen=True)
class AnswerSettings:
    """How answers are found: the recipe's settings, and whether there may be none.

    `contexts` and `references` (the answers that count as right) are by row, for evaluation; `units` are those that
    answers are compared in.
    """

    n_best_size: int
    max_answer_length: int
    null_score_diff_threshold: float
    unanswerable: bool
    contexts: Sequence[str] = ()
    references: Sequence[Sequence[str]] = ()
    units: Units = WORDS


# ---- rows -> features ----------------------------------------------------------------------------------------------


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: AnsweringData, length: int) -> Encoded:
    """Tokenize every row into windows of at most `length` tokens: the question, and a part of the context.

    Beside the inputs of the model: `offset_start`, `offset_end`, where each token stands in the context, in characters
    and without the spaces around it (NOWHERE, or NO_ANSWER for one token of each window).
    Targets are (question, context, answers as (start, text)); an answer that has no place in its context, as some that
    are only compared with, begins at -1.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not give the character offsets of its tokens", "use one with a tokenizer.json"
        )
    # A question and what a window adds to the one before share what is left: no window repeats another.
    stride = data.stride if data.stride is not None else min(STRIDE, length // 4)
    longest = (length - tokenizer.num_special_tokens_to_add(pair=True) - stride) // 2
    if stride >= length // 2 or longest < 1:
        raise UserError(
            f"data.stride = {stride} leaves no room in inputs of {length} tokens",
            f"lower it, for example to {length // 3}" if length >= 16 else "raise data.max_length",
        )
    done = Encoded(rows)
    for chunk in chunks(rows.read()):
        questions = [text.strip() for text in column_texts(chunk, columns["question"])]
        contexts = column_texts(chunk, columns["context"])
        begins = len(done.targets)
        for i, (place, row) in enumerate(chunk):
            with located(place):
                answers = read_answers(row, columns, contexts[i]).found if "answers" in columns else []
            done.targets.append((questions[i], contexts[i], answers))
            done.keys.append(key_of(questions[i], contexts[i]))
            if not questions[i] or not contexts[i].strip():
                done.empty.append(begins + i)
        shortened, cut = _shortened(questions, tokenizer, longest)
        _add_windows(done, begins, shortened, contexts, tokenizer, stride, length)
        done.cut += cut
    return done.finish()


def _shortened(questions: list[str], tokenizer: Any, limit: int) -> tuple[list[str], list[int]]:
    """Questions cut to `limit` tokens, so that the context has room, and how many tokens each has lost."""
    read = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept, lost = [], []
    for text, offsets in zip(questions, read["offset_mapping"], strict=True):
        lost.append(max(0, len(offsets) - limit))
        # The bytes of one character may be several tokens: it goes as a whole.
        kept.append(text[: min(offsets[limit - 1][1], offsets[limit][0])] if lost[-1] else text)
    return kept, lost


def _add_windows(
    done: Encoded, begins: int, questions: list[str], contexts: list[str], tokenizer: Any, stride: int, length: int
) -> None:
    read = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        padding=False,
    )
    num_tokens = np.zeros(len(questions), np.int64)
    for window, row in enumerate(read["overflow_to_sample_mapping"]):
        if not num_tokens[row]:
            begin, stop = _trimming(contexts[row])
        of = read.sequence_ids(window)
        first, behind = (of.index(1), len(of) - of[::-1].index(1)) if 1 in of else (0, 0)
        starts, ends = np.full((2, len(of)), NOWHERE, np.int32)
        inside = np.array(read["offset_mapping"][window][first:behind], np.int32).reshape(-1, 2)
        starts[first:behind], ends[first:behind] = begin[inside[:, 0]], stop[inside[:, 1]]
        starts[starts >= ends] = NOWHERE  # a token of nothing but spaces: no answer begins or ends there
        none = _null_position(read["input_ids"][window], of, tokenizer)
        starts[none : none + 1] = NO_ANSWER  # of no tokens at all, none
        for name in read:
            if name not in ("offset_mapping", "overflow_to_sample_mapping"):
                done.add(name, read[name][window])
        done.add("offset_start", starts)
        done.add("offset_end", ends)
        done.row.append(begins + row)
        num_tokens[row] += len(of) if not num_tokens[row] else behind - first - stride
    done.lengths += num_tokens.tolist()


def _trimming(context: str) -> tuple[np.ndarray, np.ndarray]:
    """By character, [len + 1] each: where the first word at or behind it begins, where the last before it ends.

    Tokens of byte-level BPE and SentencePiece may hold the space before a word; an answer does not.
    """
    codes = np.frombuffer(context.encode("utf-32-le"), np.uint32)
    written = np.flatnonzero(~BLANK[np.minimum(codes, len(BLANK) - 1)])
    begin, stop = np.full(len(codes) + 1, len(codes)), np.zeros(len(codes) + 1, np.int64)
    begin[written], stop[written + 1] = written, written + 1
    return np.minimum.accumulate(begin[::-1])[::-1], np.maximum.accumulate(stop)


def _null_position(ids: list[int], of: list[int | None], tokenizer: Any) -> int:
    """The token that stands for no answer: CLS wherever the tokenizer puts it, else BOS, else the first of all.

    XLNet's CLS is the last token. T5 and GPT-2 add neither: there it is the first token of the question.
    """
    for special in (tokenizer.cls_token_id, tokenizer.bos_token_id):
        if special is not None:
            for position, token in enumerate(ids):
                if token == special and of[position] is None:
                    return position
    return 0


# ---- labels --------------------------------------------------------------------------------------------------------


def resolve_labels(
    data: AnsweringData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> AnswerSettings:
    """How answers are found: "no answer" is one of them if the recipe says so, or a question of the training data.

    The labels of every part are made here. Raises UserError where there is nothing to learn from.
    """
    parts = [*([train] if train is not None else []), *validation.values()]
    for part in parts:
        part.labels, unlearned = spans(part)
        part.unlearned = unlearned if part is train else []
    unanswerable = data.unanswerable
    if unanswerable is None:
        unanswerable = any(not answers for _, _, answers in parts[0].targets)
    if train is not None:
        answered = sum(bool(answers) for _, _, answers in train.targets)
        if len(train.unlearned) == answered:
            raise UserError(
                f"{train.source.source}: no question has an answer{' that fits in a window' * (answered > 0)}: "
                "nothing can be learned",
                "raise data.stride" if answered else "is it the right column?",
            )
    return AnswerSettings(data.n_best_size, data.max_answer_length, data.null_score_diff_threshold, unanswerable)


def spans(part: Encoded) -> tuple[np.ndarray, list[int]]:
    """First and last token of the first answer in each window, [W, 2] int64, and the rows of which no window holds it.

    The first answer is the first that has a place in the context.
    Where the answer does not stand in the window, or not the whole of it, both are the token for no answer.
    """
    starts, ends = part.inputs["offset_start"], part.inputs["offset_end"]
    positions = np.zeros((len(part.row), 2), np.int64)
    touched: dict[int, list[tuple[int, np.ndarray]]] = {}  # by row: the windows with a piece of the answer
    for window, row in enumerate(part.row):
        positions[window] = np.argmax(starts[window] == NO_ANSWER) if len(starts[window]) else 0
        for start, text in [answer for answer in part.targets[row][2] if answer[0] >= 0][:1]:
            pieces = np.flatnonzero(
                (starts[window] >= 0) & (starts[window] < start + len(text)) & (ends[window] > start)
            )
            if len(pieces):
                touched.setdefault(row, []).append((window, pieces))
    with_answer = set()
    for row, windows in touched.items():
        # Not the answer's own characters: a tokenizer may drop some of them, such as an accent at the end.
        first = min(starts[window][pieces[0]] for window, pieces in windows)
        last = max(ends[window][pieces[-1]] for window, pieces in windows)
        for window, pieces in windows:
            if starts[window][pieces[0]] == first and ends[window][pieces[-1]] == last:
                positions[window] = pieces[0], pieces[-1]
                with_answer.add(row)
    return positions, [row for row, (_, _, answers) in enumerate(part.targets) if answers and row not in with_answer]


def examples(encoded: Encoded, settings: AnswerSettings, evaluation: bool) -> Examples:
    """Return the windows as the model's inputs and labels.

    Nothing is learned from a row whose answer no window holds: that it has none would be a lie.
    """
    if evaluation:
        contexts = [context for _, context, _ in encoded.targets]
        references = [[text for _, text in answers] for _, _, answers in encoded.targets]
        return Examples(encoded, replace(settings, contexts=contexts, references=references), by_length=True)
    found = Examples(encoded, settings)
    true = ~np.isin(found.row, encoded.unlearned)
    found.order, found.lengths = found.order[true], found.lengths[true]
    return found


def references(part: Encoded) -> Iterator[str]:
    """Yield the answers that count as right."""
    return (text for _, _, answers in part.targets for _, text in answers)


def record(settings: AnswerSettings) -> dict[str, Any]:
    """Return what the run's record says for `predict`."""
    return {"unanswerable": settings.unanswerable}


def metric_names(settings: AnswerSettings) -> tuple[str, ...]:
    """Name the metrics that fit the data."""
    return METRICS if settings.unanswerable else METRICS[:2]


def label_counts(part: Encoded, settings: AnswerSettings) -> dict[str, Any]:
    """Count how many questions have an answer."""
    answered = sum(bool(answers) for _, _, answers in part.targets)
    return {"answerable": answered, "unanswerable": len(part.targets) - answered}


# ---- loss, predictions, metrics ------------------------------------------------------------------------------------


def losses(
    outputs: Any,
    batch: Mapping[str, torch.Tensor],
    settings: AnswerSettings,
    training: bool = False,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy (nats) of the first and of the last token over the window's own tokens, [B, 2].

    Upstream counts padding among the tokens, so that a loss depends on what else is in the batch.
    """
    padding = ~batch["attention_mask"].bool()[:, None, :]
    logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float()
    chances = logits.masked_fill(padding, -torch.inf).log_softmax(dim=2)
    right = chances.gather(2, batch["labels"][:, :, None]).squeeze(2)
    smoothing = label_smoothing if training else 0.0
    if not smoothing:
        return -right
    evenly = chances.masked_fill(padding, 0.0).sum(dim=2) / (~padding).sum(dim=2)
    return -(1 - smoothing) * right - smoothing * evenly


def preprocess_logits_for_metrics(
    model: Any, outputs: Any, batch: Mapping[str, torch.Tensor], settings: AnswerSettings
) -> torch.Tensor:
    """Return what an answer can be made of, [B, 2 + 3 n]: the example, the score of no answer, and its n best spans.

    n is `n_best_size`: the spans' scores, their first tokens, their last tokens; the best first, of two with one score
    the one that begins first, then the shorter. Where there are fewer, the tokens are -1. No span is overlooked: the
    n best begin at n starts at most, those whose best span is among the n best of such.
    """
    start, end = outputs.start_logits.float(), outputs.end_logits.float()
    inside = (batch["offset_start"] >= 0) & batch["attention_mask"].bool()
    none = (batch["offset_start"] == NO_ANSWER).int().argmax(dim=1, keepdim=True)
    null = start.gather(1, none) + end.gather(1, none)
    start, end = start.masked_fill(~inside, IMPOSSIBLE), end.masked_fill(~inside, IMPOSSIBLE)
    size, n, reach = start.shape[1], settings.n_best_size, min(settings.max_answer_length, start.shape[1])
    ends = F.pad(end, (0, reach - 1), value=IMPOSSIBLE).unfold(1, reach, 1)  # [B, T, reach], of each start: a view
    starts = (start + ends.amax(dim=2)).sort(dim=1, descending=True, stable=True).indices[:, : min(n, size)]
    starts = starts.sort(dim=1).values
    scores = start.gather(1, starts)[:, :, None] + ends[torch.arange(len(start), device=start.device)[:, None], starts]
    best = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    values, places = best.values[:, :n], best.indices[:, :n]
    first = starts.gather(1, places // reach)
    missing = (0, n - values.shape[1])
    parts = [batch["index"].float()[:, None], null, F.pad(values, missing, value=IMPOSSIBLE)]
    for tokens in (first, first + places % reach):
        parts.append(F.pad(tokens.float().masked_fill(values < IMPOSSIBLE / 2, -1), missing, value=-1.0))
    return torch.cat(parts, dim=1)


def label_spec_from_config(
    config: Any, record: Mapping[str, Any], data: AnsweringData, tokenizer: Any
) -> AnswerSettings:
    """Return how a finished model answers: as its run was set up; any other model may find no answer."""
    settings = (data.n_best_size, data.max_answer_length, data.null_score_diff_threshold)
    return AnswerSettings(*settings, bool(record.get("unanswerable", data.unanswerable is not False)))


def forward_for_predict(model: Any, batch: Mapping[str, torch.Tensor], settings: AnswerSettings) -> torch.Tensor:
    """Compute what `postprocess` needs of the model: what the metrics need."""
    return preprocess_logits_for_metrics(model, model(**models_own(batch)), batch, settings)


def postprocess(kept: np.ndarray, part: Examples, settings: AnswerSettings) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what `predict` says of it): the answer with its score and place, and the n best.

    No answer is the text "" without a place.
    """
    for row, best in ranked(kept, part, settings):
        first = best[0]
        yield (
            row,
            {
                "answer": first["text"],
                "score": first["score"],
                "start": first["start"],
                "end": first["end"],
                "n_best": best,
            },
        )


def ranked(kept: np.ndarray, part: Examples, reading: AnswerSettings) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(row, its best answers) for each row: `text`, `score` (their softmax), `start` and `end` in characters.

    The first answer is the one to give.
    """
    windows: dict[int, list[np.ndarray]] = {}
    for values in kept:
        windows.setdefault(int(part.row[int(values[0])]), []).append(values)
    for row in sorted(windows):
        context = part.extra.contexts[row]
        best: dict[tuple[int, int], float] = {}  # two windows that overlap may find the same answer
        for values in windows[row]:
            scores, firsts, lasts = values[2:].reshape(3, -1)
            real = firsts >= 0
            starts = part.inputs["offset_start"][int(values[0])][firsts[real].astype(int)]
            ends = part.inputs["offset_end"][int(values[0])][lasts[real].astype(int)]
            for score, start, end in zip(scores[real].tolist(), starts.tolist(), ends.tolist(), strict=True):
                place = start, _with_marks(context, end)
                best[place] = max(score, best.get(place, score))
        null = min(float(values[1]) for values in windows[row])  # as the window that is surest of an answer has it
        yield row, _ranked(best, null, reading, context)


def _with_marks(context: str, end: int) -> int:
    """`end`, or behind the accents on the last letter, which are tokens of their own or dropped by the tokenizer."""
    while end < len(context) and unicodedata.category(context[end]).startswith("M"):
        end += 1
    return end


def _ranked(
    best: Mapping[tuple[int, int], float], null: float, reading: AnswerSettings, context: str
) -> list[dict[str, Any]]:
    spans = sorted(((score, *place) for place, score in best.items()), key=lambda c: (-c[0], c[1], c[2]))
    spans = spans[: reading.n_best_size]
    none = not spans or null - spans[0][0] > reading.null_score_diff_threshold
    scores = np.array([score for score, _, _ in spans] + ([null] if reading.unanswerable or not spans else []))
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    candidates: list[dict[str, Any]] = [
        {"text": context[start:end], "score": round(float(share), 6), "start": start, "end": end}
        for (_, start, end), share in zip(spans, shares, strict=False)
    ]
    if len(scores) > len(spans):
        nothing = {"text": "", "score": round(float(shares[-1]), 6), "start": None, "end": None}
        behind = sum(score >= null for score in scores[:-1])  # the answers that score higher
        candidates.insert(0 if none else max(1, behind), nothing)
    return candidates


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Exact match and F1 in percent, by the rules of SQuAD or CMRC 2018, from what was kept of every window."""
    predictions, references = predictions_and_references(kept, part)
    return measures.squad(predictions, references, part.extra.units)


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[list[str], list[Sequence[str]]]:
    """Return the answer given to each question and those that count as right, by row."""
    reading: AnswerSettings = part.extra
    predictions = {row: best[0]["text"] for row, best in ranked(kept, part, reading)}
    return [predictions[row] for row in sorted(predictions)], [reading.references[row] for row in sorted(predictions)]


def results(kept: np.ndarray, part: Examples, columns: Mapping[str, str]) -> Results:
    """The answers that count as right and the one given, with its scores in percent; those without a right word first.

    Of a question that has no answer, "" is right.
    """
    reading: AnswerSettings = part.extra

    def result(row: int, answer: str, score: float) -> Result:
        references = reading.references[row]
        found = measures.squad([answer], [references], reading.units)
        said = {"truth": list(dict.fromkeys(references)), "prediction": answer, "score": score, **found}
        return Result(row, {**said, "right": found["exact_match"] == 100}, (-found["f1"], score))

    return Results(result(row, best[0]["text"], best[0]["score"]) for row, best in ranked(kept, part, reading))


def trivial_answer(train: Encoded, settings: AnswerSettings) -> dict[str, Any]:
    """No answer where there may be none, else the answer that most questions have."""
    if settings.unanswerable:
        return {"answer": ""}
    answers = [texts[0][1] for _, _, texts in train.targets if texts]
    counts = Counter(map(measures.normalize_answer, answers))
    return {"answer": max(answers, key=lambda answer: counts[measures.normalize_answer(answer)])}


def trivial(known: Mapping[str, Any], kept: np.ndarray, part: Examples) -> Trivial:
    """Always the same answer, or none."""
    predictions, references = predictions_and_references(kept, part)
    always = [known["answer"]] * len(predictions)
    units = part.extra.units
    model, trivially = (measures.answer_scores(side, references, units).T for side in (predictions, always))
    says = f'always "{known["answer"]}"' if known["answer"] else "no answer"
    decide = {name: (mean_rows(model[i]), mean_rows(trivially[i])) for i, name in enumerate(("exact_match", "f1"))}
    return Trivial(says, measures.squad(always, references, units), always, decide)
