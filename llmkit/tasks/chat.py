"""Chat: a language model learns to answer, from conversations of which it predicts the assistant's part alone.

A conversation is written out by the tokenizer's chat template and tokenized once. What the template writes for an
answer, from the end of its generation prompt to the end of the turn, carries labels: those tokens are what the model
writes when it is asked, the one that ends its turn included.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmkit import metrics as measures
from llmkit.data.rows import batches, conversations, screening
from llmkit.data.rows.batches import Examples
from llmkit.data.rows.conversations import conversation
from llmkit.data.rows.examples import Encoded, beginning, chunks, key_of
from llmkit.data.rows.faults import Tally, check_share
from llmkit.data.rows.messages import HINT
from llmkit.data.rows.reader import RowReader, Unusable
from llmkit.data.rows.table import Rows
from llmkit.errors import UserError
from llmkit.models.chat_template import PROBE, ChatTemplate, Fitted
from llmkit.models.config import positions
from llmkit.recipe.data_tables import ChatData
from llmkit.tasks.causal_lm import keeps_apart

if TYPE_CHECKING:
    from llmkit.tasks import chat
    from llmkit.tasks.task import RowTask

    task: RowTask = chat

reader: RowReader = conversations  # how its rows are read

# What this task does without (`tasks/task.py`).
references = losses = preprocess_logits_for_metrics = trivial_answer = trivial = None
label_spec_from_config = forward_for_predict = postprocess = results = None

METRICS = ("perplexity",)
LONGEST_INPUT = 1024

# What a tokenizer without a chat template gets: no new tokens, and its end-of-text token at the end of every answer.
PLAIN_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' -%}
{{ 'User:\\n' + message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'assistant' -%}
{{ 'Assistant:\\n' + message['content'] + eos_token }}
{%- else -%}
{{ raise_exception('the plain chat template has no role ' + message['role']) }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ 'Assistant:\\n' }}
{%- endif -%}
"""


@dataclass(frozen=True)
class ChatSettings:
    """The tokens that end the assistant's turn, and how many tokens of several conversations share an input, if so."""

    ends: tuple[int, ...]
    room: int | None = None


# ---- conversations -> tokens ---------------------------------------------------------------------------------------


def fit_template(tokenizer: Any) -> None:
    """A tokenizer without a chat template gets the plain one, which is saved with it.

    It begins with the begin-of-text token where the tokenizer itself begins a text so.
    """
    if tokenizer.chat_template:
        return
    if tokenizer.eos_token is None:
        raise UserError(
            "the tokenizer has neither a chat template nor an end-of-text token to end an answer with",
            "use a tokenizer that has one: tokenizer.name",
        )
    begin = tokenizer.bos_token_id
    begins = begin is not None and begin != tokenizer.eos_token_id and tokenizer("")["input_ids"][:1] == [begin]
    tokenizer.chat_template = ("{{- bos_token -}}\n" if begins else "") + PLAIN_TEMPLATE


