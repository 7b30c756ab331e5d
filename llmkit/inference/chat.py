"""Conversations with a model that has learned to answer: on the terminal, from a pipe, or the rows of a file."""

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from llmkit.errors import UserError, say
from llmkit.inference import batch, generate
from llmkit.runs import finished

if TYPE_CHECKING:
    from llmkit.models.quantization import Kind

HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer, /help says this again"
ROLES = ("system", "user", "assistant", "tool")
COLUMNS = ("messages", "prompt", "text")  # of a file: where a row's conversation or question stands
RESERVED = 4  # an answer is left the new tokens that it wants, or this part of the positions if that is less

Message = dict[str, Any]


@dataclass
class Conversation:
    """What writes, and what was said so far: after the system's message, if there is one, the user and it in turn.

    `cache` holds what the model computed of the tokens `held`, as long as what is said next begins with them.
    """

    writer: generate.Writer
    messages: list[Message]
    held: list[int] = field(default_factory=list)
    cache: Any = None


def chat(
    question: str | None,
    name: str | None,
    options: dict[str, Any],
    system_prompt: str | None,
    seed: int | None,
    quantize: "Kind | None" = None,
) -> int:
    """Answer one question, or hold a conversation with who is at stdin; the exit code.

    The answers go to stdout as they come. `options` are those of a Writer, and the name of an assistant; without a
    `system_prompt` that of the model's own recipe is used. Raises UserError for a model that does not converse.
    """
    if question is not None and not question.strip():
        raise UserError("the question is empty", "leave it out to hold a conversation")
    writer, system_prompt = load(name, options, system_prompt, seed, quantize)
    talk = Conversation(writer, [{"role": "system", "content": system_prompt}] if system_prompt else [])
    if question is None:
        return converse(talk)
    answer(talk, ask(talk, question), Event())
    return 0


def chat_rows(
    source: Path,
    output: Path | None,
    name: str | None,
    options: dict[str, Any],
    system_prompt: str | None,
    seed: int | None,
    quantize: "Kind | None" = None,
) -> None:
    """Answer the conversation in each row of a file, as JSON lines on stdout or in the file `output`.

    A row holds `messages`, of which the last is the user's, or a `prompt`; of a text file each line is a question.
    """
    batch.check_rows(source, output)
    writer, system_prompt = load(name, options, system_prompt, seed, quantize)

    def read(place: str, row: batch.Row) -> tuple[batch.Row, list[int]]:
        column, messages = read_messages(place, row)
        shown = {"prompt" if column == "text" else column: row[column]}
        if system_prompt and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system_prompt}, *messages]
        return shown, render(messages, writer, f"{place}: ")

    def decode(prompt: list[int], new: list[int]) -> str:
        return str(writer.tokenizer.decode(new, skip_special_tokens=True))

    batch.write_rows(source, output, read, decode, writer, chat=True, system_prompt=system_prompt)


