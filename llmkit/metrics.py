"""Compute metrics of models with numpy."""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal, NamedTuple

import numpy as np
import regex

from llmkit.language import WORDS, Units, code

HAN = ("zh", "yue")  # languages in Chinese characters
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SPEEDS = ("_runtime", "_per_second", "_preparation_time")  # what Trainer logs of an evaluation beside its metrics


def evaluation_metrics(logs: Mapping[str, float]) -> dict[str, float]:
    """Select the metrics of an evaluation, `eval_...`, from what Trainer logs: its loss and the task's own."""
    return {key: value for key, value in logs.items() if key.startswith("eval_") and not key.endswith(SPEEDS)}


def gather(runs: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Gather the evaluation metrics of several runs: of each metric a list with a value a run."""
    gathered: dict[str, list[float]] = {}
    for metrics in runs:
        for key, value in evaluation_metrics(metrics).items():
            gathered.setdefault(key, []).append(value)
    return gathered


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


class ClassScores(NamedTuple):
    """Precision, recall and F1 of each class, their mean, those over all decisions; and how often each class is true.

    They are 0 where there is nothing to count.
    """

    of: dict[str, tuple[float, float, float]]
    mean: tuple[float, float, float]
    together: tuple[float, float, float]
    actual: dict[str, int]


def class_scores(counts: Mapping[tuple[str | None, str | None], int], classes: Sequence[str]) -> ClassScores:
    """Compute the scores of `classes` from how often each pair of a true and a predicted class (None: none) occurs."""
    actual, predicted = Counter[str | None](), Counter[str | None]()
    for (true, predicted_class), count in counts.items():
        actual[true] += count
        predicted[predicted_class] += count

    def scores(hits: int, predicted: int, actual: int) -> tuple[float, float, float]:
        return hits / max(predicted, 1), hits / max(actual, 1), 2 * hits / max(predicted + actual, 1)

    of = {name: scores(counts.get((name, name), 0), predicted[name], actual[name]) for name in classes}
    sums = (sum(each[name] for name in classes) for each in (predicted, actual))
    together = scores(sum(counts.get((name, name), 0) for name in classes), *sums)
    mean = tuple(np.mean(list(of.values()), axis=0).tolist()) if of else (0.0, 0.0, 0.0)
    return ClassScores(of, mean, together, {name: actual[name] for name in classes})


def most_confused(counts: Mapping[tuple[str | None, str | None], int], most: int) -> list[str]:
    """Return the classes, `most` at most, that are most often taken for one another, the most frequent first."""
    pairs = Counter({pair: count for pair, count in counts.items() if len({*pair} - {None}) == 2})
    return list(dict.fromkeys(str(name) for pair, _ in pairs.most_common() for name in pair))[:most]


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


# What CMRC's scorer leaves out. Its list has "……" too, which is no single character and so never left out.
CMRC_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# The characters that CMRC's scorer compares; of other languages, all that are written without blanks.
CMRC_CHARACTER = regex.compile("[\u4e00-\u9fa5]")
UNSPACED_CHARACTER = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


def cmrc_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Score 1 if the prediction is one of the answers but for case and punctuation, by the rules of CMRC 2018's scorer.

    Cui et al. 2019, arXiv:1810.07366. With no answers, "" is right.
    """
    return float(_bare(prediction) in map(_bare, answers or [""]))


def cmrc_f1(prediction: str, answers: Sequence[str], character: regex.Pattern[str] = CMRC_CHARACTER) -> float:
    """Compute the best F1, 0..1, of the prediction and an answer by the rules of CMRC 2018's scorer.

    What both have in common is their longest common run of units: each `character`, and between those the words and
    marks that nltk finds. As there, nothing in common is 0, also of two that are empty; with no answers, "" is right.
    """
    predicted = _cmrc_units(prediction, character)
    if not answers:
        return float(not predicted)
    best = 0.0
    for answer in answers:
        actual = _cmrc_units(answer, character)
        size = SequenceMatcher(None, predicted, actual, autojunk=False).find_longest_match().size
        best = max(best, 2 * size / max(len(predicted) + len(actual), 1))
    return best


def squad(predictions: Sequence[str], answers: Sequence[Sequence[str]], units: Units = WORDS) -> dict[str, float]:
    """Compute exact match and F1 in percent over all questions; nan for none.

    By words the rules are SQuAD's, by characters those of CMRC 2018. Where some questions have answers and some have
    none, also over each kind, under the names of SQuAD 2.0's scorer. As there, a question has an answer if any was
    given, whatever is left of it after normalization.
    """
    percent = answer_scores(predictions, answers, units)
    answerable = np.array([len(golds) > 0 for golds in answers], dtype=bool)
    kinds = {("exact_match", "f1"): np.ones_like(answerable)}
    if answerable.any() and not answerable.all():
        kinds |= {("HasAns_exact", "HasAns_f1"): answerable, ("NoAns_exact", "NoAns_f1"): ~answerable}
    return {
        name: float(column.mean()) if len(column) else math.nan
        for names, rows in kinds.items()
        for name, column in zip(names, percent[rows].T, strict=True)
    }


def answer_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]], units: Units) -> np.ndarray:
    """Compute exact match and F1 of each question in percent, [N, 2]: what `squad` is the mean of."""
    pairs = zip(predictions, answers, strict=True)
    if units.characters:
        character = CMRC_CHARACTER if code(units.language) in HAN else UNSPACED_CHARACTER
        scores = [(cmrc_exact_match(*pair), cmrc_f1(*pair, character)) for pair in pairs]
    else:
        scores = [(exact_match(*pair), answer_f1(*pair)) for pair in pairs]
    return 100 * np.array(scores).reshape(-1, 2)


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], units: Units = WORDS) -> dict[str, float]:
    """Compute ROUGE-1, -2, -L and -Lsum (Lin 2004): the mean F over all texts, 0..100, with the best reference of each.

    Uses Google's rouge_score with its stemmer, as is usual; it ignores all but the letters a to z and digits. Where
    most letters are of another script its words are runs of any letters and digits, and where texts are compared by
    characters each that is no blank counts, punctuation too. For rougeLsum, which compares sentence by sentence, a
    sentence ends with a line or with . ! ? before a blank; by characters also with 。！？ and the closing marks behind
    them: a rule applied to both sides, instead of the nltk model that others download.
    """
    scores = list(_rouge(predictions, references, units))
    return {kind: 100 * float(np.mean([score[kind] for score in scores])) for kind in ROUGE}


