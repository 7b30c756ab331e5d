"""Samples while a model learns: what it writes behind a few prompts, with random numbers of its own."""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any

import torch
from rich.cells import set_cell_size
from torch.utils.data import Dataset
from transformers import StoppingCriteria, StoppingCriteriaList, TrainingArguments

from llmkit.data.display import cut
from llmkit.data.rows.conversations import Conversation, conversation
from llmkit.data.rows.examples import Encoded, key_of
from llmkit.data.rows.reader import Unusable
from llmkit.data.text.pack import EVALUATION, TokenStream
from llmkit.errors import UserError, quantity
from llmkit.models.chat_template import ChatTemplate
from llmkit.models.config import positions
from llmkit.models.loading import quiet
from llmkit.models.prompt import encode
from llmkit.recipe.data_tables import ChatData, PairData
from llmkit.recipe.schema import Recipe, Samples
from llmkit.terminal import columns_of, printable

NUMBER = 3  # prompts of the data, where the recipe names none
COLUMNS = 28  # of a document's beginning: a third of a line or so
PLACES, LOOKED_AT = 30, 400  # at which such beginnings are looked for, and the tokens of each
CORRUPTED = 40  # tokens of a text that is to be restored
# Writing is to take SHARE of the time of training at most. A token took 1/66 of the time of a micro-batch with the tiny
# GPT-2 and 1/34 with SmolLM2 and 4 conversations, on a CPU; COST leaves room for a GPU, on which it was not measured.
SHARE, COST = 1 / 20, 1 / 12
NONE = "take it out; samples.prompts = [] asks for none at all"

Sample = dict[str, str]  # `prompt`, `text`, and `target` where what is to be written is known


@dataclass(frozen=True)
class Prompt:
    """What the model is given, as a person reads it and as tokens."""

    text: str
    ids: Sequence[int]
    target: str | None = None


