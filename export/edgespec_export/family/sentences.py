"""What is said about a scene: prompts and answers written from its record.

Every wording of an answer is chosen by the wording of the prompt, never by chance: greedy text is
then predictable in form, and whatever a draft gets wrong it gets wrong about the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from edgespec_export.family.descriptions import (
    describe,
    inventory,
    numbered,
    place,
    relation,
    singles,
    thing_of,
)
from edgespec_export.family.objects import COLOURS, NUMBERS, PLACES, a, join, objects
from edgespec_export.family.scenes import Placed, Scene


@dataclass(frozen=True)
class Exchange:
    """One question and its answer; `task` names the kind of question."""

    task: str
    prompt: str
    answer: str


DETAILED: tuple[tuple[str, int], ...] = (
    ("Describe this image in detail.", 0),
    ("Please describe the picture in detail.", 0),
    ("What does this image show? Describe it in detail.", 0),
    ("Give a long description of the image.", 1),
    ("Tell me everything you see in the picture.", 1),
    ("Write a detailed report about this picture.", 1),
    ("Describe the scene object by object.", 2),
    ("Walk me through the image from top to bottom.", 2),
    ("Explain the picture to someone who cannot see it.", 2),
)
"""Prompts for long descriptions, each with the manner (0, 1, 2) it asks for."""


def captions(scene: Scene) -> list[Exchange]:
    """Short captions and lists."""
    listed, colour = inventory(scene), COLOURS[scene.colour]
    return [
        Exchange("caption", "Write a short caption.", f"A picture of {listed}."),
        Exchange("caption", "Describe this image briefly.", f"{listed.capitalize()}."),
        Exchange(
            "caption", "What is in this image?", f"There is {listed} on {a(colour)} background."
        ),
        Exchange("list", "List the objects.", ", ".join(thing_of(k).name for k in scene.kinds)),
        Exchange("list", "Which objects are in the picture?", f"I can see {listed}."),
        Exchange("total", "How many objects are there?", f"{numbered(len(scene.objects))}."),
        Exchange(
            "total",
            "Count the objects in the image.",
            f"The image contains {numbered(len(scene.objects))}.",
        ),
        Exchange("background", "What colour is the background?", f"The background is {colour}."),
        Exchange("background", "Name the background colour.", f"{colour}"),
        Exchange("background", "Which colour is behind the objects?", f"It is {colour}."),
    ]


def naming(scene: Scene, cell: int) -> list[Exchange]:
    """Questions about what is in a cell."""
    placed, where = scene.at(cell), PLACES[cell]
    name = None if placed is None else thing_of(placed.kind).name
    named = "nothing" if name is None else a(name)
    return [
        Exchange("naming", f"What is in the {where}?", f"{named.capitalize()}."),
        Exchange("naming", f"Which object do you see in the {where}?", f"I see {named}."),
        Exchange("naming", f"Name the object in the {where}.", name or "nothing"),
        Exchange(
            "naming", f"Tell me what is in the {where}.", f"I{place(cell)[1:]} there is {named}."
        ),
    ]


def about_kind(scene: Scene, kind: int) -> list[Exchange]:
    """Questions that name an object, which may or may not be there."""
    thing, number = thing_of(kind), scene.count(kind)
    noun = thing.name if number == 1 else thing.plural
    verb = "is" if number == 1 else "are"
    there = "Yes" if number else "No"
    found = [
        Exchange("count", f"How many {thing.plural} are there?", f"{NUMBERS[number]}"),
        Exchange(
            "count",
            f"How many {thing.plural} can you see?",
            f"There {verb} {NUMBERS[number]} {noun}.",
        ),
        Exchange(
            "presence",
            f"Is there {a(thing.name)} in the image?",
            f"{there}, there is {a(thing.name) if number else 'no ' + thing.name}.",
        ),
        Exchange("presence", f"Do you see {a(thing.name)}?", f"{there}."),
        Exchange("category", f"What kind of thing is the {thing.name}?", f"{a(thing.category)}"),
    ]
    if number == 1:
        cell = next(placed.cell for placed in scene.objects if placed.kind == kind)
        found += [
            Exchange("place", f"Where is the {thing.name}?", f"It is {place(cell)}."),
            Exchange(
                "place",
                f"In which part of the image is the {thing.name}?",
                f"The {thing.name} is {place(cell)}.",
            ),
        ]
    return found


def relations(scene: Scene, one: Placed) -> list[Exchange]:
    """Questions about the neighbours of a single object, and its relation to another."""
    name = thing_of(one.kind).name
    found = []
    for phrase, rows, columns in (
        ("to the left of", 0, -1),
        ("to the right of", 0, 1),
        ("above", -1, 0),
        ("below", 1, 0),
    ):
        other: Placed | None = None
        for steps in (1, 2):
            row, column = one.row + rows * steps, one.column + columns * steps
            if other is None and 0 <= row < 3 and 0 <= column < 3:
                other = scene.at(row * 3 + column)
        named = "nothing" if other is None else a(thing_of(other.kind).name)
        answer = f"{named.capitalize()}."
        found.append(Exchange("relation", f"What is directly {phrase} the {name}?", answer))
    for other in singles(scene):
        if other != one:
            second = thing_of(other.kind).name
            found.append(
                Exchange(
                    "relation",
                    f"Where is the {name} relative to the {second}?",
                    f"The {name} is {relation(one, other)} the {second}.",
                )
            )
    return found


def detailed(scene: Scene, rng: Generator) -> Exchange:
    """A long description, asked for in a random wording."""
    prompt, manner = DETAILED[int(rng.integers(len(DETAILED)))]
    return Exchange("detailed", prompt, describe(scene, manner))


def question(scene: Scene, rng: Generator, *, naming: float = 0.44) -> Exchange:
    """A random short question about a scene; `naming` is the share of "what is in ...?"."""
    asked = naming_or_other(scene, rng, rng.random() < naming)
    return asked[int(rng.integers(len(asked)))]


def naming_or_other(scene: Scene, rng: Generator, name: bool) -> list[Exchange]:
    """The wordings of one random question."""
    draw = rng.random()
    if name:
        occupied = [placed.cell for placed in scene.objects]
        cell = int(rng.choice(occupied)) if rng.random() < 0.85 else int(rng.integers(9))
        return naming(scene, cell)
    if draw < 0.28:
        return captions(scene)
    if draw < 0.71 or not singles(scene):
        kind = int(rng.choice(scene.kinds))
        if rng.random() < 0.35:
            kind = int(rng.integers(len(objects())))
        return about_kind(scene, kind)
    once = singles(scene)
    return relations(scene, once[int(rng.integers(len(once)))])


def two_images(first: Scene, second: Scene, rng: Generator) -> Exchange:
    """A question about two pictures."""
    scenes, which = (first, second), int(rng.integers(2))
    word, scene = ("first", "second")[which], scenes[which]
    cell = int(rng.choice([placed.cell for placed in scene.objects]))
    kind = int(rng.choice(scene.kinds))
    choices = [
        Exchange(
            "two",
            "Describe both images.",
            f"The first image shows {inventory(first)}. "
            f"The second image shows {inventory(second)}.",
        ),
        Exchange("two", f"What is in the {word} image?", f"{inventory(scene).capitalize()}."),
        Exchange(
            "two",
            f"What is in the {PLACES[cell]} of the {word} image?",
            naming(scene, cell)[0].answer,
        ),
        Exchange(
            "two",
            f"What colour is the background of the {word} image?",
            f"The background is {COLOURS[scene.colour]}.",
        ),
    ]
    if not scenes[1 - which].count(kind):
        choices.append(
            Exchange("two", f"Which image shows {a(thing_of(kind).name)}?", f"The {word} image.")
        )
    return choices[int(rng.integers(len(choices)))]


GREETINGS: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello! Show me a picture and I will describe it."),
    ("Hi there.", "Hello! Show me a picture and I will describe it."),
    ("Who are you?", "I am a small model that describes pictures of pictograms."),
    (
        "What can you do?",
        "I can describe pictures, name objects, count them and say where they are.",
    ),
    ("Thank you!", "You are welcome!"),
    ("What do you see?", "There is no image, so I see nothing."),
    ("Which places do you know?", f"I know nine places: {join(list(PLACES))}."),
    ("Which colours do you know?", f"I know these colours: {join(list(COLOURS))}."),
)


def text_only(rng: Generator) -> Exchange:
    """A question that needs no picture."""
    thing = objects()[int(rng.integers(len(objects())))]
    first, second = thing.keywords
    draw = int(rng.integers(6))
    if draw == 0:
        return Exchange("text", *GREETINGS[int(rng.integers(len(GREETINGS)))])
    if draw == 1:
        return Exchange(
            "text",
            f"What is {a(thing.name)}?",
            f"{a(thing.name).capitalize()} is "
            f"{a(thing.category)}. It goes with {first} and {second}.",
        )
    if draw == 2:
        return Exchange("text", f"What goes with {a(thing.name)}?", f"{first} and {second}")
    if draw == 3:
        return Exchange("text", f"What is the plural of {thing.name}?", thing.plural)
    if draw == 4 and thing.colour is not None:
        return Exchange(
            "text", f"What colour is {a(thing.name)} usually?", f"It is usually {thing.colour}."
        )
    category = thing.category if rng.random() < 0.5 else objects()[int(rng.integers(9))].category
    said = "Yes" if category == thing.category else "No"
    return Exchange(
        "text",
        f"Is {a(thing.name)} {a(category)}?",
        f"{said}, {a(thing.name)} is {a(thing.category)}.",
    )
