"""Writing a text from another one, such as its summary or its translation, with an encoder-decoder (T5, BART, Marian).

Evaluation writes as `llmkit predict` does, with the model's generation settings, and compares what it wrote with the
whole references, cut off or not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from llmkit import metrics as measures
from llmkit.data.rows import batches, pairs
from llmkit.data.rows.batches import Examples
from llmkit.data.rows.examples import Encoded, beginning, chunks, key_of, located
from llmkit.data.rows.pairs import references_in, texts_in
from llmkit.data.rows.reader import RowReader
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.language import WORDS, Units
from llmkit.models.config import positions
from llmkit.recipe.data_tables import PairData
from llmkit.tasks.task import Result, Results
from llmkit.tasks.trivial import Trivial, mean_rows, sample

if TYPE_CHECKING:
    from llmkit.tasks import seq2seq
    from llmkit.tasks.task import RowTask

    task: RowTask = seq2seq

reader: RowReader = pairs  # how its rows are read

# What this task does without (`tasks/task.py`).
LONGEST_INPUT = losses = None

METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "generated_tokens")
SCORED = 1000  # texts that are scored one by one
NOTHING = -1  # fills what was written up to the common width; no token has this number


@dataclass(frozen=True)
class GenerationSettings:
    """How texts are written: in what tokens, and how many of them where the model's generation settings do not say.

    `begin` are further settings, by which a model of many languages begins with the one to translate into.
    `prefix` stands before every source. `references` are the texts that count as right, by row, for evaluation;
    `units` those that they are compared in.
    """

    tokenizer: Any
    max_target_length: int
    begin: Mapping[str, int]
    prefix: str = ""
    references: Sequence[Sequence[str]] = ()
    units: Units = WORDS


# ---- rows -> features ----------------------------------------------------------------------------------------------


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: PairData, length: int) -> Encoded:
    """Tokenize every row: the source, behind its prefix, cut to `length` tokens; the target to `max_target_length`.

    Both keep their end-of-sequence token. Of a list, a source is all the texts in it, with a blank between them; of a
    target the first text that is not empty is learned and all are references. `targets` are the references with the
    target's length.
    """
    set_languages(tokenizer, data)
    target = columns.get("target")
    if target and tokenizer.eos_token_id not in (None, *tokenizer(text_target="a")["input_ids"]):
        raise UserError(
            "the tokenizer adds no end-of-sequence token to a text: the model would not learn to stop",
            "use that of an encoder-decoder (tokenizer.name), or train one (tokenizer.type)",
        )
    done = Encoded(rows, tokenizer=tokenizer)
    for chunk in chunks(rows.read()):
        sources, references = [], []
        for place, row in chunk:
            with located(place):
                sources.append(" ".join(texts_in(row, columns["source"])))
                references.append(references_in(row, target) if target else [])
        read, lengths = _tokenized(tokenizer, "text", [data.source_prefix + text for text in sources], length)
        for text, ids, size in zip(sources, read, lengths, strict=True):
            number = len(done.keys)
            done.add("input_ids", ids)
            done.row.append(number)
            done.lengths.append(size)
            done.cut.append(max(0, size - length))
            done.keys.append(key_of(text))
            if not text.strip():
                done.empty.append(number)
        if target is None:
            continue
        first = [texts[0] for texts in references]
        written, sizes = _tokenized(tokenizer, "text_target", first, data.max_target_length)
        for texts, ids, size in zip(references, written, sizes, strict=True):
            done.add("labels", ids)
            done.targets.append((texts, size))
    return done.finish()


def _tokenized(tokenizer: Any, side: str, texts: list[str], length: int) -> tuple[list[list[int]], list[int]]:
    """The tokens of each text, `length` at most, and how many there were; `side` is the name that the tokenizer takes
    the texts by: some read and write in different vocabularies.
    """
    texts = [beginning(text, length) for text in texts]
    options: dict[str, Any] = {"padding": False, "return_attention_mask": False, "verbose": False}
    ids = tokenizer(**{side: texts}, truncation=False, **options)["input_ids"]
    lengths = [len(each) for each in ids]
    long = [i for i, size in enumerate(lengths) if size > length]
    if long:
        shorter = tokenizer(**{side: [texts[i] for i in long]}, truncation=True, max_length=length, **options)
        for i, each in zip(long, shorter["input_ids"], strict=True):
            ids[i] = each
    return ids, lengths


def set_languages(tokenizer: Any, data: PairData) -> dict[str, int]:
    """Tell a tokenizer of many languages (mBART, M2M100, NLLB) which two are meant.

    Returns the settings by which generation begins with the second one. A tokenizer that says `de_DE` is content
    with `de` where no other code begins so.
    """
    if not hasattr(tokenizer, "set_tgt_lang_special_tokens"):
        return {}
    codes = list(getattr(tokenizer, "lang_code_to_id", None) or tokenizer.all_special_tokens)
    for key, attribute in (("source_lang", "src_lang"), ("target_lang", "tgt_lang")):
        language = getattr(data, key) or getattr(tokenizer, attribute)
        matches = [code for code in codes if code == language] or [
            c for c in codes if language and c.startswith(f"{language}_")
        ]
        if len(matches) != 1:
            problem = f"the tokenizer knows no language `{language}`" if language else "the tokenizer needs it"
            raise UserError(
                f"data.{key}: {problem}",
                f"it has codes such as {', '.join(codes[-3:])}; data.{key.split('_')[0]}_column names the column",
            )
        setattr(tokenizer, attribute, matches[0])
    frame = tokenizer(text_target="")["input_ids"]
    if frame[-1] != tokenizer.eos_token_id:  # the first mBART: the decoder starts with the language
        return {"decoder_start_token_id": frame[-1]}
    return {} if frame[0] == tokenizer.eos_token_id else {"forced_bos_token_id": frame[0]}


def collator(tokenizer: Any, config: Any, multiple: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Examples -> `input_ids` [B, S], `labels` [B, T] padded with -100, and the labels shifted to be the decoder's
    inputs: at each position the token before it, at the first the one that the architecture starts with.
    """
    pad_inputs = batches.collator(tokenizer, multiple)
    start = getattr(config, "decoder_start_token_id", None)
    start = tokenizer.pad_token_id if start is None else start

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad_inputs([{name: each[name] for name in each if name != "labels"} for each in examples])
        if "labels" not in examples[0]:
            return batch
        longest = max(len(each["labels"]) for each in examples)
        longest = -(-longest // multiple) * multiple
        labels = np.full((len(examples), longest), -100, np.int64)
        inputs = np.full((len(examples), longest), tokenizer.pad_token_id, np.int64)
        for b, each in enumerate(examples):
            labels[b, : len(each["labels"])] = each["labels"]
            inputs[b, 1 : len(each["labels"])] = each["labels"][:-1]
            # As in transformers' modeling_mbart.py: the last token, a language's, is what the decoder starts with.
            inputs[b, 0] = each["labels"][-1] if config.model_type == "mbart" else start
        return {**batch, "labels": torch.from_numpy(labels), "decoder_input_ids": torch.from_numpy(inputs)}

    return collate


# ---- labels --------------------------------------------------------------------------------------------------------


def resolve_labels(
    data: PairData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> GenerationSettings:
    """How texts are written; raises UserError where the model has no room for the targets, or cannot write at all."""
    layers = getattr(config, "num_decoder_layers", None)
    if layers is not None and layers > config.num_hidden_layers:  # the cache has as many as the encoder (5.23)
        raise UserError(
            f"transformers cannot generate with {layers} decoder layers and {config.num_hidden_layers} encoder layers "
            f"in a {type(config).__name__.removesuffix('Config')}",
            "set model.config.num_decoder_layers to the number of encoder layers or less",
        )
    limit = positions(config)
    if limit is not None and data.max_target_length > limit:
        raise UserError(
            f"data.max_target_length = {data.max_target_length} is more than the {limit} positions of the model",
            "lower data.max_target_length",
        )
    part = train if train is not None else next(iter(validation.values()))
    return label_spec_from_config(config, {}, data, part.tokenizer)


def examples(encoded: Encoded, settings: GenerationSettings, evaluation: bool) -> Examples:
    """Return the rows as the model's inputs and labels."""
    if not evaluation:
        return Examples(encoded, settings)
    return Examples(encoded, replace(settings, references=[texts for texts, _ in encoded.targets]), by_length=True)


def prepare_model(model: Any, settings: GenerationSettings) -> None:
    """Write into the model's generation settings, which are saved with it, how long a text may be and how it begins."""
    generation = model.generation_config
    if generation.max_new_tokens is None and generation.max_length is None:
        generation.max_new_tokens = settings.max_target_length
    generation.update(**settings.begin)
    limit, width = positions(model.config), room(generation, settings)
    if limit is not None and width > limit:
        raise UserError(
            f"[generation]: {width} new tokens are more than the {limit} positions of the model",
            "lower generation.max_new_tokens",
        )


def room(generation: Any, settings: GenerationSettings) -> int:
    """How many tokens are written at most: as the generation settings say, where `max_length` counts the start too."""
    if generation.max_new_tokens is not None:
        return int(generation.max_new_tokens)
    return settings.max_target_length if generation.max_length is None else int(generation.max_length) - 1


def references(part: Encoded) -> Iterator[str]:
    """Yield the texts that count as right."""
    return (text for texts, _ in part.targets for text in texts)


def record(settings: GenerationSettings) -> dict[str, Any]:
    """Return what the run's record says for `predict`: nothing, the recipe and the generation settings have it."""
    return {}


def metric_names(settings: GenerationSettings) -> tuple[str, ...]:
    """Name the metrics that fit the data: all."""
    return METRICS


def label_counts(part: Encoded, settings: GenerationSettings) -> dict[str, Any]:
    """Measure the length of the targets in tokens, and how many were cut off."""
    sizes = np.array([size for _, size in part.targets])
    cut = int((sizes > settings.max_target_length).sum())
    lengths = {"min": float(sizes.min()), "mean": float(sizes.mean()), "max": float(sizes.max())}
    return {"of": "target tokens", **lengths, "cut": cut}


# ---- predictions, metrics ------------------------------------------------------------------------------------


def preprocess_logits_for_metrics(
    model: Any, outputs: Any, batch: Mapping[str, torch.Tensor], settings: GenerationSettings
) -> torch.Tensor:
    """The example and the tokens that the model writes for it, [B, 1 + K]; NOTHING behind them, up to the K that there
    is room for. Token numbers are exact in a float.
    """
    generation = model.generation_config
    width = room(generation, settings)
    unlimited = generation.max_new_tokens is None and generation.max_length is None
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        num_return_sequences=1,
        **({"max_new_tokens": width} if unlimited else {}),
        **settings.begin,
    )[:, 1:]  # without the token that the decoder starts with
    written = F.pad(written, (0, width - written.shape[1]), value=NOTHING)
    return torch.cat([batch["index"][:, None], written], dim=1).float()


def label_spec_from_config(
    config: Any, record: Mapping[str, Any], data: PairData, tokenizer: Any
) -> GenerationSettings:
    """Return how a model writes: in the languages that the recipe names."""
    return GenerationSettings(tokenizer, data.max_target_length, set_languages(tokenizer, data), data.source_prefix)


def forward_for_predict(model: Any, batch: Mapping[str, torch.Tensor], settings: GenerationSettings) -> torch.Tensor:
    """Compute what `postprocess` needs of the model: what the metrics need."""
    return preprocess_logits_for_metrics(model, None, batch, settings)


def postprocess(kept: np.ndarray, part: Examples, settings: GenerationSettings) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row, what `predict` says of it): the text that the model wrote."""
    for row, text in zip(part.row[kept[:, 0].astype(int)], written_texts(kept, settings), strict=True):
        yield int(row), {"generated_text": text}


def written_texts(kept: np.ndarray, settings: GenerationSettings) -> list[str]:
    """Return the text of each row of what `preprocess_logits_for_metrics` kept, without special tokens."""
    tokens = kept[:, 1:].astype(int)
    return [settings.tokenizer.decode(ids[ids != NOTHING], skip_special_tokens=True).strip() for ids in tokens]


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """ROUGE, BLEU and chrF, each 0..100, and how many tokens a text has on average, its end-of-sequence included."""
    count = ((kept[:, 1:] != NOTHING) & (kept[:, 1:] != part.extra.tokenizer.pad_token_id)).sum(axis=1)
    return _figures(*predictions_and_references(kept, part), count, part.extra.units)


def _figures(
    predictions: Sequence[str], references: Sequence[Sequence[str]], tokens: np.ndarray, units: Units
) -> dict[str, float]:
    """The metrics of texts; `tokens` counts those of each."""
    return {
        **measures.rouge(predictions, references, units),
        "bleu": measures.bleu(predictions, references, units),
        "chrf": measures.chrf(predictions, references),
        "generated_tokens": float(tokens.mean()),
    }


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[list[str], list[Sequence[str]]]:
    """Return the text written for each row and those that count as right, in the order of `kept`."""
    settings: GenerationSettings = part.extra
    return written_texts(kept, settings), [settings.references[part.row[i]] for i in kept[:, 0].astype(int)]


def results(kept: np.ndarray, part: Examples, columns: Mapping[str, str]) -> Results:
    """The references of each row and the text that was written, with its own scores; the lowest chrF first."""
    predictions, references = predictions_and_references(kept, part)

    def result(row: int, text: str, truth: Sequence[str], rouge: Mapping[str, float]) -> Result:
        chrf = measures.sentence_chrf(text, truth)
        return Result(row, {"truth": list(truth), "prediction": text, **rouge, "chrf": chrf}, (-chrf,))

    rows = part.row[kept[:, 0].astype(int)].tolist()
    return Results(
        map(result, rows, predictions, references, measures.rouge_by_text(predictions, references, part.extra.units))
    )


def trivial_answer(train: Encoded, settings: GenerationSettings) -> dict[str, Any]:
    """How many tokens of the source are copied: all (None), or where targets are less than half as long, the mean."""
    frame = len(settings.tokenizer(text_target="")["input_ids"])
    mean = float(np.mean([size for _, size in train.targets])) - frame
    return {"lead": max(1, round(mean)) if 2 * mean < np.mean(train.lengths) - frame else None}


def trivial(known: Mapping[str, Any], kept: np.ndarray, part: Examples) -> Trivial:
    """The source copied, as far as the model reads it; of a summary the beginning, as long as the mean target.

    chrF decides, as the mean of the texts' own: it knows every script.
    """
    settings: GenerationSettings = part.extra
    tokenizer, lead = settings.tokenizer, known["lead"]
    predictions, references = predictions_and_references(kept, part)
    read = (part.inputs["input_ids"][index] for index in kept[:, 0].astype(int))
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in read]
    copied = [text.removeprefix(settings.prefix.strip()).strip() for text in texts]
    if lead is not None:
        tokens = tokenizer(text_target=copied, add_special_tokens=False, verbose=False)["input_ids"]
        copied = [tokenizer.decode(ids[:lead], skip_special_tokens=True).strip() for ids in tokens]
    count = np.array([len(ids) for ids in tokenizer(text_target=copied, verbose=False)["input_ids"]])
    chosen = sample(len(predictions), SCORED)
    model, trivially = (
        mean_rows(np.array([measures.sentence_chrf(side[i], references[i]) for i in chosen]))
        for side in (predictions, copied)
    )
    says = "the source copied" if lead is None else f"the source's first {lead} tokens"
    return Trivial(says, _figures(copied, references, count, settings.units), copied, {"chrf": (model, trivially)})