def settings(words: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """`KEY=VALUE` words as fields of GenerationConfig, and the `system_prompt` among them; "" asks for none."""
    pairs = [(word, word.partition("=")) for word in words]
    system = [value for _, (key, _, value) in pairs if key == generate.SYSTEM]
    options = generate.settings([word for word, (key, _, _) in pairs if key != generate.SYSTEM], one=True)
    return options, system[-1] if system else None


def load(
    name: str | None,
    options: dict[str, Any],
    system_prompt: str | None,
    seed: int | None,
    quantize: "Kind | None" = None,
) -> tuple[generate.Writer, str | None]:
    """What writes, and the system prompt; UserError for a tokenizer without a chat template."""
    writer = generate.load(name, "chat", options, seed, quantize)
    try:
        writer.tokenizer.get_chat_template()
    except ValueError as problem:
        raise UserError(
            f"the tokenizer of `{writer.name}` has no chat template: the model has not learned to answer",
            f'let it go on from a text: llmkit generate "..." --model {writer.name}; or teach it to answer: '
            f"llmkit finetune --task chat model.name={writer.name}",
        ) from problem
    if system_prompt is None:
        system_prompt = getattr(finished.data_of(writer.name, "chat"), "system_prompt", None)
    return writer, system_prompt


# ---- the conversation ----------------------------------------------------------------------------------------------


def converse(talk: Conversation) -> int:
    """Answer line after line of stdin until it ends; 2 if a line of a pipe could not be answered, else 0."""
    terminal = sys.stdin.isatty()
    begin = list(talk.messages)
    code = 0
    if terminal:
        say(HELP)
    for line in typed() if terminal else piped():
        command = line.strip()
        if command == "/exit":
            break
        if command == "/help":
            say(HELP)
        elif command == "/clear":
            talk.messages = list(begin)
        elif command:
            try:
                tokens = ask(talk, line)
            except UserError as mistake:
                say(str(mistake))
                code = 0 if terminal else 2
                continue
            with interruptible() if terminal else nullcontext(Event()) as stop:
                answer(talk, tokens, stop)
    return code


def typed() -> Iterator[str]:
    """Lines from the terminal, until Ctrl-D or Ctrl-C twice in a row."""
    with suppress(ImportError):  # Windows
        import readline  # noqa: F401  with it, input() edits and recalls lines

    # input() edits where it writes its prompt: to stdout, which must be the terminal then.
    editing = sys.stdout.isatty()
    interrupted = False
    while True:
        try:
            if not editing:
                sys.stderr.write("> ")
                sys.stderr.flush()
            line = input("> " if editing else "")
            line.encode()
        except EOFError:
            say("")
            return
        except UnicodeError:
            say("error: the line is not UTF-8\nhint: check the encoding of the terminal (LC_ALL)")
            continue
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            say("\nCtrl-C again ends the conversation, as do Ctrl-D and /exit")
            continue
        interrupted = False
        yield line


def piped() -> Iterator[str]:
    """The lines of stdin, each as soon as it is there."""
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            line = raw.decode()
        except UnicodeDecodeError as problem:
            raise UserError(
                f"stdin, line {number}: byte {problem.start + 1} is not UTF-8", "iconv -f LATIN1 -t UTF-8"
            ) from problem
        yield line.rstrip("\r\n")


@contextmanager
def interruptible() -> Iterator[Event]:
    """What Ctrl-C sets, once; pressed again, it ends the program as ever."""
    stop = Event()

    def press(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def ask(talk: Conversation, question: str) -> list[int]:
    """Add the question to the conversation, and drop its oldest turns until there is room; its tokens.

    Raises UserError, and leaves the conversation as it was, where the question alone is too long.
    """
    from llmkit.models.config import positions

    writer = talk.writer
    messages = [*talk.messages, {"role": "user", "content": question}]
    config = generate.choose_settings(writer.model, writer.tokenizer, writer.options)
    limit = positions(writer.model.config)
    dropped = 0
    while True:
        tokens = render(messages, writer)
        users = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if limit is None or len(users) == 1:
            break
        wanted = config.max_new_tokens or limit
        if len(tokens) + min(wanted, limit // RESERVED) <= limit:
            break
        del messages[users[0] : users[1]]
        dropped += 1
    generate.new_tokens(config, writer.model, len(tokens), "the message, as the chat template writes it,")
    if dropped:
        turns = f"{dropped} turns are" if dropped > 1 else "turn is"
        say(f"note: the conversation outgrows the model's {limit:,} positions: its oldest {turns} forgotten")
    talk.messages = messages
    return tokens


def answer(talk: Conversation, tokens: list[int], stop: Event) -> None:
    """Write the model's answer to stdout as it comes, until it ends or `stop` is set; it joins the conversation."""
    import torch
    from transformers import DynamicCache, TextStreamer

    from llmkit.inference.prefill import CACHE

    writer = talk.writer
    config = generate.generation_config(writer.model, writer.tokenizer, writer.options, len(tokens))
    config.return_dict_in_generate = True
    more: dict[str, Any] = {}
    if talk.cache is not None and len(talk.held) < len(tokens) and tokens[: len(talk.held)] == talk.held:
        more[CACHE] = talk.cache
        config.cache_implementation = None  # that of `talk.cache`, which stands
    alone = config.num_beams == 1
    if alone:
        more["streamer"] = TextStreamer(writer.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), stop.is_set(), device=ids.device)

    written = generate.write(writer, [tokens], config, stopping_criteria=[stopped], **more)
    sequence = written.sequences[0].tolist()
    new = sequence[len(tokens) :]
    text = writer.tokenizer.decode(new, skip_special_tokens=True)
    if not alone:
        print(text, flush=True)  # noqa: T201
    talk.messages.append({"role": "assistant", "content": text})
    # Of beams, and of the kinds of cache whose size is fixed, nothing is kept.
    talk.cache = written[CACHE] if alone and type(written.get(CACHE)) is DynamicCache else None
    talk.held = sequence[: talk.cache.get_seq_length()] if talk.cache is not None else []
    if len(new) == config.max_new_tokens and not stop.is_set() and new[-1] not in generate.ends(config):
        say(f"note: cut off after {len(new):,} tokens; max_new_tokens={2 * len(new)} lets it say more")


def render(messages: list[Message], writer: generate.Writer, where: str = "") -> list[int]:
    """The conversation as the chat template writes it, up to where the answer begins."""
    from jinja2 import TemplateError

    try:
        return list(writer.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
    except TemplateError as problem:
        raise UserError(
            f"{where}the chat template of `{writer.name}` refuses the conversation: {problem}",
            "it decides which roles there are and in which order; some know no system prompt",
        ) from problem


# ---- the rows of a file --------------------------------------------------------------------------------------------


def read_messages(place: str, row: batch.Row) -> tuple[str, list[Message]]:
    """Which of COLUMNS holds a row's conversation, and its messages; UserError where nothing is to be answered."""
    from llmkit.data.files import text_of

    column = next((name for name in COLUMNS if name in row), None)
    if column is None:
        raise UserError(
            f"{place}: neither `messages` nor `prompt`; the row has {', '.join(row)}", "call one of them so"
        )
    messages = row[column]
    if column == "messages" and isinstance(messages, str):  # of a CSV file
        with suppress(ValueError):
            messages = json.loads(messages)
    if not isinstance(messages, list):
        if column == "messages":
            raise UserError(f"{place}: `messages` is no list", 'such as [{"role": "user", "content": "Hello!"}]')
        messages = [{"role": "user", "content": text_of(row, column, place)}]
    for number, message in enumerate(messages, 1):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ROLES or not isinstance(content, str) or not content.strip():
            wrong = f"its role is {role!r}" if role not in ROLES else "its content is empty or no text"
            raise UserError(
                f"{place}: message {number} of {len(messages)}: {wrong}",
                f'each is {{"role": ..., "content": "..."}}, the roles are {", ".join(ROLES)}',
            )
        text_of(message, "content", f"{place}: message {number}")  # half a character
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise UserError(f"{place}: the last message is not the user's", "there is nothing to answer")
    return column, messages
