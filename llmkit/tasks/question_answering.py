"""Extractive question answering: where in a text the answer to a question stands, or that it has none (SQuAD).

A long text is read in windows that overlap; each window names its best starts and ends, and the best pair of all
windows is the answer, unless the score of no answer is higher (Rajpurkar et al. 2018, arXiv:1806.03822; the null score
of Devlin et al. 2018, section 4.3).
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForQuestionAnswering

from llmkit import metrics as measures
from llmkit.data.examples import Encoded, Examples, chunks, key_of, refuse
from llmkit.data.files import text_of
from llmkit.data.table import Rows
from llmkit.errors import UserError
from llmkit.recipe.schema import AnsweringData

MODEL_CLASS = AutoModelForQuestionAnswering
PEFT_TYPE = "QUESTION_ANS"
PIPELINE = "question-answering"
METRICS = ("exact_match", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
ANSWERS = ("answers", "answer")
IMPOSSIBLE = -1e9  # the score of a token that is not in the context


@dataclass(frozen=True)
class Reading:
    """How answers are found: the recipe's settings, and whether there may be none.

    `contexts` and `references` (the answers that count as right) are by row, for evaluation.
    """

    n_best_size: int
    max_answer_length: int
    null_score_diff_threshold: float
    unanswerable: bool
    contexts: Sequence[str] = ()
    references: Sequence[Sequence[str]] = ()


# ---- rows -> features ----------------------------------------------------------------------------------------------


def layout(data: AnsweringData, rows: Rows, labelled: bool = True) -> dict[str, str]:
    """Which column is the `question`, the `context` and the `answers`; UserError where one is missing."""
    found = {"question": data.question_column, "context": data.context_column}
    if labelled:
        named = [data.answers_column] if data.answers_column else [name for name in ANSWERS if name in rows.columns]
        found["answers"] = named[0] if named else ANSWERS[0]
    for role, name in found.items():
        if name not in rows.columns:
            raise UserError(
                f"{rows.source} has no column `{name}`",
                f"set data.{role}_column to one of: {', '.join(rows.columns)}",
            )
    return found


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: AnsweringData, length: int) -> Encoded:
    """Tokenize every row into windows of at most `length` tokens: the question, and a part of the context.

    Beside the inputs of the model: `offset_start`, `offset_end`, where each token stands in the context (-1: nowhere).
    Targets are (question, context, answers as (start, text)); every answer is looked up in its context.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not say where its tokens stand in the text", "use one with a tokenizer.json"
        )
    if data.stride >= length // 2:
        raise UserError(f"data.stride = {data.stride} leaves no room in inputs of {length} tokens", "lower it")
    done = Encoded(rows)
    mistakes: dict[int, str] = {}
    for chunk in chunks(rows.read()):
        questions = [text_of(row, columns["question"], place).strip() for place, row in chunk]
        contexts = [text_of(row, columns["context"], place) for place, row in chunk]
        begins = len(done.targets)
        for i, (place, row) in enumerate(chunk):
            found: list[tuple[int, str]] = []
            if "answers" in columns:
                if columns["answers"] not in row:
                    raise UserError(f"{place}: no `{columns['answers']}`; the row has {', '.join(row)}")
                try:
                    found = read_answers(row[columns["answers"]], contexts[i])
                except ValueError as mistake:
                    mistakes[begins + i] = str(mistake)
            done.targets.append((questions[i], contexts[i], found))
            done.keys.append(key_of(questions[i], contexts[i]))
            if not questions[i] or not contexts[i].strip():
                done.empty.append(begins + i)
        _add_windows(
            done, begins, _shortened(questions, tokenizer, length // 2), contexts, tokenizer, data.stride, length
        )
    refuse(
        rows,
        mistakes,
        "whose answer cannot be used",
        "an answer is a piece of its context, with the character it starts at",
    )
    return done.finish()


def _shortened(questions: list[str], tokenizer: Any, limit: int) -> list[str]:
    """Questions cut to `limit` tokens, so that the context has room."""
    read = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        text if len(offsets) <= limit else text[: offsets[limit - 1][1]]
        for text, offsets in zip(questions, read["offset_mapping"], strict=True)
    ]


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
        offsets = np.array(read["offset_mapping"][window], np.int32).reshape(-1, 2)
        of = read.sequence_ids(window)
        inside = np.zeros(len(of), bool)
        if 1 in of:
            inside[of.index(1) : len(of) - of[::-1].index(1)] = True
        offsets[~inside] = -1
        for name in read:
            if name not in ("offset_mapping", "overflow_to_sample_mapping"):
                done.add(name, read[name][window])
        done.add("offset_start", offsets[:, 0])
        done.add("offset_end", offsets[:, 1])
        done.row.append(begins + row)
        num_tokens[row] += len(of) if not num_tokens[row] else max(0, int(inside.sum()) - stride)
    done.lengths += num_tokens.tolist()
    done.cut += [0] * len(questions)


