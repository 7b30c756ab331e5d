"""Four thousand short stories, all written by the grammar below; lessons.py writes them and what is asked about them.

One grammar serves twice: a `Writer` walks through it with dice, a `_Reader` with the text of a story that it has never
seen. So `check(text)` can say whether a model's story is whole: every sentence known and in its place, the same hero,
wish and helper from beginning to end, and an ending that follows from what happened.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

SEED = 1
COUNT = 4_000
WORDS = (80, 120)  # what the writer keeps to
READABLE = (60, 140)  # what the checker accepts

# ---------------------------------------------------------------------------------------------------------- the grammar

# A {slot} keeps its value through the story; [one|two] is a choice of the moment and binds nothing.
BOYS = ("Ben", "Finn", "Jack", "Leo", "Max", "Pip", "Sam", "Tom")
GIRLS = ("Anna", "Ella", "Ida", "Lily", "Lucy", "Mia", "Nora", "Ruby")
PLACES = {
    "mill": "in an old mill",
    "hill": "on a green hill",
    "village": "in a quiet village",
    "cottage": "in a stone cottage",
    "farm": "on a busy farm",
    "castle": "in a small castle",
    "meadow": "in a sunny meadow",
    "barn": "in a big barn",
    "harbor": "by a blue harbor",
    "lighthouse": "in a white lighthouse",
}
SLOTS: dict[str, tuple[str, ...]] = {
    "name": BOYS + GIRLS,
    "he": ("he", "she"),
    "his": ("his", "her"),
    "nature": ("a little", "a shy", "a brave", "a cheerful", "a young", "a gentle", "a clever", "a curious"),
    "kind": ("boy", "girl", "fox", "rabbit", "mouse", "cat", "bear", "duck", "frog", "squirrel", "hedgehog", "puppy"),
    "home": tuple(PLACES.values()),
    "place": tuple(PLACES),
    "time": ("morning", "day", "afternoon", "evening"),
    "color": ("red", "blue", "green", "yellow", "white", "black", "silver", "golden"),
    "toy": ("kite", "ball", "drum", "bell", "hat", "scarf", "whistle", "puppet", "flute", "ribbon", "doll", "lantern"),
    "cake": ("cake", "pie", "tart", "bun"),
    "craft": ("boat", "chair", "cart", "sled"),
    "plant": ("rose", "sunflower", "pumpkin", "melon"),
    "age": ("an old", "a kind", "a wise", "a friendly", "a strong", "a cheerful"),
    "helper": ("badger", "goat", "donkey", "beaver", "pony", "farmer", "baker", "sailor"),
}
THINGS = ("toy", "cake", "craft", "plant")  # the four kinds of wishes
SLOTS["thing"] = tuple(thing for wish in THINGS for thing in SLOTS[wish])


class Option(NamedTuple):
    """One way to tell a part of the story, what it decides, and how often it is taken."""

    template: str
    decides: dict[str, str] = {}  # noqa: RUF012
    weight: int = 1


OPENING = [
    Option("Once upon a time there was {nature} {kind} [named|called] {name}.", weight=65),
    Option("Long ago there was {nature} {kind} [named|called] {name}.", weight=15),
    Option("In a land far away there was {nature} {kind} [named|called] {name}.", weight=10),
    Option("This is the story of {nature} {kind} [named|called] {name}.", weight=10),
]
HOME = [
    Option("{name} lived {home} with {his} mother."),
    Option("{name} and {his} mother lived {home}."),
]
WISH = [
    Option("One {time} {name} lost {his} {color} {toy} and wanted it back.", weight=3),
    Option("{name} loved {his} {color} {toy}. One {time} it was gone, and {he} wanted it back.", weight=3),
    Option("One {time} {name} could not find {his} {color} {toy} and wanted it back.", weight=3),
    Option("One {time} {name} wanted to bake a [plum|honey|cherry] {cake} for {his} mother.", weight=2),
    Option("One {time} {name} wanted to build a [new|small|fine] {craft} for {his} mother.", weight=2),
    Option("One {time} {name} wanted to grow a [big|lovely|special] {plant} for {his} mother.", weight=2),
]


class Turn(NamedTuple):
    """What the helper does, and how that comes out well or badly."""

    deed: str
    won: str
    lost: str


class Obstacle(NamedTuple):
    """What is in the way of a wish (`answer`: the words that say it) and what may be done about it."""

    wish: str
    sentence: str
    answer: str
    cannot: str
    turns: tuple[Turn, ...]


_SEEN = "[At last|Later|Then] {he} saw the {thing} "
OBSTACLES = [
    Obstacle("toy", _SEEN + "high up in an old tree near the {place}.",
             "high up in an old tree", "climb the tree", (
        Turn("The {helper} put a long ladder on the tree.",
             "{name} climbed up and took the {thing} from the branch.",
             "The ladder was too short, and the {thing} stayed on the branch."),
        Turn("The {helper} took hold of the tree and shook it.",
             "The leaves flew, and the {thing} fell into the grass.",
             "Only leaves fell into the grass, and the {thing} did not move."),
        Turn("The {helper} threw a rope over the branch and pulled.",
             "The branch bent down, and {name} took the {thing}.",
             "The rope broke, and the {thing} flew away in the wind."),
    )),
    Obstacle("toy", _SEEN + "at the bottom of a deep pond near the {place}.",
             "at the bottom of a deep pond", "swim so deep", (
        Turn("The {helper} pulled a big net through the water.",
             "Up came the net, and the {thing} was in it.",
             "Up came the net, but the {thing} was not in it."),
        Turn("The {helper} tied a hook to a string and let it down.",
             "The hook caught the {thing}, and {name} pulled it up.",
             "The string broke, and the {thing} sank into the mud."),
        Turn("The {helper} took a deep breath and jumped into the water.",
             "Up came the {helper} with the {thing}.",
             "Up came the {helper} without the {thing}."),
    )),
    Obstacle("toy", _SEEN + "on the far side of a wide river near the {place}.",
             "on the far side of a wide river", "cross the river", (
        Turn("The {helper} made a raft and pushed it into the river.",
             "The raft held, and {name} took the {thing}.",
             "The raft broke, and the river took the {thing} away."),
        Turn("The {helper} laid a long log across the river.",
             "{name} walked over the log and took the {thing}.",
             "The log rolled away, and nobody could get the {thing}."),
        Turn("The {helper} rolled big rocks into the river.",
             "{name} jumped from rock to rock and took the {thing}.",
             "The rocks sank, and nobody could get the {thing}."),
    )),
    Obstacle("toy", _SEEN + "under a heavy stone near the {place}.",
             "under a heavy stone", "lift the stone", (
        Turn("The {helper} pushed a strong pole under the stone.",
             "The stone rolled away, and {name} picked up the {thing}.",
             "The pole broke, and the stone fell on the {thing}."),
        Turn("The {helper} dug a hole beside the stone.",
             "{name} reached into the hole and pulled out the {thing}.",
             "The hole filled with mud, and the {thing} sank into it."),
        Turn("The {helper} counted to three, and they both pushed.",
             "The stone moved, and {name} picked up the {thing}.",
             "The stone did not move, and the {thing} stayed under it."),
    )),
    Obstacle("toy", _SEEN + "deep inside a dark cave near the {place}.",
             "deep inside a dark cave", "see in the dark", (
        Turn("The {helper} lit a lamp and went into the cave.",
             "In the light {name} found the {thing}.",
             "The lamp went out, and {name} never found the {thing}."),
        Turn("The {helper} tied a long string to {name}.",
             "{name} found the {thing} and followed the string back.",
             "The string broke, and {name} never found the {thing}."),
        Turn("The {helper} asked the bats to look in the cave.",
             "The bats found the {thing} and gave it to {name}.",
             "The bats were asleep, and nobody brought the {thing}."),
    )),
    Obstacle("toy", _SEEN + "in the middle of a thorny bush near the {place}.",
             "in the middle of a thorny bush", "reach so far", (
        Turn("The {helper} held back the thorns with a stick.",
             "{name} reached into the bush and took the {thing}.",
             "The stick broke, and the thorns closed over the {thing}."),
        Turn("The {helper} cut the thorns with a knife.",
             "Soon there was a path, and {name} took the {thing}.",
             "The knife was too dull, and the thorns kept the {thing}."),
        Turn("The {helper} put on thick gloves and reached into the bush.",
             "Out came the {thing}, and it was safe.",
             "The gloves tore, and the {thing} stayed in the thorns."),
    )),
    Obstacle("cake", "But the oven at the {place} was cold, and there was no dry wood.",
             "there was no dry wood", "light the fire", (
        Turn("The {helper} brought a bag of dry wood.",
             "The fire burned bright, and the {thing} came out warm and sweet.",
             "The rain put out the fire, and the {thing} was never baked."),
        Turn("The {helper} had a hot oven and let {name} use it.",
             "They waited, and the {thing} came out warm and sweet.",
             "They waited too long, and the {thing} burned black."),
    )),
    Obstacle("cake", "But there was no flour at the {place}.",
             "there was no flour", "find any flour", (
        Turn("The {helper} gave {name} a new bag of flour.",
             "They baked all day, and the {thing} came out warm and sweet.",
             "The bag had a hole, and there was no flour for the {thing}."),
        Turn("The {helper} went from door to door and asked for flour.",
             "Each house gave a cup, and it was enough for the {thing}.",
             "The doors stayed closed, and there was no flour for the {thing}."),
    )),
    Obstacle("craft", "But there were no nails at the {place}.",
             "there were no nails", "join the boards", (
        Turn("The {helper} found a few old nails.",
             "{name} used them all, and the {thing} was strong and fine.",
             "The nails were bent, and the {thing} fell to pieces."),
        Turn("The {helper} tied the boards with a rope.",
             "The knots held, and the {thing} was strong and fine.",
             "The knots came loose, and the {thing} fell to pieces."),
    )),
    Obstacle("craft", "There was wood at the {place}, but the boards were too long.",
             "the boards were too long", "cut the boards", (
        Turn("The {helper} brought a sharp saw.",
             "They worked all day, and the {thing} was strong and fine.",
             "The saw broke in two, and the {thing} was never made."),
        Turn("The {helper} took a knife to the boards.",
             "They worked bit by bit, and the {thing} was strong and fine.",
             "The knife cut too much, and the {thing} fell to pieces."),
    )),
    Obstacle("plant", "But no rain came to the {place}, and the ground was dry.",
             "no rain came", "find any water", (
        Turn("The {helper} carried water from the well.",
             "The seed drank it, and the {thing} grew day by day.",
             "The well ran dry, and the {thing} did not grow."),
        Turn("The {helper} asked the clouds for rain.",
             "It rained all week, and the {thing} grew day by day.",
             "The clouds flew away, and the {thing} did not grow."),
    )),
    Obstacle("plant", "But near the {place} the ground was full of stones.",
             "the ground was full of stones", "dig the ground", (
        Turn("The {helper} pulled a plow through the ground.",
             "The ground was soft now, and the {thing} grew day by day.",
             "The plow broke, and the {thing} did not grow."),
        Turn("The {helper} took out the stones one by one.",
             "{name} put in the seed, and the {thing} grew day by day.",
             "It took all summer, and it was too late for the {thing}."),
    )),
]  # fmt: skip
TRIED = [
    Option("{name} was small and could not {cannot}."),
    Option("{name} tried, but {he} could not {cannot}."),
    Option("{He} tried and tried and could not {cannot}."),
]
MET = [
    Option("Just then {he} met {age} {helper}."),
    Option("Soon {name} told the story of the {thing} to {age} {helper}."),
    Option("{name} cried about the {thing} until {he} met {age} {helper}."),
]
CLOSING = {
    "won": (
        [
            Option("{name} thanked the {helper} and carried the {thing} home to the {place}."),
            Option("{name} hugged the {helper} and went home to the {place} with the {thing}."),
            Option("The {helper} was glad, and {name} went home to the {place} with the {thing}."),
            Option("{name} danced with the {helper} and had the {thing} to carry home to the {place}."),
        ],
        [
            Option("{His} mother thanked the {helper}, and {name} slept well that night."),
            Option("{His} mother smiled, and {name} never forgot the {helper}."),
            Option("From that day on {name} and the {helper} were friends."),
            Option("{name} was happy and showed the {thing} to {his} mother."),
        ],
    ),
    "lost": (
        [
            Option("{name} thanked the {helper} and went home to the {place} without the {thing}."),
            Option("{name} hugged the {helper} and carried nothing home to the {place}."),
            Option("The {helper} was sorry, and {name} went home to the {place} without the {thing}."),
            Option("{name} cried with the {helper} and had no {thing} to carry home to the {place}."),
        ],
        [
            Option("{His} mother thanked the {helper}, but {name} did not sleep that night."),
            Option("{His} mother was kind, but {name} never forgot the {thing}."),
            Option("That night {name} and the {helper} were sad about the {thing}."),
            Option("{name} was not happy and had no {thing} to show to {his} mother."),
        ],
    ),
}
OBSTACLE = {
    wish: [Option(o.sentence, {"obstacle": o.answer, "cannot": o.cannot}) for o in OBSTACLES if o.wish == wish]
    for wish in THINGS
}
DEED = {o.answer: [Option(turn.deed, {"turn": turn.deed}) for turn in o.turns] for o in OBSTACLES}
OUTCOME = {
    turn.deed: [Option(turn.won, {"outcome": "won"}), Option(turn.lost, {"outcome": "lost"})]
    for o in OBSTACLES
    for turn in o.turns
}
SLOTS["cannot"] = tuple(o.cannot for o in OBSTACLES)


def _implied(slot: str, value: str) -> dict[str, str]:
    """What a value settles about other slots: a name its pronouns, a home its place, a toy the thing that is wished."""
    if slot == "name" or (slot == "kind" and value in ("boy", "girl")):
        male = value in BOYS or value == "boy"
        return {"he": "he", "his": "his"} if male else {"he": "she", "his": "her"}
    if slot == "home":
        return {"place": next(place for place, home in PLACES.items() if home == value)}
    return {"thing": value, "wish": slot} if slot in THINGS else {}


class Story(NamedTuple):
    """The facts of a story that holds together."""

    name: str
    kind: str
    pronoun: str
    home: str
    wish: str
    thing: str
    obstacle: str
    helper: str
    happy: bool


class _Teller(Protocol):
    """Whoever walks through the grammar: tells (or recognises) one part and notes its facts."""

    facts: dict[str, str]

    def part(self, options: Sequence[Option]) -> None: ...


class Grammar(NamedTuple):
    """What the machinery below must know of a language.

    `implied` says what a value settles about other slots, `walk` in which order the parts are told, and `options` are
    all of them. `between` stands between two sentences. A story has as many units, which `units` counts, as `written`
    says; the checker accepts `readable`.
    """

    slots: Mapping[str, tuple[str, ...]]
    implied: Callable[[str, str], dict[str, str]]
    walk: Callable[[_Teller], None]
    options: Sequence[Sequence[Option]]
    between: str
    unit: str
    units: Callable[[str], int]
    written: tuple[int, int]
    readable: tuple[int, int]


def _walk(teller: _Teller) -> None:
    """The order of a story: each part may depend on what earlier parts have settled."""
    facts = teller.facts
    for options in (OPENING, HOME, WISH):
        teller.part(options)
    teller.part(OBSTACLE[facts["wish"]])
    teller.part(TRIED)
    teller.part(MET)
    teller.part(DEED[facts["obstacle"]])
    teller.part(OUTCOME[facts["turn"]])
    for options in CLOSING[facts["outcome"]]:
        teller.part(options)


_PARTS = [OPENING, HOME, WISH, TRIED, MET, *OBSTACLE.values(), *DEED.values(), *OUTCOME.values()]
ENGLISH = Grammar(
    slots=SLOTS,
    implied=_implied,
    walk=_walk,
    options=[*_PARTS, *CLOSING["won"], *CLOSING["lost"]],
    between=" ",
    unit="words",
    units=lambda text: len(text.split()),
    written=WORDS,
    readable=READABLE,
)

# -------------------------------------------------------------------------------------------------------------- writing


class Writer:
    """Tells a story with dice."""

    def __init__(self, rng: random.Random, grammar: Grammar) -> None:
        self.rng, self.grammar = rng, grammar
        self.facts: dict[str, str] = {}
        self.sentences: list[str] = []

    def part(self, options: Sequence[Option]) -> None:
        option = self.rng.choices(options, [option.weight for option in options])[0]
        self.facts.update(option.decides)
        text = re.sub(r"\[(.+?)\]", lambda choice: self.rng.choice(choice[1].split("|")), option.template)
        self.sentences.append(re.sub(r"\{(\w+)\}", lambda slot: self._fill(slot[1]), text))

    def _fill(self, slot: str) -> str:
        key = slot.lower()
        implied = self.grammar.implied
        if key not in self.facts:
            fitting = [value for value in self.grammar.slots[key] if not _conflicts(self.facts, implied(key, value))]
            value = self.rng.choice(fitting)
            self.facts.update(implied(key, value), **{key: value})
        return self.facts[key].capitalize() if slot[0].isupper() else self.facts[key]

    @property
    def text(self) -> str:
        return self.grammar.between.join(self.sentences)


def _conflicts(facts: dict[str, str], new: dict[str, str]) -> list[str]:
    return [f"{slot} was {facts[slot]!r}, now {new[slot]!r}" for slot in new if facts.get(slot, new[slot]) != new[slot]]


def write(grammar: Grammar, seed: int, count: int) -> list[str]:
    """Different stories, one string each, the same ones for the same seed."""
    rng = random.Random(seed)
    stories: dict[str, None] = {}
    while len(stories) < count:
        writer = Writer(rng, grammar)
        grammar.walk(writer)
        if grammar.written[0] <= grammar.units(writer.text) <= grammar.written[1]:
            stories[writer.text] = None
    return list(stories)


def write_stories(seed: int = SEED, count: int = COUNT) -> list[str]:
    """Different stories, one string each, the same ones for the same seed."""
    return write(ENGLISH, seed, count)


def write_ending(story: Story, rng: random.Random) -> str:
    """Two sentences that end a story with these facts."""
    writer = Writer(rng, ENGLISH)
    place, helper = story.home.split()[-1], story.helper.split()[-1]
    writer.facts = {"place": place, "helper": helper, "thing": story.thing}
    writer.facts |= {"name": story.name, **_implied("name", story.name)}
    for options in CLOSING["won" if story.happy else "lost"]:
        writer.part(options)
    return writer.text


# ------------------------------------------------------------------------------------------------------------- checking


class Inconsistent(Exception):
    """A story that cannot be read on."""


_PATTERNS: dict[tuple[int, str], re.Pattern[str]] = {}  # by grammar and template


def _pattern(grammar: Grammar, template: str) -> re.Pattern[str]:
    """A template as a regular expression; a slot's n-th mention is the group SLOT_n."""
    key = id(grammar.slots), template
    if key not in _PATTERNS:
        pattern, mentions = "", 0
        for literal, choice, slot in re.findall(r"([^\[{]+)|\[(.+?)\]|\{(\w+)\}", template):
            if slot:
                mentions += 1
                values = [v.capitalize() if slot[0].isupper() else v for v in grammar.slots[slot.lower()]]
                pattern += f"(?P<{slot}_{mentions}>{'|'.join(dict.fromkeys(values))})"
            else:
                pattern += f"(?:{choice})" if choice else re.escape(literal)
        _PATTERNS[key] = re.compile(pattern + rf"(?:{grammar.between}|\Z)")
    return _PATTERNS[key]


