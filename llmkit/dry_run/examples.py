"""Show training examples as the model reads them, with what is learned of them."""

import itertools
from collections.abc import Callable
from typing import Any

from rich.cells import set_cell_size

from llmkit.data.display import Report
from llmkit.data.rows.samples import tagged
from llmkit.terminal import columns_of, printable
from llmkit.training.assembly import Assembly

EXAMPLES = 3
LINES, TURN_LINES = 8, 30  # of an example, of a conversation


def show_examples(report: Report, task: str, assembly: Assembly, name: str = "examples") -> None:
    """Show the first examples that `task` learns from, behind a line that begins with `name`."""
    show = SHOW.get(task)
    if show is None:
        return
    train: Any = assembly.train
    how = "with each learned tag under its token" if show is _tags else "with what is learned in [[brackets]]"
    report.add(name, f"as the model reads them, {how}")
    for number in range(min(EXAMPLES, len(train))):
        report.lines(f"  {number + 1}", show(train, number, assembly, report.width))


def _folded(text: str, width: int, limit: int = LINES) -> list[str]:
    """Break a text into lines of `width` at most, at its own line ends too; of more than `limit` some are left out.

    Those that stay are the first, the last, and those where what is learned begins.
    """
    lines = list[str]()
    for line in text.split("\n"):
        line = printable(line)
        while columns_of(line) > width:
            size = next(i for i in range(width, 0, -1) if columns_of(line[:i]) <= width)
            size = line.rfind(" ", 0, size) + 1 or size
            lines.append(line[:size])
            line = line[size:]
        lines.append(line)
    if len(lines) > limit:
        begin = next((number for number, line in enumerate(lines) if "[[" in line), 0)
        kept = sorted({0, 1, 2, begin, min(begin + 1, len(lines) - 1), len(lines) - 2, len(lines) - 1})
        gaps = [later - earlier > 1 for earlier, later in itertools.pairwise([-1, *kept])]
        lines = [line for number, gap in zip(kept, gaps, strict=True) for line in ["..."] * gap + [lines[number]]]
    return lines


def _class(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, names = train[number], assembly.config.id2label
    label = example["labels"]
    if label.ndim:
        learned = ", ".join(str(names[i]) for i in label.nonzero()[0].tolist()) or "no class"
    else:
        learned = f"{label:g}" if label.dtype.kind == "f" else str(names[int(label)])
    return [*_folded(assembly.tokenizer.decode(example["input_ids"]), width), *_folded(f"[[{learned}]]", width)]


def _tags(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, names = train[number], assembly.config.id2label
    tokens = [assembly.tokenizer.decode([token]).strip() or "_" for token in example["input_ids"]]
    return tagged(tokens, [names[int(tag)] if tag >= 0 else "" for tag in example["labels"]], width)


def _answer(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, decode = train[number], assembly.tokenizer.decode
    ids, (first, last) = example["input_ids"], (int(place) for place in example["labels"])
    before, after = decode(ids[:first]).strip(), decode(ids[last + 1 :]).strip()
    if len(before) > 4 * width:
        before = f"{before[: 2 * width].rpartition(' ')[0]} ... {before[-2 * width :].partition(' ')[2]}"
    return _folded(f"{before} [[{decode(ids[first : last + 1]).strip()}]] {after[: 2 * width]}".strip(), width)


def _choices(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, lines, begin = train[number], list[str](), 0
    for choice, size in enumerate(int(size) for size in example["choices"] if size > 0):
        text = assembly.tokenizer.decode(example["input_ids"][begin : begin + size])
        right, text = choice == int(example["labels"]), printable(text)
        room = width - 4 * right
        if columns_of(text) > room:  # choices differ at their end
            text = f"...{set_cell_size(text[::-1], room - 3)[::-1]}"
        lines.append(f"[[{text}]]" if right else text)
        begin += size
    return lines


def _pair(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    example, decode = train[number], assembly.tokenizer.decode
    return [*_folded(decode(example["input_ids"]), width), *_folded(f"[[{decode(example['labels'])}]]", width)]


def _conversation(train: Any, number: int, assembly: Assembly, width: int) -> list[str]:
    from llmkit.tasks import chat

    return _folded(chat.shown(train, int(train.order[number]), assembly.tokenizer), width, TURN_LINES)


SHOW: dict[str, Callable[[Any, int, Assembly, int], list[str]]] = {
    "text-classification": _class,
    "token-classification": _tags,
    "question-answering": _answer,
    "multiple-choice": _choices,
    "seq2seq": _pair,
    "chat": _conversation,
}
