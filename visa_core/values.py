"""Schwartz's ten values, the twenty categories of ValueEval'23, and the few operations on value
vectors.

The ten basic values, their circular order and the two axes follow S. H. Schwartz (1992),
"Universals in the content and structure of values"; the twenty refined categories are those of the
ValueEval'23 shared task. The definitions are in our own words.
"""

from __future__ import annotations

import torch

from visa_core.value_space import Axis, Dimension, UnknownValueError, ValueSpace, normalise_name

__all__ = [
    "LIKERT",
    "SCHWARTZ",
    "VALUEEVAL20",
    "VALUEEVAL_TO_SCHWARTZ",
    "Axis",
    "Dimension",
    "UnknownValueError",
    "ValueSpace",
    "categories_to_schwartz",
    "clip_target",
    "cosine",
    "snap",
]

LIKERT: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""The five steps on which people and judges rate a value: strongly opposed ... strongly
expressed.
"""


def snap(vector: torch.Tensor) -> torch.Tensor:
    """The nearest point of the LIKERT grid, entry by entry; halfway goes to -1, 0 or 1. Any
    shape.
    """
    return (vector.clamp(-1, 1) * 2).round() / 2


def clip_target(values: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The wanted vector v* = clip(v + dv, -1, 1) of detected values and an asked-for shift. Any
    equal shapes.
    """
    return (values + shift).clamp(-1, 1)


