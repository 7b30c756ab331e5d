"""Replaced-token detection: a small generator fills in hidden tokens, and a discriminator finds those it got wrong.

Clark et al. 2020 (arXiv:2003.10555), ELECTRA. Both are trained together and read with the same embeddings; every token
teaches the discriminator something, hidden or not, and it is the one that is fine-tuned afterwards.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining

from llmkit import metrics as measures
from llmkit.data.text import corruption
from llmkit.data.text.boundaries import vocabulary
from llmkit.data.text.pack import TokenStream, Window
from llmkit.errors import UserError
from llmkit.models import loading, weights
from llmkit.models.config import load_config
from llmkit.models.weights import count_parameters
from llmkit.recipe.data_tables import ReplacedData
from llmkit.recipe.schema import Generator, Model
from llmkit.tasks.masked_lm import block_spec as block_spec
from llmkit.tasks.masked_lm import document_separator as document_separator
from llmkit.tasks.masked_lm import need_tokens

if TYPE_CHECKING:
    from llmkit.tasks import replaced_token_detection
    from llmkit.tasks.task import TextTask

    task: TextTask = replaced_token_detection

# What this task does without (`tasks/task.py`).
evaluation_windows = prepare_model = None

LABEL_OFFSET = -1  # before a window's tokens stands [CLS]

MODEL_CLASS = AutoModelForPreTraining  # the discriminator

GENERATOR = "generator"  # the folder of a finished run that holds the generator; the discriminator is at its root
TABLES = ("word_embeddings", "position_embeddings", "token_type_embeddings")  # what both read with
# What of their configurations must be alike for that.
SHARED = ("model_type", "vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size")
# A generator of 1/4 to 1/2 of the discriminator's size works best (the paper's section 3.2): it is as deep, and narrow.
NARROWER = ("hidden_size", "num_attention_heads", "intermediate_size")
# The discriminator's scores are kept as histograms of so many bins: an eighth of a logit each, from -16 to 16.
BINS, BINS_A_LOGIT = 256, 8


# ---- the model -----------------------------------------------------------------------------------------------------


@dataclass
class Outputs:
    """`logits` [M, V] of the generator for the M hidden tokens, in the order of rows and places; `input_ids` [B, T] as
    the discriminator read them, and its `scores` [B, T]: above 0 where it takes a token for a replaced one.
    """

    logits: torch.Tensor
    input_ids: torch.Tensor
    scores: torch.Tensor


class Electra(torch.nn.Module):
    """A discriminator and its generator, with one set of embedding tables, which learns from both.

    Where their widths differ, each widens the embeddings with a projection of its own.
    """

    def __init__(self, discriminator: Any, generator: Any) -> None:
        super().__init__()
        self.config = discriminator.config
        self.discriminator = discriminator
        self.generator = generator
        for table in TABLES:
            setattr(generator.base_model.embeddings, table, getattr(discriminator.base_model.embeddings, table))
        generator.tie_weights()
        # Saved once: safetensors refuses what stands under two names.
        self._again = dict(self.named_parameters(remove_duplicate=False)).keys() - dict(self.named_parameters()).keys()
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_post_hook(_not_missing)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, draws: torch.Tensor) -> Outputs:
        """`input_ids` and `attention_mask`, [B, T], and `draws` [B, T]: of a hidden token a number in [0, 1), else -1.

        No gradient goes through the generator's choice (section 2 of the paper): tokens are discrete.
        """
        hidden = draws >= 0
        states = self.generator.base_model(input_ids, attention_mask=attention_mask)[0]
        # At the hidden tokens alone: over all tokens the logits would take nearly seven times the time and memory.
        logits = self.generator.generator_lm_head(self.generator.generator_predictions(states[hidden]))
        filled = input_ids.clone()
        filled[hidden] = sample(logits.detach(), draws[hidden])
        return Outputs(logits, filled, self.discriminator(filled, attention_mask=attention_mask).logits)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count as transformers counts them, the shared ones once."""
        return count_parameters(self, only_trainable, exclude_embeddings)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """As the Trainer asks for it."""
        for model in (self.discriminator, self.generator):
            model.activation_checkpointing_enable(**settings)

    def save_each(self, directory: Path, tokenizer: Any) -> None:
        """Write the discriminator, and the generator into a folder below it, in Hugging Face's layout."""
        for model, folder in ((self.discriminator, directory), (self.generator, directory / GENERATOR)):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def _leave_out(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in module._again:
        del state[prefix + name]


def _not_missing(module: Any, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [name for name in incompatible.missing_keys if name not in module._again]


def sample(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """A token [M] from the softmax of each of `logits` [M, V], by the inverse of its distribution: the first token up
    to which the probabilities add up to more than its number of `draws` [M], which is in [0, 1).

    So a choice follows from its logits and its number, whatever else is in the batch.
    """
    cumulated = logits.float().softmax(dim=-1).cumsum(dim=-1)
    wanted = draws.float()[:, None] * cumulated[:, -1:]  # rounded, the last sum is not quite 1
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def create_model(table: Model, config: Any, seed: int) -> tuple[Electra, list[str]]:
    """Discriminator and generator as `[model]` and `[model.generator]` describe them, and notes on what is new in them.

    The embeddings are the discriminator's. Without a name of its own the generator of a finished run is the one it was
    trained with; any other comes from the seed. Raises UserError for two that cannot share their embeddings, and for
    heads that do not divide a width, which transformers finds at the first batch.
    """
    own, notes = _generators_table(table, config)
    narrow, chosen = load_config(own, where="model.generator")
    there, here = ({key: getattr(each, key, None) for key in SHARED} for each in (narrow, config))
    if there != here:
        raise UserError(
            "[model.generator]: it shares the discriminator's embeddings, which do not fit it",
            "use two models that belong together, or change both",
            tuple(
                f"{key}: {there[key]} in [model.generator], {here[key]} in [model]"
                for key in SHARED
                if there[key] != here[key]
            ),
        )
    for key, each in (("model", config), ("model.generator", narrow)):
        if each.hidden_size % each.num_attention_heads:
            raise UserError(
                f"[{key}]: hidden_size = {each.hidden_size} is not divisible by its "
                f"{each.num_attention_heads} attention heads",
                f"see {key}.config",
            )
    discriminator, made = weights.create_model(table, config, MODEL_CLASS, seed)
    generator, new = weights.create_model(own, narrow, AutoModelForMaskedLM, seed + 1)
    return Electra(discriminator, generator), [*notes, *made, *(f"generator: {note}" for note in (*chosen, *new))]


def _generators_table(table: Model, config: Any) -> tuple[Model, list[str]]:
    """The generator as a [model] of its own, and a note where it is not what one might expect."""
    given, notes = table.generator or Generator(), []
    name = given.name
    if name is None and table.init == "pretrained" and table.name is not None:
        beside = Path(table.name) / GENERATOR
        name = str(beside) if beside.is_dir() else None
        notes.append(
            f"the generator is `{name}`"
            if name
            else "the generator starts from scratch; model.generator.name sets another"
        )
    narrower = {key: max(1, getattr(config, key) // 4) for key in NARROWER}
    own = {
        "name": name,
        "init": "pretrained" if name else "scratch",
        "config": given.config if name else {**config.to_dict(), **narrower, **given.config},
    }
    return table.model_copy(update={**own, "revision": None, "generator": None}), notes


def load_model(name: str) -> Electra:
    """Both models of a finished run, ready for evaluation; raises UserError where there is a discriminator alone."""
    beside = Path(name) / GENERATOR
    if not beside.is_dir():
        raise UserError(
            f"`{name}` has no generator, which must replace tokens to evaluate its discriminator",
            "evaluate a finished run of replaced-token-detection",
        )
    return Electra(loading.load_model(name, MODEL_CLASS), loading.load_model(str(beside), AutoModelForMaskedLM)).eval()


# ---- batches, loss, metrics ----------------------------------------------------------------------------------------


def collator(
    data: ReplacedData, tokenizer: Any, config: Any, seed: int
) -> Callable[[list[Window]], dict[str, torch.Tensor]]:
    """Windows -> `input_ids`, `attention_mask`, `labels`, `draws` and `weights`, all [B, T].

    All chosen tokens are hidden behind the mask token; labels are -100 where nothing is. `draws` says which token the
    generator's distribution gives for a hidden one (`sample`), `weights` how much a token counts in the discriminator's
    loss: special tokens, which are never hidden, not at all. Every draw comes from (seed, epoch, block).
    """
    need_tokens(tokenizer, "replaced-token-detection")
    special = vocabulary(tokenizer).special

    def collate(windows: list[Window]) -> dict[str, torch.Tensor]:
        lengths = np.array([len(window.ids) for window in windows])
        shape = (len(windows), lengths.max() + 2)
        input_ids = np.full(shape, tokenizer.pad_token_id or 0, np.int64)  # behind a window that is short
        labels = np.full(shape, -100, np.int64)
        draws = np.full(shape, -1, np.float32)
        weights = np.zeros(shape, np.float32)
        input_ids[:, 0] = tokenizer.cls_token_id
        for b, window in enumerate(windows):
            ids = window.ids
            rng = corruption.generator(seed, window.epoch, window.index)
            ordinary = np.flatnonzero(~special[ids])
            hidden = corruption.choose_tokens(rng, ordinary, data.mlm_probability)
            input_ids[b, 1 : 1 + len(ids)] = ids
            input_ids[b, 1 + len(ids)] = tokenizer.sep_token_id
            input_ids[b, 1 + hidden] = tokenizer.mask_token_id
            labels[b, 1 + hidden] = ids[hidden]
            draws[b, 1 + hidden] = rng.random(len(hidden), np.float32)
            weights[b, 1 + ordinary] = data.discriminator_weight * len(hidden) / max(1, len(ordinary))
        attention_mask = (np.arange(shape[1]) < lengths[:, None] + 2).astype(np.int64)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return {
            name: torch.from_numpy(values) for name, values in (batch | {"draws": draws, "weights": weights}).items()
        }

    return collate


def losses(
    outputs: Outputs, batch: Mapping[str, torch.Tensor], training: bool = False, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The generator's loss (nats) at hidden tokens, and at every ordinary one the weighted loss of the discriminator,
    [B, T]. What is smoothed are the generator's labels.

    The paper adds a mean over hidden tokens to `discriminator_weight` times a mean over all. The sum of these losses is
    divided by the number of labels, the hidden tokens; so a token's weight is `discriminator_weight` times the share of
    its block that is hidden, which is the same in every block but for rounding.
    """
    generator, discriminator = _each_loss(outputs, batch, label_smoothing if training else 0.0)
    return generator + batch["weights"] * discriminator


def _each_loss(
    outputs: Outputs, batch: Mapping[str, torch.Tensor], label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropy of the generator, 0 where nothing is hidden, and that of the discriminator; both [B, T]."""
    labels = batch["labels"]
    hidden = labels.ne(-100)
    of_hidden = F.cross_entropy(
        outputs.logits.float(), labels[hidden], reduction="none", label_smoothing=label_smoothing
    )
    generator = torch.zeros(labels.shape, device=labels.device).masked_scatter(hidden, of_hidden)
    truth = _replaced(outputs, batch).float()
    return generator, F.binary_cross_entropy_with_logits(outputs.scores.float(), truth, reduction="none")


def _replaced(outputs: Outputs, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Where the discriminator read another token than the text has, bool [B, T]: what the generator got right, is not
    replaced (the paper's section 2).
    """
    return batch["labels"].ne(-100) & outputs.input_ids.ne(batch["labels"])


def preprocess_logits_for_metrics(model: Any, outputs: Outputs, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Of each block the summed losses of generator and discriminator, and histograms of the discriminator's scores of
    original and of replaced tokens: [B, 2 + 2 x BINS].
    """
    generator, discriminator = _each_loss(outputs, batch)
    ordinary = batch["weights"].gt(0)
    half = BINS // 2
    bins = (outputs.scores.float() * BINS_A_LOGIT).floor().clamp(-half, half - 1).long() + half
    place = bins + BINS * _replaced(outputs, batch).long()
    counts = torch.zeros(len(bins), 2 * BINS, device=bins.device).scatter_add_(1, place, ordinary.float())
    sums = torch.stack([generator.sum(dim=1), (ordinary * discriminator).sum(dim=1)], dim=1)
    return torch.cat([sums, counts], dim=1)


def metrics(stats: np.ndarray, tokens: TokenStream) -> dict[str, float]:
    """From what is kept of each block, behind its summed loss and its count of hidden tokens, [N, 4 + 2 x BINS]: the
    loss as the paper adds it up, both of its parts as means (nats a token), and how well the discriminator tells
    replaced tokens from original ones: area under the ROC curve, and accuracy with the bound at one half.
    """
    totals = stats.astype(np.float64).sum(axis=0)
    original, replaced = np.split(totals[4:], 2)
    tokens, right = totals[4:].sum(), original[: BINS // 2].sum() + replaced[BINS // 2 :].sum()
    return {
        "loss": measures.mean_loss(stats[:, :2]),
        "generator_loss": float(totals[2] / totals[1]) if totals[1] else float("nan"),
        "discriminator_loss": float(totals[3] / tokens) if tokens else float("nan"),
        "auc": auc(original, replaced),
        "accuracy": float(right / tokens) if tokens else float("nan"),
    }


def trivial(stats: np.ndarray, unigram: np.ndarray) -> np.ndarray:
    """What a unigram model as the generator, and a discriminator that takes every token for an original, would give.

    `unigram`, [N, 2], are the losses of the former. The latter gives every token the same score: its loss is the
    entropy of the share of replaced tokens, which the generator of the run decides.
    """
    counts = stats[:, 4:].reshape(-1, 2, BINS).sum(axis=2)
    tokens, share = counts.sum(axis=1), counts[:, 1].sum() / max(1.0, counts.sum())
    entropy = -sum(p * np.log(p) for p in (share, 1 - share) if p > 0)
    weights = (stats[:, 0] - stats[:, 2]) / np.maximum(stats[:, 3], 1e-12)
    scores = np.zeros((len(stats), 2, BINS))
    scores[:, :, 0] = counts
    generator, discriminator = unigram[:, 0], tokens * entropy
    sums = np.stack([generator + weights * discriminator, unigram[:, 1], generator, discriminator], axis=1)
    return np.concatenate([sums, scores.reshape(len(stats), -1)], axis=1)


def auc(negative: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve from histograms of the scores of both classes, [bins] from low to high: how often a
    positive one has the higher score, two of one bin counting half (Mann and Whitney 1947,
    doi:10.1214/aoms/1177730491). It is off by half the share of such pairs at most; nan where a class is empty.
    """
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative / 2
    return float(below @ positive / pairs) if pairs else float("nan")