def read_answers(value: Any, context: str) -> list[tuple[int, str]]:
    """(start, text) of each answer: the Hub's table of lists, SQuAD's list of tables, or the text alone.

    ValueError for one that does not stand in the context, or not where it says.
    """
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):  # a CSV's cell
        with suppress(ValueError):
            value = json.loads(value)
    if value is None or value == "":
        return []
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError("answers are a table of `text` and `answer_start`, two lists of one length")
        pairs = list(zip(starts, texts, strict=True))
    else:
        pairs = [(a.get("answer_start"), a.get("text")) if isinstance(a, Mapping) else (None, a) for a in value]
    return [_located(start, text, context) for start, text in pairs]


def _located(start: Any, text: Any, context: str) -> tuple[int, str]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"the answer {text!r} is no text")
    shown = text if len(text) <= 40 else text[:37] + "..."
    at = context.find(text)
    if at < 0:
        raise ValueError(f'the answer "{shown}" is not in its context')
    if start is None:
        return at, text
    if not isinstance(start, int) or context[start : start + len(text)] != text or start < 0:
        raise ValueError(f'the answer "{shown}" does not stand at character {start} of its context, but at {at}')
    return start, text


# ---- labels --------------------------------------------------------------------------------------------------------


def settle(
    data: AnsweringData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> Reading:
    """How answers are found: "no answer" is one of them if a question of the training data has none."""
    parts = [*([train] if train is not None else []), *validation.values()]
    for part in parts:
        part.labels = spans(part, learn=part is train)
    if train is not None and not any(answers for _, _, answers in train.targets):
        raise UserError(f"{train.source.source}: no question has an answer: nothing can be learned")
    unanswerable = any(not answers for part in parts[:1] for _, _, answers in part.targets)
    return Reading(data.n_best_size, data.max_answer_length, data.null_score_diff_threshold, unanswerable)


def spans(part: Encoded, learn: bool) -> np.ndarray:
    """First and last token of the first answer in each window, [W, 2] int64; both 0 where it does not stand there."""
    found = np.zeros((len(part.row), 2), np.int64)
    held = np.zeros(len(part.targets), bool)
    for window, row in enumerate(part.row):
        answers = part.targets[row][2]
        if not answers:
            continue
        start, text = answers[0]
        end = start + len(text)
        starts, ends = part.inputs["offset_start"][window], part.inputs["offset_end"][window]
        inside = np.flatnonzero(starts >= 0)
        if not len(inside) or starts[inside[0]] > start or ends[inside[-1]] < end:
            continue
        first = inside[max(0, np.searchsorted(starts[inside], start, side="right") - 1)]
        last = inside[min(len(inside) - 1, np.searchsorted(ends[inside], end, side="left"))]
        found[window] = first, max(first, last)
        held[row] = True
    if learn:
        part.unlearned = [row for row, (_, _, answers) in enumerate(part.targets) if answers and not held[row]]
    return found


def examples(encoded: Encoded, known: Reading, evaluation: bool) -> Examples:
    """The windows as the model's inputs and labels."""
    if evaluation:
        contexts = [context for _, context, _ in encoded.targets]
        references = [[text for _, text in answers] for _, _, answers in encoded.targets]
        known = replace(known, contexts=contexts, references=references)
    return Examples(encoded, known, by_length=evaluation)


def described(known: Reading) -> dict[str, Any]:
    """What the run's record says for `predict`."""
    return {"unanswerable": known.unanswerable}


def available(known: Reading) -> tuple[str, ...]:
    """The metrics that fit the data."""
    return METRICS if known.unanswerable else METRICS[:2]


def balance(part: Encoded, known: Reading) -> dict[str, Any]:
    """How many questions have an answer."""
    answered = sum(bool(answers) for _, _, answers in part.targets)
    return {"answerable": answered, "unanswerable": len(part.targets) - answered}


# ---- loss, predictions, metrics ------------------------------------------------------------------------------------


def losses(
    outputs: Any, labels: torch.Tensor, known: Reading, training: bool = False, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy (nats) of the first and of the last token over the window's tokens, [B, 2]."""
    logits = torch.stack([outputs.start_logits, outputs.end_logits], dim=1).float()
    smoothing = label_smoothing if training else 0.0
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing).view(
        -1, 2
    )


def keep(outputs: Any, batch: Mapping[str, torch.Tensor], known: Reading) -> torch.Tensor:
    """What an answer can be made of, [B, 2 + 4 n]: the example, the null score, and the n best starts and ends.

    n is `n_best_size`: positions of starts, their logits, positions of ends, their logits; fewer are filled up with -1.
    """
    inside = batch["offset_start"] >= 0
    start, end = outputs.start_logits.float(), outputs.end_logits.float()
    n = known.n_best_size
    parts = [batch["index"].float()[:, None], (start[:, 0] + end[:, 0])[:, None]]
    for logits in (start, end):
        best = logits.masked_fill(~inside, IMPOSSIBLE).topk(min(n, logits.shape[1]), dim=1)
        positions = best.indices.float().masked_fill(best.values <= IMPOSSIBLE, -1)
        missing = n - positions.shape[1]
        parts += [F.pad(positions, (0, missing), value=-1.0), F.pad(best.values, (0, missing), value=IMPOSSIBLE)]
    return torch.cat(parts, dim=1)


def reading_of(config: Any, record: Mapping[str, Any], data: AnsweringData) -> Reading:
    """How a finished model answers: as its run was set up; any other model may find no answer."""
    settings = (data.n_best_size, data.max_answer_length, data.null_score_diff_threshold)
    return Reading(*settings, bool(record.get("unanswerable", True)))


def outline(outputs: Any, batch: Mapping[str, torch.Tensor], known: Reading) -> torch.Tensor:
    """What `decode` needs of the outputs: what `keep` keeps."""
    return keep(outputs, batch, known)


def decode(kept: np.ndarray, part: Examples, known: Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what `predict` says of it): the answer with its score and place, and the n best.

    No answer is the text "" without a place.
    """
    for row, best in ranked(kept, part, known):
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


def ranked(kept: np.ndarray, part: Examples, reading: Reading) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(row, its best answers) for each row: `text`, `score` (their softmax), `start` and `end` in characters.

    The first answer is the one to give.
    """
    n = reading.n_best_size
    windows: dict[int, list[np.ndarray]] = {}
    for values in kept:
        windows.setdefault(int(part.row[int(values[0])]), []).append(values)
    for row in sorted(windows):
        candidates: list[tuple[float, int, int]] = []
        for values in windows[row]:
            index = int(values[0])
            starts, ends = part.inputs["offset_start"][index], part.inputs["offset_end"][index]
            firsts, first_scores = values[2 : 2 + n].astype(int), values[2 + n : 2 + 2 * n]
            lasts, last_scores = values[2 + 2 * n : 2 + 3 * n].astype(int), values[2 + 3 * n :]
            length = lasts[None, :] - firsts[:, None] + 1
            fits = (
                (firsts[:, None] >= 0) & (lasts[None, :] >= 0) & (length >= 1) & (length <= reading.max_answer_length)
            )
            scores = first_scores[:, None].astype(np.float64) + last_scores[None, :]
            a, b = np.nonzero(fits)
            order = np.argsort(-scores[a, b], kind="stable")[:n]
            candidates += [
                (float(scores[a[i], b[i]]), int(starts[firsts[a[i]]]), int(ends[lasts[b[i]]])) for i in order
            ]
        null = min(float(values[1]) for values in windows[row])  # as the window that is surest of an answer has it
        yield row, _ranked(candidates, null, reading, part.extra.contexts[row])


def _ranked(
    candidates: list[tuple[float, int, int]], null: float, reading: Reading, context: str
) -> list[dict[str, Any]]:
    best: dict[tuple[int, int], float] = {}  # two windows that overlap may find the same answer
    for score, start, end in candidates:
        best[start, end] = max(score, best.get((start, end), score))
    spans = sorted(((score, *place) for place, score in best.items()), key=lambda c: (-c[0], c[1], c[2]))
    spans = spans[: reading.n_best_size]
    none = not spans or (reading.unanswerable and null - spans[0][0] > reading.null_score_diff_threshold)
    scores = np.array([score for score, _, _ in spans] + ([null] if reading.unanswerable or not spans else []))
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    found: list[dict[str, Any]] = [
        {"text": context[start:end], "score": round(float(share), 6), "start": start, "end": end}
        for (_, start, end), share in zip(spans, shares, strict=False)
    ]
    if len(scores) > len(spans):
        nothing = {"text": "", "score": round(float(shares[-1]), 6), "start": None, "end": None}
        behind = sum(score >= null for score in scores[:-1])  # the answers that score higher
        found.insert(0 if none else max(1, behind), nothing)
    return found


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Exact match and F1 in percent, by the official rules, from what `keep` kept of every window."""
    found, references = predictions_and_references(kept, part)
    return measures.squad(found, references)


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[list[str], list[Sequence[str]]]:
    """The answer given to each question and those that count as right, by row."""
    reading: Reading = part.extra
    found = {row: best[0]["text"] for row, best in ranked(kept, part, reading)}
    return [found[row] for row in sorted(found)], [reading.references[row] for row in sorted(found)]