def rouge_by_text(
    predictions: Sequence[str], references: Sequence[Sequence[str]], units: Units = WORDS
) -> Iterator[dict[str, float]]:
    """Yield the scores of each text that `rouge` is the mean of."""
    for score in _rouge(predictions, references, units):
        yield {kind: 100 * value for kind, value in score.items()}


def _rouge(predictions: Sequence[str], references: Sequence[Sequence[str]], units: Units) -> Iterator[dict[str, float]]:
    """Yield the scores of each text, 0..1."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = Characters() if units.characters else None if units.latin else Words()
    scorer = RougeScorer(ROUGE, use_stemmer=True, tokenizer=tokenizer)
    for prediction, texts in zip(predictions, references, strict=True):
        score = scorer.score_multi(
            [_line_a_sentence(text, units) for text in texts], _line_a_sentence(prediction, units)
        )
        yield {kind: float(score[kind].fmeasure) for kind in ROUGE}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], units: Units = WORDS) -> float:
    """Compute BLEU of all texts together, 0..100, by sacrebleu with its defaults (Post 2018).

    Cased, tokenized as in WMT (13a); Chinese with its tokenizer `zh`, other text that is compared by characters with
    `char`.
    """
    import sacrebleu

    tokenize = "13a" if not units.characters else "zh" if code(units.language) in HAN else "char"
    return float(sacrebleu.corpus_bleu(predictions, _by_number(references), force=True, tokenize=tokenize).score)


def chrf(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Compute chrF2 of all texts together, 0..100, by sacrebleu with its defaults (Popovic 2015).

    It is an F-score of character n-grams.
    """
    import sacrebleu

    return float(sacrebleu.corpus_chrf(predictions, _by_number(references)).score)


def sentence_chrf(prediction: str, references: Sequence[str]) -> float:
    """Compute chrF2 of one text, 0..100, by sacrebleu with its defaults: the best of all references."""
    import sacrebleu

    return float(sacrebleu.sentence_chrf(prediction, list(references)).score)


class Characters:
    """Split text into characters, as a tokenizer of rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        """List the characters but for blanks, in lower case."""
        return list("".join(text.lower().split()))


class Words:
    """Split text into words of any script, as a tokenizer of rouge_score."""

    def tokenize(self, text: str) -> list[str]:
        """List the runs of letters and digits, in lower case."""
        words: list[str] = _WORD.findall(text.lower())
        return words


_WORD = regex.compile(r"[\w\p{M}]+")


def _line_a_sentence(text: str, units: Units) -> str:
    text = re.sub(r"(?<=[.!?])\s+", "\n", text)
    return re.sub("[。！？]+[”’」』）]*", r"\g<0>\n", text) if units.characters else text


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


def _bare(text: str) -> str:
    """Return a text in lower case and without CMRC's punctuation."""
    return text.lower().strip().translate(CMRC_PUNCTUATION)


def _cmrc_units(text: str, character: regex.Pattern[str]) -> list[str]:
    """List each `character` of a text, and between those its words and marks."""
    units: list[str] = []
    bare, begin = _bare(text), 0
    for unit in character.finditer(bare):
        units += [*_nltk_words(bare[begin : unit.start()]), unit.group()]
        begin = unit.end()
    return units + _nltk_words(bare[begin:])


def _nltk_words(text: str) -> list[str]:
    if not text.strip():
        return []
    from nltk.tokenize import word_tokenize

    return word_tokenize(text, preserve_line=True)  # what finds sentences first would be downloaded


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
            raise ValueError(f"{len(prediction)} tags are predicted, but the reference has {len(reference)}")
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
