"""Questions of a narrow domain: four kinds of everyday writing, filled in from word lists.

Answers are the target's own words, not copies of the prompt; kinds recur, so that a small model
that was trained on other answers of the same kinds can follow.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

FOLLOWED = Path(__file__).with_name("prompts_followed.jsonl")
"""The held-out questions that are measured."""


@dataclass(frozen=True)
class Kind:
    """One form of question; ``form`` has a place for a word of each list."""

    name: str
    form: str
    words: tuple[tuple[str, ...], tuple[str, ...]]

    def texts(self) -> list[str]:
        """Every combination."""
        return [_articles(self.form.format(a, b)) for a, b in product(*self.words)]


def _articles(text: str) -> str:
    """ "a" becomes "an" before a vowel; no word of the lists is an exception."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def words(line: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in line.split(","))


PEOPLE = words(
    "my landlord, my manager, a customer, a colleague, my neighbour, a supplier, my teacher, "
    "the school office, my dentist, a hotel, the library, my bank, a client, the town hall, "
    "my accountant, an airline, a mechanic, my doctor, a job candidate, the building manager, "
    "my professor, an insurance company"
)
MATTERS = words(
    "a late delivery, a broken heater, a change of appointment, a missing invoice, a noisy party, "
    "a lost key, a day off, a parking space, a leaking tap, a wrong bill, a meeting next week, "
    "a delayed payment, a lost parcel, an extended deadline, a forgotten password, a refund, "
    "a broken window, a cancelled booking, a change of address, a faulty product, "
    "a visit tomorrow, a new contract, a training course"
)
DISHES = words(
    "soup, salad, stew, omelette, sandwich, curry, pasta dish, pie, pizza, risotto, smoothie, "
    "cake, casserole, wrap, stir-fry, breakfast bowl, dip, burger"
)
FOODS = words(
    "tomatoes, mushrooms, potatoes, spinach, chicken, carrots, lentils, cheese, apples, beans, "
    "pumpkin, eggs, onions, rice, salmon, peppers, beef, broccoli, corn, lemon, garlic, zucchini, "
    "tofu, shrimp, avocado"
)
EVENTS = words(
    "birthday party, wedding, book fair, charity run, school concert, garden party, bake sale, "
    "art exhibition, farewell dinner, film night, science fair, family picnic, housewarming party, "
    "dance class, chess tournament, retirement party, poetry reading, costume party, open day, "
    "cooking class"
)
VENUES = words(
    "the town hall, the city park, the community centre, the school gym, the beach, a restaurant, "
    "the museum, a barn, the public library, the sports club, a rooftop, the old mill, "
    "the theatre, a cafe, the botanical garden, a hotel, the lake house, "
    "the church hall, the university"
)

JOBS = words(
    "waiter, gardener, nurse, teacher, driver, baker, receptionist, librarian, electrician, cook, "
    "cleaner, salesperson, accountant, mechanic, web designer, translator, photographer, plumber, "
    "security guard, carpenter, hairdresser, bank clerk, tour guide, lifeguard"
)
FIRMS = words(
    "a small hotel, a hospital, a primary school, a bookshop, a garden centre, a restaurant, "
    "a travel agency, a car dealer, a museum, a supermarket, a law firm, a bank, a sports club, "
    "a software company, a bakery, a furniture maker, an airport, a newspaper, a zoo, a theatre"
)

KINDS = (
    Kind("recipe", "Write a simple recipe for a {} with {}.", (DISHES, FOODS)),
    Kind("mail", "Write a polite e-mail to {} about {}.", (PEOPLE, MATTERS)),
    Kind("invitation", "Write an invitation to a {} at {}.", (EVENTS, VENUES)),
    Kind("application", "Write a cover letter for a job as a {} at {}.", (JOBS, FIRMS)),
)
HELD_OUT = 8
"""Questions of every kind that are not trained on."""
MEASURED = 2
"""Of these, in ``prompts_followed.jsonl``."""


@dataclass(frozen=True)
class Asked:
    """A question and its kind."""

    kind: str
    text: str


def questions(number: int, seed: int = 0) -> tuple[list[Asked], list[Asked]]:
    """(to train on, held out): ``number`` of them in the order drawn by ``seed``, all kinds in
    turn, and ``HELD_OUT`` of every kind, which no other number brings into the first list."""
    order = random.Random(seed)
    rows = [order.sample(kind.texts(), len(kind.texts())) for kind in KINDS]
    held = [Asked(k.name, t) for k, row in zip(KINDS, rows, strict=True) for t in row[:HELD_OUT]]
    left = [
        Asked(kind.name, row[place])
        for place in range(HELD_OUT, max(map(len, rows)))
        for kind, row in zip(KINDS, rows, strict=True)
        if place < len(row)
    ]
    return left[:number], held


def write_followed(held: Sequence[Asked], file: Path = FOLLOWED) -> None:
    """The first ``MEASURED`` held-out questions of every kind, as ``--prompts`` takes them."""
    rows = []
    for kind in KINDS:
        texts = [asked.text for asked in held if asked.kind == kind.name][:MEASURED]
        rows += [{"name": f"{kind.name} {i}", "text": text} for i, text in enumerate(texts, 1)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
