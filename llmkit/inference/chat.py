"""Converse with a chat model: on the terminal, from a pipe, or over the rows of a file."""

import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from llmkit.data.output import Output
from llmkit.errors import UserError, in_words, say
from llmkit.inference import batch, generate, rows_to_answer
from llmkit.runs import finished
from llmkit.terminal import as_is, colours, painted

if TYPE_CHECKING:
    from llmkit.models.quantization import Precision

HELP = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer, /help shows this again"
PROMPT = "> "
RESERVED = 4  # an answer has room for max_new_tokens, or for 1/4 of the positions if that is less

Message = dict[str, Any]


@dataclass
class Conversation:
    """A session and the messages so far: the system's, if there is one, then the user's and the assistant's in turn.

    `cache` holds the keys and values of `cached_tokens`, used as long as the next input begins with those tokens.
    """

    session: generate.GenerationSession
    messages: list[Message]
    cached_tokens: list[int] = field(default_factory=list)
    cache: Any = None


def chat(
    question: str | None,
    name: str | None,
    options: dict[str, Any],
    system_prompt: str | None,
    seed: int | None,
    quantize: "Precision | None" = None,
) -> int:
    """Answer one question, or hold a conversation over stdin; return the exit code.

    Answers go to stdout as they are generated.

    Args:
        question: None reads messages from stdin until it ends.
        name: A run, a folder or a Hub id; None is the newest finished chat run.
        options: Fields of GenerationConfig, and the assistant's name.
        system_prompt: None takes that of the model's own recipe, "" is none.
        seed: What samples are drawn from.
        quantize: "int8" or "int4".

    Raises:
        UserError: The model has no chat template, or the question is empty.
    """
    if question is not None and not question.strip():
        raise UserError("the question is empty", "leave it out to start a conversation")
    session, system_prompt = load(name, options, system_prompt, seed, quantize)
    conversation = Conversation(session, [{"role": "system", "content": system_prompt}] if system_prompt else [])
    if question is None:
        return converse(conversation)
    answer(conversation, ask(conversation, question), Event())
    return 0


def chat_rows(
    source: Path,
    output: Output | None,
    name: str | None,
    options: dict[str, Any],
    system_prompt: str | None,
    seed: int | None,
    quantize: "Precision | None" = None,
) -> None:
    """Answer the conversation in each row of the file `source`, as JSON lines on stdout or in the file `output`.

    Rows are read as those to train on, up to the answer that is to be written; in a text file each line is a question.
    The other arguments are those of `chat`.
    """
    source = batch.check_rows(source, output)
    session, system_prompt = load(name, options, system_prompt, seed, quantize)
    reader = rows_to_answer.RowsToAnswer(session, system_prompt)

    def read(location: str, row: batch.Row) -> tuple[batch.Row, list[int]]:
        visible, fitted = reader.read(location, row)
        return visible, render(fitted.messages, session, f"{location}: ", fitted.tools)

    def decode(prompt: list[int], new: list[int]) -> str:
        return str(session.tokenizer.decode(new, skip_special_tokens=True))

    batch.write_rows(source, output, read, decode, session, chat=True, system_prompt=system_prompt)
    for note in reader.notes():
        say(f"note: {note}")


