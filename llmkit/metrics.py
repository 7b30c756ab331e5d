"""Compute metrics of models with numpy."""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

SPEEDS = ("_runtime", "_per_second", "_preparation_time")  # what Trainer logs of an evaluation beside its metrics


def evaluation_metrics(logs: Mapping[str, float]) -> dict[str, float]:
    """Select the metrics of an evaluation, `eval_...`, from what Trainer logs: its loss and the task's own."""
    return {key: value for key, value in logs.items() if key.startswith("eval_") and not key.endswith(SPEEDS)}


def mean_loss(sums: np.ndarray) -> float:
    """Compute the loss in nats a token from rows of (summed loss, number of tokens), [N, 2]; all tokens count alike."""
    total, count = sums.astype(np.float64).sum(axis=0)
    return float(total / count) if count else math.nan


def perplexity(loss: float) -> float:
    """Compute exp(loss), infinity where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """Convert a loss in nats a token to bits a UTF-8 byte of text, which is comparable between tokenizers."""
    return loss / math.log(2) * num_tokens / num_bytes


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Compute the share of right predictions from class numbers [N]; nan for none."""
    if _nothing_to_compare(predictions, references):
        return math.nan
    return float(np.mean(predictions == references))


def f1(
    predictions: np.ndarray, references: np.ndarray, average: Literal["binary", "macro", "micro"] = "binary"
) -> float:
    """Compute F1 from class numbers [N]; nan for none.

    `average` selects F1 of class 1 ("binary"), the mean of each class's F1 ("macro"), or F1 over all decisions
    ("micro", which is the accuracy where each row has one class). The classes are those that occur on either side, and
    a class 1 that occurs on neither scores 0, as in scikit-learn's f1_score(zero_division=0).
    """
    classes = np.array([1]) if average == "binary" else np.union1d(predictions, references)
    predicted, actual = predictions[..., None] == classes, references[..., None] == classes
    return multilabel_f1(predicted, actual, "micro" if average == "micro" else "macro")


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Compute the correlation of two class assignments [N], -1..1, for any number of classes.

    It is the R_K of Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004): 0
    where one side has a single class, as in scikit-learn's matthews_corrcoef, and nan for no rows.
    """
    if _nothing_to_compare(predictions, references):
        return math.nan
    num_rows = len(references)
    classes, codes = np.unique(np.concatenate((predictions, references)), return_inverse=True)
    predicted, actual = (np.bincount(side, minlength=len(classes)) for side in np.split(codes, 2))
    covariance = int((predictions == references).sum()) * num_rows - int(predicted @ actual)
    variances = (num_rows**2 - int(predicted @ predicted)) * (num_rows**2 - int(actual @ actual))
    return covariance / math.sqrt(variances) if variances else 0.0  # Python's integers: N**4 does not fit in 64 bits


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the linear correlation of two series [N], -1..1; nan where one is constant, empty or not finite."""
    if _nothing_to_compare(x, y):
        return math.nan
    return float(np.clip(_unit_deviation(x) @ _unit_deviation(y), -1.0, 1.0))


