"""What the tiny recipes learn from: the stories of stories.py, and what is asked about them.

python recipes/tiny/lessons.py [DIR]   writes the files into DIR (default: here)

The same seed gives the same files. Every answer is one of the facts that the reader in stories.py finds in the story.
"""

import csv
import gzip
import io
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stories import BOYS, COUNT, GIRLS, PLACES, SEED, SLOTS, Story, parse, write_ending, write_stories

ASKED = 1_500  # the stories that questions.json asks about
TAGGED = 500
TOLD = 1_000  # the stories of choices, summaries and chats
ACTS = {"toy": "have back", "cake": "bake", "craft": "build", "plant": "grow"}  # what a hero wants to do, by wish
SILENCE = "The story does not say."


class Question(NamedTuple):
    """A question about a story, the words that answer it ("" where the story does not say), and the answer in full."""

    question: str
    answer: str = ""
    sentence: str = SILENCE


def questions(story: Story, rng: random.Random) -> list[Question]:
    """Three questions that the story answers and one that it does not, in random order."""
    name, thing, helper = story.name, story.thing, story.helper
    act, toy = ACTS[story.wish], story.wish == "toy"
    answered = [
        Question("Who is the story about?", name, f"The story is about {name}."),
        Question(f"Where did {name} live?", story.home, f"{name} lived {story.home}."),
        Question(
            f"What did {name} want to {act}?",
            thing,
            f"{name} wanted to have the {thing} back." if toy else f"{name} wanted to {act} a {thing}.",
        ),
        Question(f"Who tried to help {name}?", helper, f"{helper.capitalize()} tried to help {name}."),
        Question(f"Where was the {thing}?", story.obstacle, f"The {thing} was {story.obstacle}.")
        if toy
        else Question(
            f"Why was it hard to {act} the {thing}?", story.obstacle, f"It was hard because {story.obstacle}."
        ),
    ]
    stranger = rng.choice([other for other in BOYS + GIRLS if other != name])
    unanswered = [
        f"Where did {stranger} live?",
        f"Who did {stranger} live with?",
        f"What did {stranger} want to {act}?",
        f"Who tried to help {stranger}?",
        f"Where did the {helper.split()[-1]} live?",
        f"How old was {name}?",
    ]
    chosen = [*rng.sample(answered, 3), Question(rng.choice(unanswered))]
    rng.shuffle(chosen)
    return chosen


def squad(number: int, text: str, asked: Sequence[Question]) -> dict[str, Any]:
    """A paragraph of questions.json, which has the format of SQuAD 2.0."""
    qas = [
        {
            "id": f"{number}-{place}",
            "question": question,
            "answers": [{"text": answer, "answer_start": text.index(answer)}] if answer else [],
            "is_impossible": not answer,
        }
        for place, (question, answer, _) in enumerate(asked)
    ]
    return {"context": text, "qas": qas}


def chat(text: str, asked: Sequence[Question], rng: random.Random) -> dict[str, Any]:
    """A story and the first two or three questions about it as a conversation."""
    messages: list[dict[str, str]] = []
    for question, _, sentence in asked[: rng.choice((2, 3))]:
        content = question if messages else f"{text}\n\n{question}"
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": sentence}]
    return {"messages": messages}


def tags(text: str, story: Story) -> Iterator[tuple[str, str]]:
    """Each word and mark of a story with its tag in IOB2: WHO are the hero and the helper, WHERE is their place.

    A mention is a name, or a noun with its adjective and without its article; pronouns and the mother are none.
    """
    _, age, helper = story.helper.split()
    *_, look, place = story.home.split()
    mention = rf"\b(?:(?P<WHO>{story.name}|(?:{age} )?{helper})|(?P<WHERE>(?:{look} )?{place}))\b"
    for found in re.finditer(rf"{mention}|\w+|[^\w\s]", text):
        for number, word in enumerate(found[0].split()):
            yield word, f"{'I' if number else 'B'}-{found.lastgroup}" if found.lastgroup else "O"


def choices(text: str, story: Story, rng: random.Random) -> dict[str, Any]:
    """A story without its last two sentences, and four endings, of which one fits.

    Two end well and two badly; one of each two has the helper, the place and the thing of the story, the other has
    others. So the endings by themselves do not tell which is right: all speak of the hero, and no detail occurs more.
    """
    context, *ending = text.rsplit(". ", 2)

    def another(told: str, values: Sequence[str]) -> str:
        return rng.choice([value for value in values if value != told])

    _, age, helper = story.helper.split()
    strange = story._replace(
        thing=another(story.thing, SLOTS[story.wish]),
        helper=f"{age} {another(helper, SLOTS['helper'])}",
        home=another(story.home, tuple(PLACES.values())),
    )
    wrong = [story._replace(happy=not story.happy), strange, strange._replace(happy=not strange.happy)]
    endings = [". ".join(ending), *(write_ending(each, rng) for each in wrong)]
    order = rng.sample(range(4), 4)
    return {"context": f"{context}.", "choices": [endings[i] for i in order], "label": order.index(0)}


def summary(story: Story) -> str:
    """The line that a story could begin with: who wanted what, who came to help, and what came of it."""
    his, him = ("his", "him") if story.pronoun == "he" else ("her", "her")
    wish = f"{his} {story.thing} back" if story.wish == "toy" else f"to {ACTS[story.wish]} a {story.thing}"
    came = f"and {story.helper} helped {him}" if story.happy else f"but {story.helper} could not help {him}"
    return f"{story.name} wanted {wish}, {came}."


# ----------------------------------------------------------------------------------------------------------- the files


def dice(text: str, seed: int) -> random.Random:
    """The same throws for the same story, wherever it stands."""
    return random.Random(f"{seed}: {text}")


def _csv(header: Sequence[str], rows: Iterator[tuple[str, str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def _json_lines(rows: Iterator[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def contents(seed: int = SEED, count: int = COUNT) -> dict[str, str]:
    """What each file holds: all of them are about the same stories in the same order."""
    told = [(text, story) for text in write_stories(seed, count) if (story := parse(text))]
    rng = random.Random(seed)
    asked = [questions(story, rng) for _, story in told[:ASKED]]
    paragraphs = ",\n".join(json.dumps(squad(i, told[i][0], each)) for i, each in enumerate(asked))
    articles = f'[{{"title": "stories", "paragraphs": [\n{paragraphs}\n]}}]'

    return {
        "stories.txt": "".join(f"{text}\n" for text, _ in told),
        "questions.json": f'{{"version": "v2.0", "data": {articles}}}\n',
        "tags.conll.gz": "\n".join(
            "".join(f"{word} {tag}\n" for word, tag in tags(text, story)) for text, story in told[:TAGGED]
        ),
        "choices.jsonl.gz": _json_lines(choices(text, story, dice(text, seed)) for text, story in told[:TOLD]),
        "summaries.csv.gz": _csv(
            ("text", "summary"), ((text.partition(". ")[2], summary(story)) for text, story in told[:TOLD])
        ),
        "chats.jsonl.gz": _json_lines(
            chat(text, each, dice(text, seed)) for (text, _), each in zip(told[:TOLD], asked[:TOLD], strict=True)
        ),
    }


def write_files(folder: Path, seed: int = SEED, count: int = COUNT) -> None:
    """Write the files; where a name ends in `.gz`, compressed and without the time of writing."""
    for name, content in contents(seed, count).items():
        raw = content.encode("ascii")
        (folder / name).write_bytes(gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)


if __name__ == "__main__":
    write_files(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
