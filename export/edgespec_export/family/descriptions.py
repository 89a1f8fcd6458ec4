"""What is to be seen in a scene, in words: its objects, their places, and long descriptions."""

from __future__ import annotations

from edgespec_export.family.objects import COLOURS, NUMBERS, PLACES, Object, a, join, objects
from edgespec_export.family.scenes import Placed, Scene


def thing_of(kind: int) -> Object:
    """The object of that number."""
    return objects()[kind]


def counted(scene: Scene, kind: int) -> str:
    """An object with its number: "a fox" or "three foxes"."""
    number = scene.count(kind)
    return a(thing_of(kind).name) if number == 1 else f"{NUMBERS[number]} {thing_of(kind).plural}"


def inventory(scene: Scene) -> str:
    """All objects: "a fox and three ducks"."""
    return join([counted(scene, kind) for kind in scene.kinds])


def numbered(number: int) -> str:
    """How many objects: "three objects"."""
    return f"{NUMBERS[number]} object{'s' if number != 1 else ''}"


def place(cell: int) -> str:
    """A cell with its preposition: "in the top left"."""
    return f"in the {PLACES[cell]}"


def relation(one: Placed, other: Placed) -> str:
    """How `one` lies relative to `other`: "above and to the left of"."""
    parts = []
    if one.row != other.row:
        parts.append("above" if one.row < other.row else "below")
    if one.column != other.column:
        parts.append("to the left of" if one.column < other.column else "to the right of")
    return " and ".join(parts)


def singles(scene: Scene) -> list[Placed]:
    """Objects that are there once."""
    return [placed for placed in scene.objects if scene.count(placed.kind) == 1]


def _relations(scene: Scene) -> list[str]:
    """A sentence for every two neighbouring single objects, in reading order."""
    once = singles(scene)
    return [
        f"The {thing_of(one.kind).name} is {relation(one, other)} the {thing_of(other.kind).name}."
        for one, other in zip(once, once[1:], strict=False)
    ]


def describe(scene: Scene, manner: int) -> str:
    """A long description in one of three manners."""
    total, colour = len(scene.objects), COLOURS[scene.colour]
    if manner == 0:
        parts = [f"The image shows {numbered(total)} on {a(colour)} background."]
    elif manner == 1:
        parts = [f"I see {inventory(scene)} in this picture.", f"The background is {colour}."]
    else:
        parts = [f"This is a picture with {a(colour)} background and {numbered(total)} on it."]
    seen: set[int] = set()
    for placed in scene.objects:
        parts.append(_about(placed, manner, again=placed.kind in seen))
        seen.add(placed.kind)
    parts += _relations(scene)[: 3 if manner == 1 else 2]
    if total <= 2:
        empty = [f"the {PLACES[cell]}" for cell in range(9) if scene.at(cell) is None]
        parts.append(f"There is nothing in {join(empty)}.")
    if manner == 0:
        parts.append(f"In total the image contains {inventory(scene)}.")
    elif manner == 2:
        parts.append(f"So the whole picture shows {inventory(scene)}, and nothing else.")
    else:
        parts.append(f"Altogether the picture shows {numbered(total)}.")
    return " ".join(parts)


def _about(placed: Placed, manner: int, *, again: bool) -> str:
    """The sentences about one object of a description."""
    thing, where = thing_of(placed.kind), place(placed.cell)
    kind = f"{a(thing.category)}"
    if again:
        another = f"another {thing.name}"
        return {
            0: f"I{where[1:]} there is {another}.",
            1: f"There is {another} {where}.",
            2: f"Then I{where[1:]} we find {another}.".replace("Then I", "Then i"),
        }[manner]
    first, second = thing.keywords
    if manner == 0:
        return (
            f"I{where[1:]} there is {a(thing.name)}. "
            f"The {thing.name} is {kind} and goes with {first} and {second}."
        )
    if manner == 1:
        return f"There is {a(thing.name)} {where}, {kind} that makes one think of {first}."
    return f"I{where[1:]} we find {a(thing.name)}. It belongs to the category {thing.category}."