def cosine(a: torch.Tensor, b: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Cosine of value vectors [.., K] -> [..], defined also where a vector is zero (norm <= eps),
    so never NaN for finite input.

    A neutral vector has no direction: against a vector that has one the answer is 0, against
    another neutral one it is 1, since a neutral rewrite of a neutral target is what was asked for.
    Gradients at a zero vector are 0.
    """
    a, b = torch.broadcast_tensors(a, b)
    a_is_zero = torch.linalg.vector_norm(a, dim=-1) <= eps
    b_is_zero = torch.linalg.vector_norm(b, dim=-1) <= eps
    safe_a = torch.where(a_is_zero[..., None], torch.ones_like(a), a)
    safe_b = torch.where(b_is_zero[..., None], torch.ones_like(b), b)
    unit_a = safe_a / torch.linalg.vector_norm(safe_a, dim=-1, keepdim=True)
    unit_b = safe_b / torch.linalg.vector_norm(safe_b, dim=-1, keepdim=True)
    both_zero = (a_is_zero & b_is_zero).to(unit_a.dtype)
    return torch.where(a_is_zero | b_is_zero, both_zero, (unit_a * unit_b).sum(-1).clamp(-1, 1))


def categories_to_schwartz(categories: torch.Tensor) -> torch.Tensor:
    """Scores of the twenty categories [.., 20] as scores of the ten values [.., 10]: the largest
    of each value's categories.

    The shared task says that an argument draws on a value, not how much: one category that is
    present makes the value present.
    """
    if categories.shape[-1] != len(VALUEEVAL20):
        raise ValueError(
            f"expected {len(VALUEEVAL20)} category scores in the last dimension, "
            f"got {categories.shape[-1]}"
        )
    columns = []
    for name in SCHWARTZ.names:
        members = [
            VALUEEVAL20.index(category)
            for category, values in VALUEEVAL_TO_SCHWARTZ.items()
            if name in values
        ]
        columns.append(categories[..., members].amax(-1))
    return torch.stack(columns, -1)


def _dimension(title: str, definition: str, keywords: str = "") -> Dimension:
    words = tuple(word.strip() for word in keywords.split(",") if word.strip())
    return Dimension(name=normalise_name(title), title=title, definition=definition, keywords=words)


SCHWARTZ = ValueSpace(
    name="schwartz",
    dimensions=(
        _dimension(
            "Self-Direction",
            "Thinking for oneself, choosing one's own course: to create, explore and decide.",
            "freedom, independence, creativity, curiosity, choice, privacy, autonomy",
        ),
        _dimension(
            "Stimulation",
            "Seeking what is new, exciting and challenging in life.",
            "adventure, excitement, novelty, thrill, daring, variety, surprise, change",
        ),
        _dimension(
            "Hedonism",
            "Enjoying oneself: pleasure and comfort of the senses.",
            "pleasure, fun, enjoyment, comfort, indulgence, delight, treat, leisure",
        ),
        _dimension(
            "Achievement",
            "Succeeding in what counts, and showing ability that others recognise.",
            "success, ambition, competence, excellence, skill, results, goals, intelligence",
        ),
        _dimension(
            "Power",
            "Having standing, wealth and control over people and resources.",
            "status, wealth, authority, control, influence, prestige, dominance, reputation",
        ),
        _dimension(
            "Security",
            "Keeping oneself, one's people and society safe, healthy and stable.",
            "safety, stability, health, order, protection, caution, belonging, national security",
        ),
        _dimension(
            "Conformity",
            "Holding back what would hurt others or break rules and expectations.",
            "obedience, rules, politeness, self-discipline, duty, respect, law, compliance",
        ),
        _dimension(
            "Tradition",
            "Keeping the customs, beliefs and modesty that culture and religion hand down.",
            "customs, religion, heritage, humility, faith, ancestors, ritual, family ways",
        ),
        _dimension(
            "Benevolence",
            "Caring for the people one is close to, and being someone they can rely on.",
            "helpfulness, honesty, loyalty, forgiveness, friendship, care, kindness",
        ),
        _dimension(
            "Universalism",
            "Understanding and protecting all people and nature: equality, justice, tolerance.",
            "equality, justice, tolerance, peace, nature, environment, fairness, open-mindedness",
        ),
    ),
    axes=(
        Axis(
            name="openness-conservation",
            positive=("self-direction", "stimulation", "hedonism"),
            negative=("security", "conformity", "tradition"),
            positive_name="Openness to change",
            negative_name="Conservation",
        ),
        Axis(
            name="enhancement-transcendence",
            positive=("hedonism", "achievement", "power"),
            negative=("benevolence", "universalism"),
            positive_name="Self-enhancement",
            negative_name="Self-transcendence",
        ),
    ),
)
"""Schwartz's ten basic values in circular order; hedonism shares openness to change and
self-enhancement.
"""

VALUEEVAL20 = ValueSpace(
    name="valueeval20",
    dimensions=(
        _dimension(
            "Self-direction: thought",
            "Being free to form one's own ideas: creativity, curiosity, freedom of thought.",
        ),
        _dimension(
            "Self-direction: action",
            "Being free to decide and act by oneself: independence, own goals, privacy.",
        ),
        _dimension("Stimulation", "Living an exciting and varied life, with challenge and daring."),
        _dimension("Hedonism", "Having pleasure and enjoying life."),
        _dimension(
            "Achievement",
            "Being capable and successful: ambition, courage, intellect, recognition.",
        ),
        _dimension("Power: dominance", "Having influence and the right to command others."),
        _dimension("Power: resources", "Having wealth and material means."),
        _dimension(
            "Face", "Keeping a good name: reputation, social recognition, not being shamed."
        ),
        _dimension(
            "Security: personal",
            "Safety of oneself and one's own: health, belonging, a comfortable and debt-free life.",
        ),
        _dimension("Security: societal", "A safe country and a stable society."),
        _dimension("Tradition", "Respecting traditions, faith and the family's ways."),
        _dimension(
            "Conformity: rules", "Complying with laws and rules, obedience, self-discipline."
        ),
        _dimension(
            "Conformity: interpersonal", "Not upsetting others: politeness, honouring elders."
        ),
        _dimension("Humility", "Being humble and accepting one's place in life."),
        _dimension(
            "Benevolence: caring",
            "Being helpful, honest, forgiving and loving; safety of the family.",
        ),
        _dimension(
            "Benevolence: dependability",
            "Being responsible and loyal: someone the group can rely on.",
        ),
        _dimension("Universalism: concern", "Equality, justice and peace for everyone."),
        _dimension(
            "Universalism: nature",
            "Protecting the environment, harmony with nature, a world of beauty.",
        ),
        _dimension(
            "Universalism: tolerance",
            "Accepting people who are different; broad-minded, living and letting live.",
        ),
        _dimension(
            "Universalism: objectivity",
            "Being logical and keeping an objective, unprejudiced view.",
        ),
    ),
)
"""The refined categories of the ValueEval'23 shared task, in the order of its label columns
(titles are the column names).
"""

VALUEEVAL_TO_SCHWARTZ: dict[str, tuple[str, ...]] = {
    "self-direction-thought": ("self-direction",),
    "self-direction-action": ("self-direction",),
    "stimulation": ("stimulation",),
    "hedonism": ("hedonism",),
    "achievement": ("achievement",),
    "power-dominance": ("power",),
    "power-resources": ("power",),
    "face": ("power",),
    "security-personal": ("security",),
    "security-societal": ("security",),
    "tradition": ("tradition",),
    "conformity-rules": ("conformity",),
    "conformity-interpersonal": ("conformity",),
    "humility": ("tradition",),
    "benevolence-caring": ("benevolence",),
    "benevolence-dependability": ("benevolence",),
    "universalism-concern": ("universalism",),
    "universalism-nature": ("universalism",),
    "universalism-tolerance": ("universalism",),
    "universalism-objectivity": ("universalism",),
}
"""Each category's value among the ten. Seventeen follow from their names; three are choices.

Face goes to power: on the refined circle it lies between power and security; in the list of ten,
keeping one's public image and social recognition are marks of power, and counting it as both would
blur two values that are told apart. Humility goes to tradition: it lies between tradition and
conformity; in the list of ten, being humble and accepting one's portion in life belong to
tradition. Objectivity goes to universalism: the shared task added it and the circle does not have
it. Its name files it under universalism, and not taking sides is close to being broad-minded,
although logic is also a matter of self-directed thought.
"""