def spearmanr(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the correlation of the ranks of two series [N], -1..1, ties sharing the mean of their ranks.

    It is nan where one is constant, empty or has a nan.
    """
    return pearson(_ranks(x), _ranks(y))


@np.errstate(invalid="ignore", over="ignore")  # what is not finite in, is not finite out: no word needed
def mean_squared_error(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the mean squared difference of two series [N], in double precision; nan for none."""
    if _nothing_to_compare(x, y):
        return math.nan
    return float(np.mean((x.astype(np.float64) - y.astype(np.float64)) ** 2))


def multilabel_f1(predictions: np.ndarray, references: np.ndarray, average: Literal["micro", "macro"]) -> float:
    """Compute F1 over all decisions ("micro") or the mean of each label's F1 ("macro"), from bool [N, C].

    It is nan for no rows. A label that occurs on neither side scores 0, as in scikit-learn's
    f1_score(zero_division=0).
    """
    if _nothing_to_compare(predictions, references):
        return math.nan
    hits = (predictions & references).sum(axis=0)
    marks = predictions.sum(axis=0) + references.sum(axis=0)
    if average == "micro":
        hits, marks = hits.sum(), marks.sum()
    return float(np.mean(2 * hits / np.maximum(marks, 1)))  # without a mark there is no hit either: 0 / 1


def subset_accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Compute the share of rows with every label right, from bool [N, C]; nan for no rows."""
    if _nothing_to_compare(predictions, references):
        return math.nan
    return float(np.mean((predictions == references).all(axis=1)))


def normalize_answer(text: str) -> str:
    """Normalize an answer as SQuAD's scorers do.

    Lower case, without ASCII punctuation, then without the words a, an and the, with one space between words. Removing
    punctuation joins what it separated ("U.S." becomes "us"), as there.
    """
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", text).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Score 1 if the prediction is one of the answers, both normalized, else 0; with no answers, "" is right."""
    return float(normalize_answer(prediction) in _normalized_answers(answers))


def answer_f1(prediction: str, answers: Sequence[str]) -> float:
    """Compute the best F1, 0..1, between the words of the prediction and of an answer, both normalized.

    With no answers, "" is right. Nothing against nothing scores 1, as in SQuAD 2.0's scorer; in 1.1's it is 0 (an
    answer such as "The").
    """
    predicted = normalize_answer(prediction).split()
    return max(_word_f1(predicted, answer.split()) for answer in _normalized_answers(answers))


def squad(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute exact match and F1 in percent over all questions; nan for none.

    Where some questions have answers and some have none, also over each kind, under the names of SQuAD 2.0's scorer. As
    there, a question has an answer if any was given, whatever is left of it after normalization.
    """
    scores = [(exact_match(*pair), answer_f1(*pair)) for pair in zip(predictions, answers, strict=True)]
    answerable = np.array([len(golds) > 0 for golds in answers], dtype=bool)
    kinds = {("exact_match", "f1"): np.ones_like(answerable)}
    if answerable.any() and not answerable.all():
        kinds |= {("HasAns_exact", "HasAns_f1"): answerable, ("NoAns_exact", "NoAns_f1"): ~answerable}
    percent = 100 * np.array(scores).reshape(-1, 2)
    return {
        name: float(column.mean()) if len(column) else math.nan
        for names, rows in kinds.items()
        for name, column in zip(names, percent[rows].T, strict=True)
    }


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute ROUGE-1, -2, -L and -Lsum (Lin 2004): the mean F over all texts, 0..100, with the best reference of each.

    Uses Google's rouge_score with its stemmer, as is usual; it ignores all but the letters a to z and digits. For
    rougeLsum, which compares sentence by sentence, a sentence ends with a line or with . ! ? before a blank: a rule
    applied to both sides, instead of the nltk model that others download.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [
        scorer.score_multi([_line_a_sentence(text) for text in texts], _line_a_sentence(prediction))
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    return {kind: 100 * float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute BLEU of all texts together, 0..100, by sacrebleu with its defaults (Post 2018).

    Cased, tokenized as in WMT (13a), which does not split words in a script without spaces.
    """
    import sacrebleu

    return float(sacrebleu.corpus_bleu(predictions, _by_number(references), force=True).score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute chrF2 of all texts together, 0..100, by sacrebleu with its defaults (Popovic 2015).

    It is an F-score of character n-grams.
    """
    import sacrebleu

    return float(sacrebleu.corpus_chrf(predictions, _by_number(references)).score)


def _line_a_sentence(text: str) -> str:
    return re.sub(r"(?<=[.!?])\s+", "\n", text)


def _by_number(references: Sequence[Sequence[str]]) -> list[list[Any]]:
    """Transpose references as sacrebleu takes them: the first of every text, then the second, and so on.

    None stands where a text has fewer.
    """
    most = max(len(texts) for texts in references)
    return [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]


def _nothing_to_compare(predictions: np.ndarray, references: np.ndarray) -> bool:
    """Whether both are empty; raise ValueError for unequal shapes: [N, 1] and [N] would be broadcast to [N, N]."""
    if predictions.shape != references.shape:
        raise ValueError(f"predictions have the shape {predictions.shape}, references {references.shape}")
    return not references.size


@np.errstate(invalid="ignore", over="ignore")  # a constant becomes 0 / 0, and that nan is the answer
def _unit_deviation(x: np.ndarray) -> np.ndarray:
    """Center x [N] and scale it to length 1; nan where x is constant or not finite."""
    x = x.astype(np.float64)
    x = x / np.abs(x).max()  # no square overflows, and a constant is ones, whose mean is exact as that of 0.1s is not
    x = x - x.mean()
    return x / np.linalg.norm(x)


def _ranks(x: np.ndarray) -> np.ndarray:
    """Rank values [N] from 1, ties sharing the mean of their ranks; nan for nan."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return np.where(np.isnan(x), math.nan, ranks[inverse])


def _normalized_answers(answers: Sequence[str]) -> list[str]:
    """Normalize answers and drop the empty ones; if none is left, return "" alone, as SQuAD 2.0's scorer does."""
    return [answer for answer in map(normalize_answer, answers) if answer] or [""]


def _word_f1(predicted: list[str], answer: list[str]) -> float:
    """Compute F1 of two lists of words, counting a word as often as both have it; 1 for two empty lists."""
    if not predicted and not answer:
        return 1.0
    common = sum(min(predicted.count(word), answer.count(word)) for word in set(answer))
    return 2 * common / (len(predicted) + len(answer))


# ---- entities ------------------------------------------------------------------------------------------------------

# The letters before the type of an entity; BMES and BILOU write M, L and U for I, E and S.
PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """List the entities that the tags of one text mark, as (type, first word, last word).

    The tags may be IOB1, IOB2, BMES, BIOES or BILOU; the rules are those of CoNLL's conlleval, as in seqeval's default
    mode, where no tag is an error. An entity continues where B or I is followed by I or E of its type, and any other
    tag but O begins one. The type of a letter alone is "_"; a tag without such a letter is outside.
    """
    spans: list[tuple[str, int, int]] = []
    previous_prefix = previous_kind = ""
    for word, tag in enumerate(tags):
        prefix = PREFIXES.get(tag[:1], "") if tag[1:2] in ("", "-") else ""
        kind = tag[2:] or "_"
        if prefix in ("I", "E") and previous_prefix in ("B", "I") and kind == previous_kind:
            spans[-1] = (kind, spans[-1][1], word)
        elif prefix:
            spans.append((kind, word, word))
        previous_prefix, previous_kind = prefix, kind
    return spans


def entity_scores(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `precision`, `recall` and `f1` over the entities of all texts, and F1 of each type (`f1_PER`), from tags.

    An entity is right where its type, first and last word are; a metric with nothing to count is 0.
    """
    predicted, actual, right = Counter[str](), Counter[str](), Counter[str]()
    for prediction, reference in zip(predictions, references, strict=True):
        if len(prediction) != len(reference):
            raise ValueError(f"{len(prediction)} tags are predicted where the reference has {len(reference)}")
        predicted_entities, actual_entities = set(entities(prediction)), set(entities(reference))
        for counts, side in (
            (predicted, predicted_entities),
            (actual, actual_entities),
            (right, predicted_entities & actual_entities),
        ):
            counts.update(kind for kind, _, _ in side)
    hits, num_predicted, num_actual = right.total(), predicted.total(), actual.total()
    return {
        "precision": hits / max(num_predicted, 1),
        "recall": hits / max(num_actual, 1),
        "f1": 2 * hits / max(num_predicted + num_actual, 1),
        **{f"f1_{kind}": 2 * right[kind] / count for kind, count in sorted((predicted + actual).items())},
    }
