"""Yes/no reading items about invented places: the training stream, and dev.jsonl from what training never sees.

A fact says of a place and a feature whether the place has it: "Lomar has a mill but no bridge." A model must find the
feature of the question in the passage and read what is said of it. `held_out` puts a quarter of all pairs of a place
and a feature aside by a checksum: training neither states nor asks them, and dev.jsonl states and asks nothing else.
Each dev question comes twice, once with a passage that makes it true and once with one that makes it false, so the
question alone says nothing; every passage has as many features present as absent.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

DEV_SEED = 20240501


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_STARTS = _words("Lo Te Ka Vi Sa Du Mi Ro Ba Fe No Zu")
PLACES = tuple(start + end for start in _STARTS for end in _words("mar vik len tor sin dra pol ras"))
SORTS = _words("village town city harbour port")
SIZES = _words("small large quiet busy")
FEATURES = _words(
    "bridge mill school market chapel tower castle museum library theatre garden fountain lighthouse bakery "
    "bank hospital station park prison temple windmill canal tunnel stable wall gate well dam zoo forge"
)
STATEMENTS = (
    "It has {0} and {1}.",
    "It has {0} but {1}.",
    "There is {0} and {1}.",
    "Visitors find {0} and {1} there.",
)
QUESTIONS = ("does {p} have a {f}", "is there a {f} in {p}", "would visitors of {p} find a {f}")


def held_out(place: str, feature: str) -> bool:
    """Whether this pair is kept from training; a pure function of its two words."""
    return zlib.crc32(f"{place}|{feature}".encode()) % 4 == 0


@dataclass(frozen=True)
class Fact:
    feature: str
    present: bool

    def phrase(self) -> str:
        return f"{'a' if self.present else 'no'} {self.feature}"


@dataclass(frozen=True)
class Item:
    """One question on one passage: whether `place` has the feature of `facts[asked]`."""

    place: str
    facts: tuple[Fact, ...]
    asked: int
    question: str
    passage: str

    @property
    def answer(self) -> bool:
        return self.facts[self.asked].present

    def row(self) -> dict[str, str | bool]:
        """The item as a row of BoolQ's files."""
        return {"title": self.place, "question": self.question, "passage": self.passage, "answer": self.answer}


def head(title: str, passage: str) -> str:
    """The part of a prompt that all questions on a passage share."""
    return f"{title} -- {passage}"


def tail(question: str) -> str:
    """The rest of the prompt; the next token is the answer, ` yes` or ` no`."""
    return f"\nQuestion: {question}?\nAnswer:"


def features(place: str, dev: bool) -> list[str]:
    """The features that one side may speak of at this place."""
    return [f for f in FEATURES if held_out(place, f) == dev]


def draw_facts(rng: random.Random, chosen: list[str]) -> tuple[Fact, ...]:
    """Half of the chosen features present, half absent, in random order."""
    signs = [i % 2 == 0 for i in range(len(chosen))]
    rng.shuffle(signs)
    return tuple(Fact(feature, sign) for feature, sign in zip(chosen, signs, strict=True))


def write_passage(rng: random.Random, place: str, facts: tuple[Fact, ...]) -> str:
    """The facts as sentences of two, after one that introduces the place."""
    said = [f"{place} is a {rng.choice(SIZES)} {rng.choice(SORTS)}."]
    for first, second in zip(facts[::2], facts[1::2], strict=True):
        said.append(rng.choice(STATEMENTS).format(first.phrase(), second.phrase()))
    return " ".join(said)


def ask(rng: random.Random, place: str, feature: str) -> str:
    return rng.choice(QUESTIONS).format(p=place, f=feature)


def training_passages(seed: int, n_facts: int = 4) -> Iterator[list[Item]]:
    """Endless training passages, each with a question on every fact; no pair in them is held out."""
    rng = random.Random(seed)
    while True:
        place = rng.choice(PLACES)
        facts = draw_facts(rng, rng.sample(features(place, dev=False), n_facts))
        passage = write_passage(rng, place, facts)
        yield [Item(place, facts, i, ask(rng, place, fact.feature), passage) for i, fact in enumerate(facts)]


def dev_items(pairs: int = 300, seed: int = DEV_SEED) -> list[Item]:
    """`pairs` questions, each once true and once false; all their pairs are held out, and no pair is asked twice."""
    rng = random.Random(seed)
    candidates = [(p, f) for p in PLACES for f in features(p, dev=True) if len(features(p, dev=True)) >= 4]
    items: list[Item] = []
    for place, feature in rng.sample(candidates, pairs):
        question = ask(rng, place, feature)
        for answer in (True, False):
            others = [f for f in features(place, dev=True) if f != feature]
            facts: tuple[Fact, ...] = ()
            while Fact(feature, answer) not in facts:
                chosen = [feature, *rng.sample(others, 3)]
                rng.shuffle(chosen)
                facts = draw_facts(rng, chosen)
            asked = facts.index(Fact(feature, answer))
            items.append(Item(place, facts, asked, question, write_passage(rng, place, facts)))
    return items
