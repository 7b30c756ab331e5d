"""Write text with planted faults, the same for the same size and seed: `python tests/planted_text.py FILE MEGABYTES`.

Of a hundred documents about 5 are exact duplicates and 8 near duplicates of any earlier one (some of a near duplicate,
some of a page that thousands resemble), and 20 have another fault that a step of cleaning is for.
"""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

STOP_WORDS = "the be to of and that have with".split()  # noqa: SIM905
MOST = 4000  # earlier documents that duplicates are made of


def vocabulary(rng: random.Random, size: int = 20_000) -> list[str]:
    """Make up words."""
    parts = ["ba", "do", "ki", "lu", "me", "no", "ra", "si", "ta", "ve", "zo", "str", "an", "el", "or", "un"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(size)]


class Planted:
    """Documents one after the other, each with the name of its fault ("" for none)."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.words = vocabulary(self.rng)
        self.earlier: list[str] = []
        self.pages = [self.text(400).split(" ") for _ in range(20)]

    def text(self, length: int) -> str:
        """Write sentences of about so many words."""
        rng, written = self.rng, list[str]()
        drawn = iter(rng.choices(self.words, k=length))
        for word in drawn:
            sentence = [word, *(next(drawn, "end") for _ in range(7)), *rng.choices(STOP_WORDS, k=4)]
            written.append(" ".join(sentence).capitalize() + rng.choice([". ", ". ", "? ", ".\n"]))
        return "".join(written).strip()

    def altered(self, text: str, number: int) -> str:
        """Write so many words of a text in another way."""
        words = text.split(" ")
        for place in self.rng.choices(range(len(words)), k=number):
            words[place] = self.rng.choice(self.words)
        return " ".join(words)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        rng = self.rng
        while True:
            fault = rng.choices(
                ["exact", "near", "page", "repair", "control", "whitespace", "email", "short", "bullets", ""],
                [5, 5, 3, 3, 4, 5, 4, 2, 2, 67],
            )[0]
            text = self.text(int(rng.lognormvariate(5.3, 0.6)) + 40)
            if fault == "exact" and self.earlier:
                text = rng.choice(self.earlier)
            elif fault == "near" and self.earlier:
                text = self.altered(rng.choice(self.earlier), rng.choice([1, 2, 3, 5, 8, 13]))
            elif fault == "page":
                text = self.altered(" ".join(rng.choice(self.pages)), rng.choice([2, 5, 10, 20, 40]))
            elif fault == "repair":
                text = (text + "\nLe café de l'été était fermé à midi.").encode().decode("latin-1")
            elif fault == "control":
                text = text.replace(" the ", " th\u200be ").replace("a", "a\u00ad", 3)
            elif fault == "whitespace":
                text = "  " + text.replace(". ", ".  \r\n\u3000")
            elif fault == "email":
                text = f"{text}\nWrite to {rng.choice(self.words)}@example.com or +1 202 456 1111 today."
            elif fault == "short":
                text = " ".join(text.split(" ")[:12])
            elif fault == "bullets":
                text = "\n".join(f"- {line}" for line in text.replace(". ", ".\n").split("\n"))
            if len(self.earlier) < MOST:
                self.earlier.append(text)
            elif rng.random() < 0.1:
                self.earlier[rng.randrange(MOST)] = text
            yield text, fault


def write(file: Path, size: int, seed: int = 0) -> None:
    """Write documents of so many bytes as JSON lines."""
    written = 0
    with file.open("wb") as out:
        for text, _ in Planted(seed):
            written += out.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            if written >= size:
                return


if __name__ == "__main__":
    write(Path(sys.argv[1]), int(float(sys.argv[2]) * 1e6))