def spans(fitted: Fitted, template: ChatTemplate) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation, and which characters of it the model is to write: [begin, end) of each answer.

    An answer begins where the prompt for it ends, and ends where the conversation up to it does. Where a template
    rewrites what came before (Qwen3 takes the thoughts out of earlier answers) this holds for the last answer alone,
    which is then the only one; it begins where it parts from its prompt. ValueError where it does not hold at all.
    """
    messages, tools = fitted.messages, fitted.tools
    text = template.write(messages, tools)
    for i, message in enumerate(messages):
        if message["role"] in ("system", "developer", "tool") and message["content"].strip() not in text:
            marked = [*messages[:i], {**message, "content": PROBE}, *messages[i + 1 :]]  # it may be there as JSON
            if PROBE not in template.write(marked, tools):
                raise ValueError(f"the chat template leaves out the {message['role']} message")
    found = []
    answers = [i for i, learned in enumerate(fitted.learned) if learned]
    for i in answers:
        begin = template.write(messages[:i], tools, asking=True)
        end = text if i == len(messages) - 1 else template.write(messages[: i + 1], tools)
        if text.startswith(begin) and text.startswith(end):
            found.append((len(begin), len(end)))
    if len(found) == len(answers):
        return text, found
    if not fitted.learned[-1]:
        raise ValueError("the chat template rewrites every answer but the last, and the last is not to be learned")
    if not text.startswith(template.write(messages[:-1], tools)):
        name = template.tokenizer.name_or_path
        raise ValueError(f"the chat template of `{name}` rewrites the prompt of the last answer")
    prompt = template.write(messages[:-1], tools, asking=True)
    parting = (i for i, (asked, said) in enumerate(zip(prompt, text, strict=False)) if asked != said)
    return text, [(next(parting, len(prompt)), len(text))]


@dataclass
class Rendered:
    """What the template makes of rows: counts of what it left out, mended or has no place for, and the rows kept."""

    data: ChatData
    columns: Mapping[str, str]
    template: ChatTemplate
    keep: bytearray = field(default_factory=bytearray)
    faults: Tally = field(default_factory=Tally)
    mends: Tally = field(default_factory=Tally)
    unused: Tally = field(default_factory=Tally)

    def render(self, place: str, row: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]], int] | None:
        """Return the text of a row, the characters to learn and the number of answers; None where it is left out."""
        self.keep.append(0)
        try:
            found = conversation(row, self.columns, self.data)
            if self.data.companions:
                fitted = self.template.fit(found)
            else:
                fitted = Fitted(found.messages, found.learned, None, None, ())
            text, places = spans(fitted, self.template)
        except Unusable as fault:
            self.faults.add(fault.kind, place, str(fault), fault.hint)
            return None
        except ValueError as fault:
            self.faults.add("the chat template cannot write them", place, str(fault), HINT)
            return None
        self.keep[-1] = 1
        if fitted.mended is not None:
            self.mends.add(fitted.mended, place)
        for part in fitted.unused:
            self.unused.add(f"{part}, which the chat template leaves out", place)
        return text, places, sum(fitted.learned)

    def finish(self, done: Encoded, rows: Rows) -> None:
        """Let the encoded rows say what was left out; raise UserError where that is too much."""
        check_share(rows.source, self.faults, len(self.keep), self.data.max_skipped_fraction)
        if self.faults.total:
            done.keep = bytes(self.keep)
            done.source = screening.part(rows, done.keep)
        done.skipped, done.mended = self.faults.counts, self.mends.counts
        done.notes = [
            *self.faults.notes("left out"),
            *self.mends.notes("mended"),
            *self.unused.notes("read without"),
        ]


def encode(rows: Rows, columns: Mapping[str, str], tokenizer: Any, data: ChatData, length: int) -> Encoded:
    """Tokenize every conversation, cut to its first `length` tokens.

    Inputs are `input_ids`, all tokens but the last, and `labels`, all but the first, -100 where the assistant does not
    speak: labels stand where they are predicted. Targets are how many answers a row has and how many of them carry
    labels. A row whose labels are all cut off is `unlearned`; one that the chat template cannot write is left out.
    """
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer does not give the character offsets of its tokens", "use one with a tokenizer.json"
        )
    fit_template(tokenizer)
    done = Encoded(rows, tokenizer=tokenizer)
    rendered = Rendered(data, columns, ChatTemplate(tokenizer))
    for chunk in chunks(rows.read()):
        whole, learned = [], []
        for place, row in chunk:
            if (found := rendered.render(place, row)) is None:
                continue
            text, places, answers = found
            done.keys.append(key_of(text))
            done.targets.append((answers, len(places)))
            whole.append(beginning(text, length))
            learned.append(places)
        if not whole:
            continue
        read = tokenizer(
            whole, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
        )
        for tokens, offsets, places in zip(read["input_ids"], read["offset_mapping"], learned, strict=True):
            ids = np.array(tokens, np.int32)
            # By its last character: a token across the begin is written by the model, one across the end is not.
            # Byte-level tokenizers leave spaces out of their offsets, but never move an end over a border.
            ends = np.array(offsets, np.int64).reshape(-1, 2)[:, 1]
            theirs = np.zeros(len(ids), bool)
            for begin, end in places:
                theirs |= (ends > begin) & (ends <= end)
            labels = np.where(theirs, ids, -100)[1:length]
            number = len(done.row)
            done.add("input_ids", ids[:length][:-1])
            done.add("labels", labels)
            done.row.append(number)
            done.lengths.append(len(ids))
            done.cut.append(max(0, len(ids) - length))
            if not (labels != -100).any():
                done.unlearned.append(number)
    rendered.finish(done, rows)
    return done.finish()


def resolve_labels(
    data: ChatData,
    columns: Mapping[str, str],
    train: Encoded | None,
    validation: Mapping[str, Encoded],
    config: Any,
    fixed: bool,
) -> ChatSettings:
    """Resolve what ends an answer; UserError where no answer is left to learn from, or to measure by."""
    parts = {**({} if train is None else {"training": train}), **validation}
    for name, part in parts.items():
        if len(part.unlearned) == len(part.keys):
            raise UserError(
                f"{part.source.source}: no supervised tokens in the {name} data: in all {len(part.keys):,} rows, the "
                "answers begin after the first data.max_length tokens",
                "raise data.max_length",
            )
    room = data.max_length or min(positions(config) or LONGEST_INPUT, LONGEST_INPUT)
    return ChatSettings(turn_ends(next(iter(parts.values())).tokenizer), room if data.pack else None)


def turn_ends(tokenizer: Any) -> tuple[int, ...]:
    """Find the special tokens that the template writes behind an answer."""
    asked = [{"role": "user", "content": "?"}, {"role": "assistant", "content": PROBE}]
    try:
        behind = ChatTemplate(tokenizer).write(asked).rpartition(PROBE)[2]
    except ValueError:  # it wants more than a question and an answer
        return ()
    special = {token for token, about in tokenizer.added_tokens_decoder.items() if about.special}
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return tuple(dict.fromkeys(token for token in ids if token in special))


def examples(encoded: Encoded, settings: ChatSettings, evaluation: bool) -> Examples:
    """The conversations as the model's inputs and labels, without those that teach nothing; packed for training."""
    if settings.room is not None and not evaluation:
        encoded = packed(encoded, settings.room)
    found = Examples(encoded, settings, by_length=evaluation)
    found.order = found.order[~np.isin(found.row[found.order], encoded.unlearned)]
    found.lengths = found.lengths[found.order]
    return found


