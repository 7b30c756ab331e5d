"""Write the data of the tutorials: what a bicycle workshop might have lying about. All of it is made up.

python workshop.py stories > stories.txt        4,000 jobs, a line each: plain text
python workshop.py names > names.jsonl          300 messages, with the places of names in them
python workshop.py letters > letters.jsonl      20 messages written by hand, with other names in other words
python workshop.py post > post.jsonl            40 further messages written by hand
python workshop.py questions > train.jsonl      800 questions about 200 reports
python workshop.py further > dev.jsonl          160 questions about 40 further reports
python workshop.py papers > papers.jsonl        15 questions about four papers written by hand, in other words
python workshop.py notes > notes.txt            6,000 notes in the workshop's shorthand, without labels
python workshop.py labels > labels.csv          120 complaints in that shorthand, with the part they are about
python workshop.py more > more.csv              600 other complaints, to check with
"""

import csv
import json
import random
import re
import sys
from collections.abc import Iterator
from typing import Any

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
COLOURS = ["red", "blue", "black", "green", "white", "silver", "yellow", "grey"]
KINDS = ["tourer", "city bike", "mountain bike", "cargo bike", "folding bike", "racer"]
MECHANICS = ["Nora", "Tom", "Aisha", "Jonas"]
FIRST = ["Nora", "Tom", "Aisha", "Jonas", "Lena", "Peter", "Ruth", "Samir", "Olga", "Ben", "Clara", "Hugo", "Ines"]
LAST = ["Lindqvist", "Okafor", "Brandt", "Rossi", "Novak", "Haddad", "Murphy", "Sato", "Weber", "Dubois", "Kaya"]
MAKES = ["Alder", "Brisk", "Corvo", "Dunlin", "Esker", "Fenn"]
MODELS = ["Tourer", "City 3", "Gravel", "Cargo", "Junior", "300", "Sport"]
PLACES = ["Harbour Street", "Mill Lane", "Station Square", "Kirkby", "Norton", "the Old Market", "Ashford", "Elm Road"]
# What is wrong, what is done about it, euros, minutes.
JOBS = [
    ("the chain skips", "fitted a new chain", 24, 20),
    ("the rear brake rubs", "set the rear brake", 12, 15),
    ("the front tyre is flat", "patched the front tube", 9, 10),
    ("the back wheel wobbles", "trued the back wheel", 18, 30),
    ("the lamp does not shine", "replaced the cable of the lamp", 15, 25),
    ("the saddle is torn", "put on a new saddle", 35, 5),
    ("the gears jump", "set the gears", 14, 20),
    ("the pedals creak", "greased the pedals", 8, 10),
    ("the bell is missing", "screwed on a bell", 6, 5),
    ("the brake pads are worn", "changed the brake pads", 22, 25),
]


def stories(rng: random.Random) -> Iterator[str]:
    """Tell of a bicycle that came in: what was wrong, what was done, what it cost. One or two things are wrong."""
    for _ in range(4_000):
        jobs = rng.sample(JOBS, rng.choice([1, 2, 2]))
        day = rng.randrange(len(DAYS))
        colour, kind, mechanic = rng.choice(COLOURS), rng.choice(KINDS), rng.choice(MECHANICS)
        owner = f"{rng.choice(['Mrs', 'Mr'])} {rng.choice(LAST)}"
        yield (
            f"On {DAYS[day]} {owner} brought a {colour} {kind}, because {' and '.join(job[0] for job in jobs)}. "
            f"{mechanic} {' and '.join(job[1] for job in jobs)}. "
            f"That took {sum(job[3] for job in jobs)} minutes and cost {sum(job[2] for job in jobs)} euros. "
            f"On {DAYS[(day + 1) % len(DAYS)]} {owner} came back for the {colour} {kind} and paid."
        )


