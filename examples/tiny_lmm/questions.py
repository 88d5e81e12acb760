"""Questions about a scene: six benchmark families and one training-only family, one-word answers.

| family | example | answers |
|---|---|---|
| existence | is there a red circle ? | yes, no |
| count | how many red objects are there ? | 0 to 6 |
| color | what color is the circle ? | eight colours |
| shape | what shape is the red object ? | six shapes |
| side | is the red circle left or right of the blue square ? | left, right |
| compare | is the red circle bigger or smaller than the blue square ? | bigger, smaller |
| compare | are there more circles than squares ? | yes, no |
| place | where is the red circle ? (training only) | left, middle, right |

Every sampler draws the wanted answer first wherever the scene allows several, so that no answer is
the majority of its family by construction; a sampler returns ``None`` where the scene has no
question of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .scenes import COLOR_WORDS, IMAGE_SIZE, SHAPES, SceneObject

FAMILIES = ("existence", "count", "color", "shape", "side", "compare")
"""Families of the benchmark."""

PLURALS = {shape: "crosses" if shape == "cross" else shape + "s" for shape in SHAPES}
"""Plural of every shape word."""

MIN_SIDE_DISTANCE = 6.0
"""Least horizontal distance in pixels of two objects in a `side` question."""

MIN_SIZE_RATIO = 1.3
"""Least ratio of the radii in a question that compares two sizes."""

Scene = tuple[SceneObject, ...]


@dataclass(frozen=True)
class Question:
    """A question with its true answer.

    Attributes
    ----------
    family : str
        One of `FAMILIES`, or ``"place"``.
    text : str
        The question, words separated by single spaces.
    answer : str
        One word of the vocabulary.
    mentions : tuple of (int, int)
        Position of the last word of each noun phrase that names one object, and that object's
        index in the scene (-1: no object is meant).  Training aid only.
    """

    family: str
    text: str
    answer: str
    mentions: tuple[tuple[int, int], ...] = ()


def _name(obj: SceneObject) -> tuple[int, int]:
    return obj.color, obj.shape


def _unique(scene: Scene) -> list[int]:
    """Objects whose colour and shape together single them out."""
    counts = Counter(_name(o) for o in scene)
    return [i for i, o in enumerate(scene) if counts[_name(o)] == 1]


def _phrase(color: int, shape: int) -> str:
    return f"{COLOR_WORDS[color]} {SHAPES[shape]}"


def ask_existence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Yes/no, balanced; half of the "no" questions name a colour and a shape that are present."""
    present = {_name(o): i for i, o in enumerate(scene)}
    if rng.random() < 0.5:
        color, shape = list(present)[int(rng.integers(len(present)))]
        found, answer = present[color, shape], "yes"
    else:
        colors = sorted({o.color for o in scene})
        shapes = sorted({o.shape for o in scene})
        absent = [(c, s) for c in colors for s in shapes if (c, s) not in present]
        if rng.random() < 0.4 or not absent:
            absent = [
                (c, s)
                for c in range(len(COLOR_WORDS))
                for s in range(len(SHAPES))
                if (c, s) not in present and ((c in colors) or (s in shapes) or rng.random() < 0.3)
            ]
        color, shape = absent[int(rng.integers(len(absent)))]
        found, answer = -1, "no"
    return Question("existence", f"is there a {_phrase(color, shape)} ?", answer, ((4, found),))


def ask_count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many objects of a colour, of a shape, or at all; rare counts are preferred."""
    by_color = Counter(o.color for o in scene)
    by_shape = Counter(o.shape for o in scene)
    options: dict[int, list[str]] = {}
    for color, word in enumerate(COLOR_WORDS):
        options.setdefault(by_color[color], []).append(f"how many {word} objects are there ?")
    for shape, word in enumerate(SHAPES):
        options.setdefault(by_shape[shape], []).append(f"how many {PLURALS[word]} are there ?")
    options.setdefault(len(scene), []).append("how many objects are there ?")
    counts = sorted(options)
    # zero and one are possible in every scene and would flood the family
    weights = np.asarray([{0: 0.3, 1: 0.45}.get(c, 1.0) for c in counts])
    draw = rng.random() * float(weights.sum())
    index = min(int(np.searchsorted(np.cumsum(weights), draw)), len(counts) - 1)
    texts = options[counts[index]]
    return Question("count", texts[int(rng.integers(len(texts)))], str(counts[index]))


def ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Colour of the only object of a shape."""
    counts = Counter(o.shape for o in scene)
    choices = [i for i, o in enumerate(scene) if counts[o.shape] == 1]
    if not choices:
        return None
    index = choices[int(rng.integers(len(choices)))]
    obj = scene[index]
    return Question("color", f"what color is the {obj.shape_word} ?", obj.color_word, ((4, index),))


def ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Shape of the only object of a colour."""
    counts = Counter(o.color for o in scene)
    choices = [i for i, o in enumerate(scene) if counts[o.color] == 1]
    if not choices:
        return None
    index = choices[int(rng.integers(len(choices)))]
    obj = scene[index]
    text = f"what shape is the {obj.color_word} object ?"
    return Question("shape", text, obj.shape_word, ((5, index),))


def _ask_pair(
    scene: Scene,
    rng: np.random.Generator,
    family: str,
    words: tuple[str, str],
    joint: str,
    holds: Callable[[SceneObject, SceneObject], bool],
) -> Question | None:
    """Relate two named objects; `holds(a, b)` says whether the pair is clear enough to ask."""
    unique = _unique(scene)
    pairs = [(i, j) for i in unique for j in unique if i != j and holds(scene[i], scene[j])]
    if not pairs:
        return None
    # `holds` is true for the order in which the first word is the answer
    first, second = pairs[int(rng.integers(len(pairs)))]
    answer = words[0]
    if rng.random() < 0.5:
        first, second, answer = second, first, words[1]
    a, b = _phrase(*_name(scene[first])), _phrase(*_name(scene[second]))
    text = f"is the {a} {words[0]} or {words[1]} {joint} the {b} ?"
    return Question(family, text, answer, ((3, first), (10, second)))


def ask_side(
    scene: Scene, rng: np.random.Generator, distance: float = MIN_SIDE_DISTANCE
) -> Question | None:
    """Which of two named objects is farther left."""
    return _ask_pair(
        scene, rng, "side", ("left", "right"), "of", lambda a, b: a.x + distance <= b.x
    )


def ask_size(
    scene: Scene, rng: np.random.Generator, ratio: float = MIN_SIZE_RATIO
) -> Question | None:
    """Which of two named objects has the larger radius."""
    return _ask_pair(
        scene,
        rng,
        "compare",
        ("bigger", "smaller"),
        "than",
        lambda a, b: a.radius >= ratio * b.radius,
    )


def ask_more(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Whether one shape occurs more often than another; ties answer "no" and are rare."""
    counts = Counter(o.shape for o in scene)
    pairs = [(a, b) for a in counts for b in range(len(SHAPES)) if counts[a] > counts[b]]
    if not pairs:  # every shape occurs once
        return None
    pairs = [p for p in pairs if p[1] in counts] or pairs
    a, b = pairs[int(rng.integers(len(pairs)))]
    draw = rng.random()
    if draw >= 0.5:
        a, b = b, a
        if draw >= 0.9:
            ties = [(c, d) for c in counts for d in counts if c != d and counts[c] == counts[d]]
            if ties:
                a, b = ties[int(rng.integers(len(ties)))]
    text = f"are there more {PLURALS[SHAPES[a]]} than {PLURALS[SHAPES[b]]} ?"
    return Question("compare", text, "yes" if counts[a] > counts[b] else "no")


def ask_compare(scene: Scene, rng: np.random.Generator) -> Question | None:
    """One of the two kinds of comparison."""
    if rng.random() < 0.5:
        return ask_size(scene, rng) or ask_more(scene, rng)
    return ask_more(scene, rng)


def ask_place(scene: Scene, rng: np.random.Generator) -> Question | None:
    """In which third of the image a named object is (training only)."""
    unique = _unique(scene)
    if not unique:
        return None
    index = unique[int(rng.integers(len(unique)))]
    third = min(int(3.0 * scene[index].x / IMAGE_SIZE), 2)
    text = f"where is the {_phrase(*_name(scene[index]))} ?"
    return Question("place", text, ("left", "middle", "right")[third], ((4, index),))


SAMPLERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "existence": ask_existence,
    "count": ask_count,
    "color": ask_color,
    "shape": ask_shape,
    "side": ask_side,
    "compare": ask_compare,
}
"""The sampler of every benchmark family."""

_PLAIN_WORDS = (
    "is there a how many objects are what color the shape object left or right of bigger smaller "
    "than more where middle yes no ?"
)

VOCABULARY_WORDS = (
    *_PLAIN_WORDS.split(),
    *(str(number) for number in range(7)),
    *COLOR_WORDS,
    *SHAPES,
    *PLURALS.values(),
)
"""Every word that questions and answers use."""