def settings(arguments: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """Read `KEY=VALUE` arguments: fields of GenerationConfig, and the `system_prompt`, where "" asks for none."""
    pairs = [(word, word.partition("=")) for word in arguments]
    system = [value for _, (key, _, value) in pairs if key == generate.SYSTEM]
    options = generate.settings([word for word, (key, _, _) in pairs if key != generate.SYSTEM], one=True)
    return options, system[-1] if system else None


def load(
    name: str | None,
    options: dict[str, Any],
    system_prompt: str | None,
    seed: int | None,
    quantize: "Precision | None" = None,
) -> tuple[generate.GenerationSession, str | None]:
    """Load a model that answers; return it and the system prompt. The arguments are those of `chat`.

    Raises UserError for a tokenizer without a chat template.
    """
    session = generate.load(name, "chat", options, seed, quantize)
    check_template(session)
    return session, system_prompt_of(session, system_prompt)


def check_template(session: generate.GenerationSession) -> None:
    """Raise UserError for a tokenizer without a chat template."""
    try:
        session.tokenizer.get_chat_template()
    except ValueError as problem:
        raise UserError(
            f"the tokenizer of `{session.name}` has no chat template: the model has not learned to answer",
            f'to continue a text: llmkit generate "..." --model {session.name}; to teach it to answer: '
            f"llmkit finetune --task chat model.name={session.name}",
        ) from problem


def system_prompt_of(session: generate.GenerationSession, given: str | None) -> str | None:
    """Return the system prompt that was `given`; where none was, that of the model's own recipe."""
    if given is not None:
        return given
    return getattr(finished.data_of(session.name, "chat"), "system_prompt", None)


# ---- the conversation ----------------------------------------------------------------------------------------------


def converse(conversation: Conversation) -> int:
    """Answer the lines of stdin until it ends; return 2 if a line of a pipe could not be answered, else 0."""
    terminal = sys.stdin.isatty()
    begin = list(conversation.messages)
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
            conversation.messages = list(begin)
        elif command:
            try:
                tokens = ask(conversation, line)
            except UserError as mistake:
                say(*mistake.lines())
                code = 0 if terminal else 2
                continue
            with interruptible() if terminal else nullcontext(Event()) as stop:
                answer(conversation, tokens, stop)
    return code


def typed() -> Iterator[str]:
    """Yield lines from the terminal, until Ctrl-D or two Ctrl-C in a row."""
    with suppress(ImportError):  # Windows
        import readline  # noqa: F401  with it, input() edits and recalls lines

    # input() edits where it writes its prompt: to stdout, which must be the terminal then.
    editing = sys.stdout.isatty()
    prompt = PROMPT if not colours(sys.stdout if editing else sys.stderr) else painted(PROMPT, "1;36")
    if editing and "readline" in sys.modules:  # which counts the columns of what is not marked as taking none
        prompt = re.sub("(\x1b[^m]*m)", "\x01\\1\x02", prompt)
    interrupted = False
    while True:
        try:
            if not editing:
                as_is(sys.stderr).write(prompt)
                sys.stderr.flush()
            line = input(prompt if editing else "")
            line.encode()
        except EOFError:
            say("")
            return
        except UnicodeError:
            say(*UserError("the line is not UTF-8", "check the encoding of the terminal (LC_ALL)").lines())
            continue
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            say("", "Ctrl-C again ends the conversation, as do Ctrl-D and /exit")
            continue
        interrupted = False
        yield line


def piped() -> Iterator[str]:
    """Yield the lines of stdin as they arrive; raise UserError for bytes that are not UTF-8."""
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
    """Yield an event that the first Ctrl-C sets; the second one ends the program as usual."""
    stop = Event()

    def press(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def ask(conversation: Conversation, question: str) -> list[int]:
    """Add the question to the conversation, drop its oldest turns until an answer fits, and return its tokens.

    Raises UserError, and leaves the conversation as it was, where the question alone is too long.
    """
    from llmkit.models.config import positions

    session = conversation.session
    messages = [*conversation.messages, {"role": "user", "content": question}]
    config = generate.choose_settings(session.model, session.tokenizer, session.options)
    limit = positions(session.model.config)
    dropped = 0
    while True:
        tokens = render(messages, session)
        users = [index for index, message in enumerate(messages) if message["role"] == "user"]
        if limit is None or len(users) == 1:
            break
        wanted = config.max_new_tokens or limit
        if len(tokens) + min(wanted, limit // RESERVED) <= limit:
            break
        del messages[users[0] : users[1]]
        dropped += 1
    generate.new_tokens(config, session.model, len(tokens), "the message, as the chat template writes it,")
    if dropped:
        turns = f"{dropped} turns are" if dropped > 1 else "turn is"
        say(f"note: the conversation is longer than the model's {limit:,} positions: its oldest {turns} forgotten")
    conversation.messages = messages
    return tokens


def answer(conversation: Conversation, tokens: list[int], stop: Event) -> None:
    """Stream the model's answer to stdout until it ends or `stop` is set, and add it to the conversation.

    `tokens` is the conversation as `ask` returns it.
    """
    import torch
    from transformers import DynamicCache, TextStreamer

    from llmkit.inference.prefill import CACHE

    session = conversation.session
    config = generate.generation_config(session.model, session.tokenizer, session.options, len(tokens))
    config.return_dict_in_generate = True
    options: dict[str, Any] = {}
    cached = conversation.cached_tokens
    if conversation.cache is not None and len(cached) < len(tokens) and tokens[: len(cached)] == cached:
        options[CACHE] = conversation.cache
        config.cache_implementation = None  # the cache exists already
    single_beam = config.num_beams == 1
    if single_beam:
        options["streamer"] = TextStreamer(session.tokenizer, skip_prompt=True, skip_special_tokens=True)

    def stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), stop.is_set(), device=ids.device)

    generated = generate.write(session, [tokens], config, stopping_criteria=[stopped], **options)
    sequence = generated.sequences[0].tolist()
    new = sequence[len(tokens) :]
    text = session.tokenizer.decode(new, skip_special_tokens=True)
    if not single_beam:
        print(text, flush=True)  # noqa: T201
    conversation.messages.append({"role": "assistant", "content": text})
    # The cache of a beam search, or one of a fixed size, cannot be reused.
    cache = generated[CACHE] if single_beam and type(generated.get(CACHE)) is DynamicCache else None
    conversation.cache = cache
    conversation.cached_tokens = sequence[: cache.get_seq_length()] if cache is not None else []
    if len(new) == config.max_new_tokens and not stop.is_set() and new[-1] not in generate.ends(config):
        say(f"note: cut off after {len(new):,} tokens; max_new_tokens={2 * len(new)} lets it write more")


def render(
    messages: list[Message],
    session: generate.GenerationSession,
    where: str = "",
    tools: list[dict[str, Any]] | None = None,
) -> list[int]:
    """Tokenize the conversation with the chat template, up to where the answer begins.

    `tools` are those that the model may call; `where` begins the message of the UserError for a conversation that the
    template refuses.
    """
    try:
        return list(
            session.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
        )
    except Exception as problem:  # a template is a program: it refuses, or it fails
        raise UserError(
            f"{where}the chat template of `{session.name}` refuses the conversation: {in_words(problem)}",
            "it decides which roles are allowed and in which order; some take no system prompt",
        ) from problem