MESSAGES = [
    "Hello, this is [{person}](PERSON). My [{bike}](BIKE) needs {what} before {day}.",
    "[{person}](PERSON) called: the [{bike}](BIKE) is ready to be fetched from [{place}](PLACE).",
    "Could you look at the [{bike}](BIKE) of [{person}](PERSON)? It stands in [{place}](PLACE).",
    "I live in [{place}](PLACE) and ride a [{bike}](BIKE). Do you have {what}? Regards, [{person}](PERSON)",
    "Please send {what} to [{person}](PERSON), [{place}](PLACE).",
    "We sold the [{bike}](BIKE) to [{person}](PERSON) on {day}.",
    "Is {what} for a [{bike}](BIKE) in stock? I can be there on {day}.",
    "[{person}](PERSON) from [{place}](PLACE) wants {what} by {day}.",
    "The shop in [{place}](PLACE) is closed on {day}.",
    "On {day} nobody was there. When do you open? [{person}](PERSON)",
    "Thank you for {what}! The [{bike}](BIKE) runs like new. [{person}](PERSON)",
    "Do you have {what}? I need it on {day}.",
]
THINGS = ["a new chain", "brake pads", "a lamp", "two tubes", "a bell", "a saddle", "a lock", "winter tyres", "a pump"]
LETTERS = """\
Dear workshop, [Maria Petrova](PERSON) here, the owner of the blue [Heron 500](BIKE). The chain came off again.
My son [Leo](PERSON) crashed near [Willow Bridge](PLACE), and now his fork is bent.
Can anyone drive to [Bakerstown](PLACE)? A customer is stuck there with her [Tarn Cargo](BIKE).
No news about the [Alder Gravel](BIKE) yet; [Mr Eriksen](PERSON) is getting impatient.
I bought the bell two weeks ago and it is already broken.
[Yusuf Demir](PERSON) has paid. His [Corvo 300](BIKE) may leave the building.
You will find me at [Number 9, Chapel Row](PLACE), opposite the bakery.
Yesterday I picked up my [Pico Junior](BIKE), and the left pedal clicks.
[Anna](PERSON) and [Emeka](PERSON) are both off sick, so we open at ten.
Which tyre fits a [Dunlin City 3](BIKE) in winter?
From [Ashford](PLACE) it is an hour by train, sadly.
The invoice for [Chiara Conti](PERSON) went to [Norton](PLACE) instead of [Kirkby](PLACE).
A [Brisk Sport](BIKE) was stolen in front of the library.
[Dr Hall](PERSON) asks whether the carrier of her [Fenn Tourer](BIKE) takes a child seat.
Nothing rattles any more, wonderful work!
Is the branch at [Queen's Gate](PLACE) open on Sundays?
Tell [Jonas](PERSON) that the spokes for the [Esker 300](BIKE) have come.
I am moving to [Riverside](PLACE) and would like to sell my [Osprey](BIKE).
Kind regards, [Thandiwe Mokoena](PERSON)
We need six helmets for the school in [Mill Lane](PLACE)."""

POST = """\
Good morning, my name is [Kofi Mensah](PERSON) and I have lost my helmet.
The red [Lark 20](BIKE) in your window, what does it cost?
[Ms Aydin](PERSON) will bring the money tomorrow.
We are on holiday in [Saltmarsh](PLACE) until the tenth.
After the rain the brakes of the [Marlin City](BIKE) squeal terribly.
Who of you talked to [Mrs O'Brien](PERSON) about the refund?
There was a letter for you at the library, by the way.
Our club meets every second Friday at the [Green Dragon](PLACE).
I would like to try the [Wren Sport](BIKE) for an afternoon.
[Piotr](PERSON) says the wheel is not round.
You can leave the parcel with the neighbours.
The road from [Highcliff](PLACE) to [Norton](PLACE) is full of holes.
Both tyres are new, but the bike still pulls to the left.
Has the frame of [Luisa Ferreira](PERSON) arrived from the painter?
A [Plover Cargo](BIKE) does not fit into our lift.
Signed: [D. Abebe](PERSON), chairman
The bakery next door is looking for its delivery bike, a [Swift Cargo](BIKE).
Two boys from [Oakfield School](PLACE) broke the pump.
Happy birthday, [Grandpa Willem](PERSON)!
Your mechanic [Farid](PERSON) was very kind to us.
I left a blue jacket on the chair in the corner.
Meet me at [Platform 4](PLACE) with the spare wheel.
It is the third puncture of the [Heron Gravel](BIKE) this month.
Ask for [Ingrid Solberg](PERSON) at the desk.
My daughter learned to ride on a [Robin Junior](BIKE) and wants a bigger one.
How long does the glue need to dry?
The new address is [27 Tanner Street](PLACE), second floor.
Nobody told [Mr Chowdhury](PERSON) that the shop moves to [Old Quay](PLACE).
The invoice is wrong: I paid in cash.
Could I swap my [Teal 700](BIKE) for something lighter?
The mayor opened the cycle path in [Birchwood](PLACE) yesterday.
[Jean-Luc](PERSON), [Mirela](PERSON) and I ride on Sunday.
The lights on the ferry to [Gull Island](PLACE) were brighter than mine.
For sale: [Crane Tourer](BIKE), hardly used, with bags.
[Professor Lindgren](PERSON) forgot her keys here again.
The lock is frozen, what can I do?
I came all the way from [Stonebridge](PLACE) for this saddle.
On the [Finch 3](BIKE) the bell rings by itself.
The chairs in the waiting room are broken, too.
Thanks, [Bjarne](PERSON)"""