def packed(encoded: Encoded, room: int) -> Encoded:
    """Conversations end to end in inputs of at most `room` tokens; `position_ids` begin anew with each.

    The longest is placed first, each where it leaves the least room (best fit, decreasing): the same data always gives
    the same inputs, and none is cut. `row` is the first conversation's.
    """
    lengths = encoded.inputs["input_ids"].lengths
    unlearned = set(encoded.unlearned)
    bins: list[list[int]] = []
    spare: list[tuple[int, int]] = []  # (tokens left, which bin), sorted
    for i in np.argsort(-lengths, kind="stable").tolist():
        if encoded.row[i] in unlearned:
            continue
        place = bisect_left(spare, (int(lengths[i]), -1))
        left, number = spare.pop(place) if place < len(spare) else (room, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(i)
        insort(spare, (left - int(lengths[i]), number))
    done = Encoded(encoded.source, tokenizer=encoded.tokenizer)
    for together in bins:
        for name, values in encoded.inputs.items():
            done.add(name, np.concatenate([values[i] for i in together]))
        done.add("position_ids", np.concatenate([np.arange(lengths[i]) for i in together]))
        done.row.append(encoded.row[together[0]])
    return done.finish()


def collator(tokenizer: Any, config: Any, multiple: int) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Examples -> [B, T] tensors, padded on the right.

    Packed examples go without `attention_mask`, whereupon transformers keeps apart what `position_ids` count from 0
    (masking_utils.py, find_packed_sequence_indices).
    """
    pad = batches.collator(tokenizer, multiple, labelled_tokens=True)

    def collate(found: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = pad(found)
        if "position_ids" in batch:
            del batch["attention_mask"]
        return batch

    return collate


def prepare_model(model: Any, settings: ChatSettings) -> None:
    """Let generation stop at the end of a turn; refuse to pack for a model that would let conversations mix."""
    if settings.room is not None and not keeps_apart(model):
        raise UserError(
            f"data.pack: {type(model).__name__} lets a conversation see the earlier ones in its input",
            "leave out data.pack: each input then has one conversation; trainer.train_sampling_strategy = "
            '"group_by_length" also saves padding',
        )
    generation = model.generation_config
    had = generation.eos_token_id
    ends = list(had) if isinstance(had, list) else [] if had is None else [had]
    if set(settings.ends) - set(ends):
        generation.eos_token_id = list(dict.fromkeys([*ends, *settings.ends]))


def record(settings: ChatSettings) -> dict[str, Any]:
    """Return what the run's record says for later: nothing, the tokenizer and the generation settings have it."""
    return {}


def metric_names(settings: ChatSettings) -> tuple[str, ...]:
    """Name the metrics that fit the data."""
    return METRICS


def label_counts(part: Encoded, settings: ChatSettings) -> dict[str, Any]:
    """How many conversations have one answer and how many several; of how many a template lets only the last count."""

    def kind(answers: int, learned: int) -> str:
        return "one answer" if answers == 1 else "several answers" + ", the last learned" * (learned < answers)

    return dict(Counter(kind(*target) for target in part.targets))


# ---- metrics -------------------------------------------------------------------------------------------------


def metrics(kept: np.ndarray, part: Examples) -> dict[str, float]:
    """Perplexity of a labelled token."""
    return {"perplexity": measures.perplexity(measures.mean_loss(kept))}


def predictions_and_references(kept: np.ndarray, part: Examples) -> tuple[Any, Any]:
    """Nothing is written during evaluation, and so there is nothing to compare."""
    raise UserError(
        "evaluation.metrics: a chat model is evaluated by its loss, no other metric fits",
        f"choose from {', '.join(METRICS)}",
    )


# ---- for the eye ---------------------------------------------------------------------------------------------------


def shown(encoded: Encoded, example: int, tokenizer: Any) -> str:
    """Return the text of an example as its tokens say it, what is learned in [[double brackets]]."""
    ids, labels = encoded.inputs["input_ids"][example], encoded.inputs["labels"][example]
    runs: list[tuple[bool, list[int]]] = []
    # Each token with the label that asks for it; the last token is a label alone.
    for token, learned in [*zip(ids, [False, *(labels[:-1] != -100)], strict=True), (labels[-1], labels[-1] != -100)]:
        if token != -100:
            if not runs or runs[-1][0] != learned:
                runs.append((bool(learned), []))
            runs[-1][1].append(int(token))
    return "".join(f"[[{tokenizer.decode(run)}]]" if learned else tokenizer.decode(run) for learned, run in runs)