class Heed(StoppingCriteria):
    """Calls a function for each token that is written; what it raises ends the writing."""

    def __init__(self, heed: Callable[[], object]) -> None:
        self.heed = heed

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.heed()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Sampler:
    """The prompts of a run. `encoder`: the model reads a prompt whole and writes another text, it does not go on."""

    prompts: Sequence[Prompt]
    tokenizer: Any
    max_new_tokens: int
    encoder: bool = False
    chat: bool = False

    def interval(self, micro_batches: int) -> int:
        """Return the steps from one writing to the next at least, by how many micro-batches a step has."""
        return math.ceil(self.max_new_tokens * COST / SHARE / micro_batches)

    def write(
        self, model: Any, device: torch.device, seed: int, heed: Callable[[], object], synced: bool
    ) -> list[Sample]:
        """Let the model write behind each prompt, in one batch, as its generation settings say.

        The global random numbers are drawn from, and are the caller's to restore.

        Args:
            model: In whatever mode, which it keeps.
            device: Where it computes.
            seed: What it draws from.
            heed: Called for each token, unless several processes write; may raise.
            synced: Several processes write, and none ends before the others.
        """
        ids, mask = self._batch()
        settings = copy.deepcopy(model.generation_config)
        limit = positions(model.config)
        taken = 1 if self.encoder else ids.shape[1]
        settings.max_new_tokens = self.max_new_tokens if limit is None else min(self.max_new_tokens, limit - taken)
        settings.max_length, settings.num_return_sequences = None, 1
        settings.return_dict_in_generate, settings.use_cache = False, True
        if settings.pad_token_id is None:
            settings.pad_token_id = self._pad
        options: dict[str, Any] = (
            {"synced_gpus": True} if synced else {"stopping_criteria": StoppingCriteriaList([Heed(heed)])}
        )
        training = model.training
        model.eval()
        torch.manual_seed(seed)
        try:
            with quiet():
                written = model.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    generation_config=settings,
                    **options,
                )
        finally:
            model.train(training)
        ends = settings.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        found = []
        for prompt, new in zip(self.prompts, written[:, taken:].tolist(), strict=True):
            sample = {"prompt": prompt.text, "text": self._text(prompt, list(takewhile(lambda i: i not in ends, new)))}
            found.append(sample if prompt.target is None else {**sample, "target": prompt.target})
        return found

    def _batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad the prompts, where the model goes on from them on the left: [prompts, longest], and the mask."""
        longest = max(len(prompt.ids) for prompt in self.prompts)
        ids = torch.full((len(self.prompts), longest), self._pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            place = slice(0, len(prompt.ids)) if self.encoder else slice(longest - len(prompt.ids), longest)
            ids[row, place], mask[row, place] = torch.tensor(prompt.ids), 1
        return ids, mask

    @property
    def _pad(self) -> int:
        candidates = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(int(token) for token in candidates if token is not None)

    def _text(self, prompt: Prompt, new: list[int]) -> str:
        if self.encoder:
            return read(self.tokenizer, new)
        if self.chat:
            return str(self.tokenizer.decode(new, skip_special_tokens=True))
        # Together with its prompt: alone, SentencePiece tokenizers drop the space that it begins with.
        before = self.tokenizer.decode(list(prompt.ids), skip_special_tokens=True)
        return str(self.tokenizer.decode([*prompt.ids, *new], skip_special_tokens=True))[len(before) :]


def line(sample: Sample, width: int) -> str:
    """Show a sample in one line: its prompt and what was written, or beside that what was to be written."""
    parts = ("prompt", "text") if "target" not in sample else ("text", "target")
    first, second = (" ".join(sample[part].split()) for part in parts)
    if "target" not in sample:
        first = _ending(first, width // 2)
        return f"{first} | {cut(second, width - columns_of(first) - 3)}"
    first = cut(first, width // 2)
    return f"{first} | target: {cut(second, width - columns_of(first) - 11)}"


def _ending(text: str, width: int) -> str:
    """Cut a text to its last `width` columns: what is written goes on from there, and a question stands there."""
    shown = printable(text[-4 * width :])
    return shown if columns_of(shown) <= width else f"...{set_cell_size(shown[::-1], width - 3)[::-1].lstrip()}"


def note(sampler: Sampler, args: TrainingArguments, steps: int) -> str:
    """Say so where evaluation is so frequent, in a run of so many steps, that not each has samples; else nothing."""
    interval = sampler.interval(args.gradient_accumulation_steps)
    every = args.eval_steps or 0
    every = math.ceil(every * steps) if every < 1 else every
    if args.eval_strategy != "steps" or every >= interval:
        return ""
    return (
        f"samples are written {interval:,} steps apart at least, so that they take little of the time; evaluation is "
        f"every {quantity(int(every), 'step')}"
    )


# ---- prompts -------------------------------------------------------------------------------------------------------


def of_text(
    recipe: Recipe, tokenizer: Any, config: Any, held_out: Mapping[str, Dataset[Any]], collate: Any
) -> Sampler | None:
    """Choose the prompts of a run on running text: those of the recipe, or of `held_out`, its data by source."""
    table = _asked(recipe)
    if table is None:
        return None
    limit = positions(config)
    if recipe.task == "denoising":
        if table.prompts is None:
            prompts = list(islice(_corrupted(held_out, tokenizer, collate), NUMBER))
        else:
            prompts = [_read_whole(text, text, tokenizer, limit) for text in table.prompts]
        return _sampler(prompts, tokenizer, table, encoder=True)
    if table.prompts is not None:
        prompts = [_whole(text, _tokens(text, tokenizer), limit, room=1) for text in table.prompts]
    else:
        texts = dict.fromkeys(_beginning(text, tokenizer, limit) for text in _places(held_out, tokenizer))
        prompts = [Prompt(text, encode(text, tokenizer)) for text in [*texts, *[""] * (not texts)][:NUMBER]]
    return _sampler(prompts, tokenizer, table)


def of_rows(recipe: Recipe, tokenizer: Any, config: Any, part: Encoded, columns: Any, length: int) -> Sampler | None:
    """Choose the prompts of a run on rows: those of the recipe, or of `part`; None for a task that does not write.

    `length` is how many tokens of a row the model reads.
    """
    table, data = _asked(recipe), recipe.data
    if table is None:
        return None
    if isinstance(data, ChatData):
        template, limit = ChatTemplate(tokenizer), positions(config)
        if table.prompts is None:
            room = limit if limit is None else limit - min(table.max_new_tokens, limit // 2)
            fitting = (
                prompt for prompt in _questions(part, columns, data, template) if len(prompt.ids) <= (room or 1e9)
            )
            prompts = list(islice(fitting, NUMBER))
        else:
            prompts = [_whole(text, _question(text, data, template), limit, room=1) for text in table.prompts]
        return _sampler(prompts, tokenizer, table, chat=True)
    assert isinstance(data, PairData)
    if table.prompts is None:
        prompts = list(_pairs(part, tokenizer))
    else:
        prefix = data.source_prefix
        prompts = [_read_whole(text, prefix + text, tokenizer, length) for text in table.prompts]
    return _sampler(prompts, tokenizer, table, encoder=True)


def _asked(recipe: Recipe) -> Samples | None:
    return None if recipe.samples is None or recipe.samples.prompts == () else recipe.samples


def _sampler(prompts: Sequence[Prompt], tokenizer: Any, table: Samples, **kind: bool) -> Sampler | None:
    return Sampler(prompts, tokenizer, table.max_new_tokens, **kind) if prompts else None


def _whole(text: str, ids: Sequence[int], limit: int | None, room: int = 0) -> Prompt:
    """Return a prompt of the recipe; UserError where the model does not read all of it, with `room` to write behind."""
    if limit is not None and len(ids) + room > limit:
        raise UserError(
            f"samples.prompts: `{cut(text, 40)}` has {len(ids):,} tokens, and the model reads {limit - room:,} at most",
            "shorten it",
        )
    return Prompt(text, ids)


def _read_whole(text: str, given: str, tokenizer: Any, limit: int | None) -> Prompt:
    """Return a prompt for an encoder, which is `given` it behind a prefix."""
    if not text.strip():
        raise UserError("samples.prompts: a text is empty", NONE)
    return _whole(text, tokenizer(given, verbose=False)["input_ids"], limit)


def _tokens(text: str, tokenizer: Any) -> list[int]:
    if text and not tokenizer(text, add_special_tokens=False)["input_ids"]:
        raise UserError(
            f"samples.prompts: the tokenizer makes no token of `{cut(text, 40)}`",
            'write another; "" begins with no text at all',
        )
    return encode(text, tokenizer)


def _question(text: str, data: ChatData, template: ChatTemplate) -> list[int]:
    if not text.strip():
        raise UserError("samples.prompts: a question is empty", NONE)
    system = [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
    try:
        written = template.write([*system, {"role": "user", "content": text}], asking=True)
    except ValueError as problem:
        raise UserError(f"samples.prompts: {problem}", "see data.system_prompt") from problem
    return list(template.tokenizer(written, add_special_tokens=False)["input_ids"])


def _questions(part: Encoded, columns: Any, data: ChatData, template: ChatTemplate) -> Iterator[Prompt]:
    """Yield the beginnings of conversations, up to the first answer."""
    for _, row in part.source.read():
        try:
            whole = conversation(row, columns, data)
            asked = list(takewhile(lambda message: message["role"] != "assistant", whole.messages))
            fitted = template.fit(Conversation(asked, [False] * len(asked), whole.tools, None))
            text = template.write(fitted.messages, fitted.tools, asking=True)
        except (Unusable, ValueError):
            continue
        if asked:
            ids = template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            yield Prompt(asked[-1]["content"], ids)


def _pairs(part: Encoded, tokenizer: Any) -> Iterator[Prompt]:
    """Yield rows from all over a part, with what is to be written."""
    for row in dict.fromkeys(len(part.row) * place // NUMBER for place in range(NUMBER)):
        ids = part.inputs["input_ids"][row]
        yield Prompt(read(tokenizer, ids), ids.tolist(), part.targets[row][0][0])


def _corrupted(held_out: Mapping[str, Any], tokenizer: Any, collate: Any) -> Iterator[Prompt]:
    """Yield beginnings of texts, corrupted as in evaluation, with what is to be written."""
    for blocks in held_out.values():
        for number in dict.fromkeys(len(blocks) * place // NUMBER for place in range(NUMBER)):
            window = blocks[number]
            batch = collate([replace(window, ids=window.ids[:CORRUPTED], epoch=EVALUATION)])
            ids, labels = batch["input_ids"][0][batch["attention_mask"][0] == 1], batch["labels"][0]
            yield Prompt(read(tokenizer, ids), ids.tolist(), read(tokenizer, labels[labels != -100]))


def read(tokenizer: Any, ids: Any) -> str:
    """Return the text of tokens without special ones, but for masks and sentinels, which stand for what is left out."""
    special = {token: tokenizer.convert_ids_to_tokens(token) for token in tokenizer.all_special_ids}
    blanks = {token for token, name in special.items() if name.startswith("<extra_id_")} | {tokenizer.mask_token_id}
    return str(tokenizer.decode([int(i) for i in ids if int(i) in blanks or int(i) not in special])).strip()


def _places(held_out: Mapping[str, Any], tokenizer: Any) -> Iterator[str]:
    """Yield texts from all over the data: from where documents begin, of few of them from where lines do.

    Some begin alike, and so there are more than are wanted. Of several sources each has its turn.
    """
    streams: list[TokenStream] = [blocks.stream for blocks in held_out.values() if hasattr(blocks, "stream")]
    for place, stream in itertools.product(range(PLACES), streams):
        text = _text_at(stream, place % NUMBER / NUMBER + place // NUMBER / PLACES, tokenizer)
        if text:
            yield text


def _text_at(stream: TokenStream, part: float, tokenizer: Any) -> str:
    """Return the text of the document, or behind the next line end, that begins behind so large a part of a stream."""
    ends, inside = stream.ends, part > 0 and stream.num_documents < NUMBER
    document = int(stream.num_documents * part)
    first = int(len(stream.ids) * part) if inside else int(ends[document - 1]) if document else 0
    last = next(map(int, ends[ends.searchsorted(first, "right") :]), len(stream.ids))
    text = str(tokenizer.decode(stream.ids[first : min(last, first + LOOKED_AT)].tolist(), skip_special_tokens=True))
    if inside:
        text = text.partition("\n")[2].lstrip() or text.partition(" ")[2]
    return text.strip()


def _beginning(text: str, tokenizer: Any, limit: int | None) -> str:
    """Cut a text to the words that fit in COLUMNS, to half of it and of the model's positions at most."""
    head = text[: min(COLUMNS, max(1, len(text) // 2))]
    while columns_of(head) > COLUMNS:
        head = head[:-1]
    ids = encode(head, tokenizer)
    if limit is not None and len(ids) > limit // 2:
        head = tokenizer.decode(ids[: limit // 2], skip_special_tokens=True).rstrip("\ufffd")
    inside = text.startswith(head) and not text[len(head) : len(head) + 1].isspace()
    return head.rsplit(None, 1)[0] if inside and len(head.split()) > 1 else head.rstrip()


def seed_of(seed: int, step: int) -> int:
    """Return what the samples of a step are drawn from."""
    return key_of("samples", str(seed), str(step))