def spans(marked: str) -> dict[str, Any]:
    """Turn `[Nora](PERSON) called` into a text and the places of its names."""
    text, labels = "", []
    for part in re.split(r"(\[[^]]+]\([A-Z]+\))", marked):
        if found := re.fullmatch(r"\[(.+)]\((.+)\)", part):
            labels.append([len(text), len(text) + len(found[1]), found[2]])
            part = found[1]
        text += part
    return {"text": text, "label": labels}


def names(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Write messages of customers with their persons, bicycles and places."""
    for _ in range(300):
        yield spans(
            rng.choice(MESSAGES).format(
                person=rng.choice(FIRST) + rng.choice(["", f" {rng.choice(LAST)}"]),
                bike=f"{rng.choice(MAKES)} {rng.choice(MODELS)}",
                place=rng.choice(PLACES),
                what=rng.choice(THINGS),
                day=rng.choice(DAYS),
            )
        )


def letters(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Write the messages that were written by hand."""
    yield from map(spans, LETTERS.splitlines())


def post(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Write further messages that were written by hand."""
    yield from map(spans, POST.splitlines())


REPORT = [  # what a sentence says, what it may be asked, what answers
    ("{person} brought the {bike} to us on {day}.", "Who brought the bicycle?", "{person}"),
    ("It had been standing in {place} since {month}.", "Where had it been standing?", "in {place}"),
    ("{mechanic} found that {wrong}, and {done}.", "What was wrong?", "{wrong}"),
    ("The bill came to {euros} euros.", "How much was the bill?", "{euros} euros"),
    ("A test ride of {km} kilometres showed nothing further.", "How long was the test ride?", "{km} kilometres"),
    ("The next service is due in {year}.", "When is the next service due?", "{year}"),
]
MONTHS = ["January", "March", "April", "June", "September", "November"]


def questions(rng: random.Random, number: int = 200) -> Iterator[dict[str, Any]]:
    """Ask four questions about each report; a sentence in five is left out of it, and then there is no answer."""
    for _ in range(number):
        wrong, done, euros, _minutes = rng.choice(JOBS)
        words = {
            "person": f"{rng.choice(FIRST)} {rng.choice(LAST)}",
            "bike": f"{rng.choice(MAKES)} {rng.choice(MODELS)}",
            "day": rng.choice(DAYS),
            "place": rng.choice(PLACES),
            "month": rng.choice(MONTHS),
            "mechanic": rng.choice(MECHANICS),
            "wrong": wrong,
            "done": done,
            "euros": euros + rng.randrange(20),
            "km": rng.randrange(2, 30),
            "year": rng.randrange(2027, 2031),
        }
        present = [rng.random() < 0.8 for _ in REPORT]
        if not any(present):
            present[0] = True
        context = " ".join(said.format(**words) for (said, _, _), there in zip(REPORT, present, strict=True) if there)
        for (_said, question, answer), there in rng.sample(list(zip(REPORT, present, strict=True)), 4):
            text = answer.format(**words)
            yield asked(question, context, text if there else "")


def asked(question: str, context: str, answer: str) -> dict[str, Any]:
    """Make a row of SQuAD's layout; no answer is an empty list."""
    answers = (
        {"text": [answer], "answer_start": [context.index(answer)]} if answer else {"text": [], "answer_start": []}
    )
    return {"question": question, "context": context, "answers": answers}


PAPERS = {  # written by hand: each question with its answer, or with nothing
    "Guarantee. We stand by our work for six months. Tyres, tubes and chains wear out, so for them it is thirty days. "
    "Show the receipt that Aisha gives you when you pay.": {
        "How long is the guarantee on a chain?": "thirty days",
        "Who gives you the receipt?": "Aisha",
        "How long do you stand by your work?": "six months",
        "What does a receipt cost?": "",
    },
    "Key plan. The front door is opened at half past eight by whoever comes first. The cellar, where the cargo bikes "
    "stand, has a lock of its own, and its key hangs behind the coffee machine.": {
        "When is the front door opened?": "half past eight",
        "Where is the key of the cellar?": "behind the coffee machine",
        "What stands in the cellar?": "the cargo bikes",
        "Who closes the front door?": "",
    },
    "Letter of 3 May. Dear Mr Eriksen, your order of forty reflectors has arrived from Trieste. One box was wet, and "
    "we have sent it back. The rest is yours for 96 euros. Yours, Ines Rossi": {
        "How many reflectors were ordered?": "forty",
        "Where did the order arrive from?": "Trieste",
        "Who wrote the letter?": "Ines Rossi",
        "When will the box be replaced?": "",
    },
    "Minutes. Nora suggests that the workshop close in the last week of August. Tom would rather paint the walls then. "
    "It is agreed to do both.": {
        "Who would rather paint the walls?": "Tom",
        "When should the workshop close?": "the last week of August",
        "What colour will the walls be?": "",
    },
}


def papers(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Ask the questions about the papers that were written by hand."""
    for context, pairs in PAPERS.items():
        for question, answer in pairs.items():
            yield asked(question, context, answer)


# The workshop's shorthand: parts, what may be wrong with them, and what is done, by the group that a part belongs to.
SHORTHAND = {
    "brakes": (
        ["pds", "rtr", "clpr", "V-arms", "lvr L", "lvr R", "hose", "DOT", "bowden", "shoes"],
        ["glzd", "rubs", "squeals", "spongy", "no bite"],
        ["bled", "new pds", "set clpr"],
    ),
    "drive": (
        ["chn", "csst", "RD", "FD", "BB", "cr-arm", "jockey", "frwhl", "hanger", "ring 42"],
        ["skips", "grinds", "drops off", "ghost shifts", "clicks u load"],
        ["new chn", "indexed", "greased BB"],
    ),
    "wheels": (
        ["spks", "rim", "hub F", "hub R", "tube", "tyr", "vlv", "QR", "thru-ax", "tape"],
        ["8mm off", "slow punct", "play", "pinched", "bulge"],
        ["trued", "patched", "new tyr"],
    ),
    "light": (
        ["dyn", "LED F", "LED R", "loom", "SON", "plug 2p", "sw hbar", "6V out", "stby", "refl"],
        ["dead", "flickers", "dim", "corroded", "intermittent"],
        ["resoldered", "new loom", "cleaned plug"],
    ),
}


def complaint(rng: random.Random, part: str) -> str:
    """Write what a customer says is wrong, as the workshop notes it: two parts of a group, or one and its trouble."""
    parts, troubles, _ = SHORTHAND[part]
    first, second = rng.sample(parts, 2)
    return rng.choice(
        [
            f"{first} + {second}",
            f"chk {first}, {second}",
            f"{first} {rng.choice(troubles)}",
            f"{second}? asks re {first}",
        ]
    )


def notes(rng: random.Random) -> Iterator[str]:
    """Write jobs in shorthand: a complaint, further words about the same part, and what was done."""
    for _ in range(6_000):
        part = rng.choice(list(SHORTHAND))
        parts, troubles, done = SHORTHAND[part]
        yield (
            f"{complaint(rng, part)}. {rng.choice(parts)} {rng.choice(troubles)}, {rng.choice(parts)} "
            f"{rng.choice(troubles)}. {rng.choice(done)}, {part} ok"
        )


def labels(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Write complaints with the group of parts they are about."""
    for _ in range(120):
        part = rng.choice(list(SHORTHAND))
        yield {"complaint": complaint(rng, part), "part": part}


def more(rng: random.Random) -> Iterator[dict[str, Any]]:
    """Write complaints that differ from those and from one another."""
    written = {row["complaint"] for row in labels(random.Random("labels"))}
    enough = len(written) + 600
    while len(written) < enough:
        part = rng.choice(list(SHORTHAND))
        text = complaint(rng, part)
        if text not in written:
            written.add(text)
            yield {"complaint": text, "part": part}


def write(what: str) -> None:
    """Write one kind of data to stdout; the seed is fixed, so that it is the same every time."""
    rng = random.Random(what)
    if what in ("stories", "notes"):
        print(*globals()[what](rng), sep="\n")
    elif what in ("labels", "more"):
        rows = list(globals()[what](rng))
        table = csv.DictWriter(sys.stdout, ["complaint", "part"], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    else:
        rows = list(questions(rng, 40) if what == "further" else globals()[what](rng))
        print(*map(json.dumps, rows), sep="\n")


if __name__ == "__main__":
    write(sys.argv[1])
