"""Questions of a narrow domain: eight kinds of everyday writing, filled in from word lists.

Answers are the target's own words, so that looking up n-grams of the prompt finds little; but kinds
recur, so that a small model that was trained on other answers of the same kinds can follow.
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
"""The held-out questions that are measured: one of every kind."""


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


ADJECTIVES = words(
    "lightweight, waterproof, folding, wireless, handmade, solar-powered, compact, durable, "
    "rechargeable, portable, stainless steel, wooden, silent, adjustable, magnetic, affordable, "
    "stylish, heated, smart, energy-saving, multi-purpose, child-safe, elegant"
)
GOODS = words(
    "desk lamp, backpack, water bottle, kettle, umbrella, alarm clock, office chair, tent, "
    "coffee grinder, bicycle helmet, kitchen knife, toaster, flashlight, garden hose, bookshelf, "
    "suitcase, rain jacket, lunch box, radio, blanket, hair dryer, picnic table, door lock, "
    "camera, mirror, pillow, cooler, electric fan, wall clock, pair of headphones"
)
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
ANIMALS = words(
    "fox, rabbit, owl, turtle, bear, mouse, cat, dog, squirrel, frog, penguin, elephant, duck, "
    "hedgehog, lion, goat, wolf, horse, parrot, dolphin, monkey, donkey, crow, bee, swan, tiger"
)
PLACES = words(
    "a forest, a small village, the mountains, a big city, a garden, an old castle, the desert, "
    "a farm, a library, the seaside, a snowy valley, a train station, a bakery, a lighthouse, "
    "a museum, the jungle, a school, a quiet harbour"
)
TOOLS = words(
    "hammer, screwdriver, saw, drill, wrench, ladder, shovel, rake, paintbrush, tape measure, "
    "level, chisel, pair of pliers, wheelbarrow, sewing machine, vacuum cleaner, microscope, "
    "thermometer, compass, magnifying glass, pair of scissors, stapler, calculator, telescope, "
    "crowbar, axe, bicycle pump, fire extinguisher, blender, iron, corkscrew, flashlight, "
    "measuring cup, stethoscope, trowel, pulley"
)
USERS = words(
    "a child, a beginner, a new apprentice, an adult, a student, a visitor, a hobbyist, a friend, "
    "a teenager, my grandmother, a curious reader, a colleague"
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
HABITS = words(
    "sleep better, save money, learn a language, eat healthily, study for an exam, stay fit, "
    "manage stress, read more books, work from home, keep a house clean, make new friends, "
    "prepare for an interview, waste less food, use a phone less, speak in public, start a garden, "
    "write a letter, plan a trip, remember names, wake up early, learn the guitar, cook at home, "
    "train a puppy, organise a desk, drink more water"
)
LIVES = words(
    "students, parents, busy people, beginners, older people, teenagers, office workers, families, "
    "shift workers, freelancers, travellers, couples, nurses, teachers, small companies"
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
SUBJECTS = words(
    "photosynthesis, gravity, electricity, the water cycle, magnetism, evaporation, friction, "
    "sound waves, volcanoes, earthquakes, the seasons, the tides, rainbows, digestion, "
    "vaccines, recycling, fermentation, erosion, clouds, solar energy, the moon, batteries, "
    "the heart, atoms, lightning, the internet, inflation, bacteria, plastic, wind power, "
    "the food chain, heat, memory, muscles, snow"
)

KINDS = (
    Kind("product", "Write a product description of a {} {}.", (ADJECTIVES, GOODS)),
    Kind("mail", "Write a polite e-mail to {} about {}.", (PEOPLE, MATTERS)),
    Kind("story", "Write a short story about a {} in {}.", (ANIMALS, PLACES)),
    Kind("tool", "Explain what a {} is used for to {}.", (TOOLS, USERS)),
    Kind("recipe", "Write a simple recipe for a {} with {}.", (DISHES, FOODS)),
    Kind("tips", "Give five tips on how to {} for {}.", (HABITS, LIVES)),
    Kind("invitation", "Write an invitation to a {} at {}.", (EVENTS, VENUES)),
    Kind("science", "Explain {} in simple words to {}.", (SUBJECTS, USERS)),
)


@dataclass(frozen=True)
class Asked:
    """A question and its kind."""

    kind: str
    text: str


def questions(number: int, seed: int = 0) -> tuple[list[Asked], list[Asked]]:
    """(to train on, held out): ``number`` of them in the order drawn by ``seed``, all kinds in
    turn, and eight more of every kind, which no other number brings into the first list."""
    order = random.Random(seed)
    rows = [order.sample(kind.texts(), len(kind.texts())) for kind in KINDS]
    held = [Asked(k.name, t) for k, row in zip(KINDS, rows, strict=True) for t in row[:8]]
    left = [
        Asked(kind.name, row[place])
        for place in range(8, max(map(len, rows)))
        for kind, row in zip(KINDS, rows, strict=True)
        if place < len(row)
    ]
    return left[:number], held


def write_followed(held: Sequence[Asked], file: Path = FOLLOWED) -> None:
    """The first held-out question of every kind, as ``--prompts`` takes them."""
    first = {asked.kind: asked for asked in reversed(held)}
    lines = [json.dumps({"name": k.name, "text": first[k.name].text}) for k in KINDS]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