class _Reader:
    """Recognises a story, part by part, and stops at the first part that does not follow."""

    def __init__(self, text: str, grammar: Grammar) -> None:
        self.text, self.grammar = text, grammar
        self.position = 0
        self.facts: dict[str, str] = {}

    def part(self, options: Sequence[Option]) -> None:
        for option in options:
            if found := _pattern(self.grammar, option.template).match(self.text, self.position):
                self._note(option.decides)
                for group, value in found.groupdict().items():
                    slot = group.rsplit("_", 1)[0]
                    self._note({slot.lower(): value.lower() if slot[0].isupper() else value})
                self.position = found.end()
                return
        raise Inconsistent(self._stray())

    def _note(self, new: dict[str, str]) -> None:
        for slot, value in new.items():
            implied = {slot: value, **self.grammar.implied(slot, value)}
            if faults := _conflicts(self.facts, implied):
                raise Inconsistent(f"{'; '.join(faults)}: {self.sentence()!r}")
            self.facts.update(implied)

    def sentence(self) -> str:
        return re.split(r"\. |(?<=。)", self.text[self.position :])[0]

    def _stray(self) -> str:
        """Why no option matched: the text ended, or the sentence belongs elsewhere, or it is none of ours."""
        if self.position >= len(self.text):
            return "the story stops before its ending"
        templates = (option.template for options in self.grammar.options for option in options)
        ours = any(_pattern(self.grammar, template).match(self.text, self.position) for template in templates)
        return f"{'out of place' if ours else 'unknown sentence'}: {self.sentence()!r}"


def read(grammar: Grammar, text: str) -> dict[str, str]:
    """The facts of a story, or `Inconsistent`."""
    units, (least, most) = grammar.units(text), grammar.readable
    if not least <= units <= most:
        raise Inconsistent(f"{units} {grammar.unit}, not {least} to {most}")
    reader = _Reader(text, grammar)
    grammar.walk(reader)
    if reader.position < len(text) or text.endswith(" "):
        raise Inconsistent(f"the text goes on after the ending: {reader.sentence()!r}")
    return reader.facts


def check(text: str) -> list[str]:
    """The faults of a text, as far as it can be read; none if it is a consistent story."""
    try:
        read(ENGLISH, text)
    except Inconsistent as fault:
        return [str(fault)]
    return []


def parse(text: str) -> Story | None:
    """The facts of a consistent story, None for anything else."""
    try:
        facts = read(ENGLISH, text)
    except Inconsistent:
        return None
    known = {field: facts[field] for field in Story._fields if field in facts}
    helper = f"{facts['age']} {facts['helper']}"
    return Story(**known | {"helper": helper}, pronoun=facts["he"], happy=facts["outcome"] == "won")
