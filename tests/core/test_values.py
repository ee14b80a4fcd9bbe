"""Value spaces: names, parsing, custom files, the map of the twenty categories, and the guarded
cosine.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from visa_core.values import (
    LIKERT,
    SCHWARTZ,
    VALUEEVAL20,
    VALUEEVAL_TO_SCHWARTZ,
    Dimension,
    UnknownValueError,
    ValueSpace,
    categories_to_schwartz,
    clip_target,
    cosine,
    snap,
)

TEN = (
    "self-direction",
    "stimulation",
    "hedonism",
    "achievement",
    "power",
    "security",
    "conformity",
    "tradition",
    "benevolence",
    "universalism",
)


def test_the_ten_values_stand_in_circular_order():
    assert SCHWARTZ.names == TEN
    assert SCHWARTZ.size == len(SCHWARTZ) == 10
    assert all(dimension.definition and dimension.keywords for dimension in SCHWARTZ.dimensions)


def test_each_axis_opposes_and_hedonism_shares_both():
    openness, enhancement = SCHWARTZ.axes
    assert set(openness.negative) == {"security", "conformity", "tradition"}
    assert set(enhancement.negative) == {"benevolence", "universalism"}
    assert set(openness.positive) & set(enhancement.positive) == {"hedonism"}
    assert set().union(*(set(a.positive) | set(a.negative) for a in SCHWARTZ.axes)) == set(TEN)


def test_every_category_maps_into_the_ten_and_every_value_is_reached():
    assert tuple(VALUEEVAL_TO_SCHWARTZ) == VALUEEVAL20.names
    reached = {name for names in VALUEEVAL_TO_SCHWARTZ.values() for name in names}
    assert reached == set(TEN)
    for category in (
        "self-direction",
        "power",
        "security",
        "conformity",
        "benevolence",
        "universalism",
    ):
        members = [name for name in VALUEEVAL20.names if name.startswith(category)]
        assert len(members) >= 2 and all(
            category in VALUEEVAL_TO_SCHWARTZ[name] for name in members
        )


def test_categories_to_schwartz_takes_the_largest_member():
    scores = torch.zeros(2, 20)
    scores[0, VALUEEVAL20.index("face")] = 0.7
    scores[0, VALUEEVAL20.index("power-resources")] = 0.2
    scores[1, VALUEEVAL20.index("humility")] = 1.0
    ten = categories_to_schwartz(scores)
    assert SCHWARTZ.as_dict(ten[0]) == {"power": 0.7}
    assert SCHWARTZ.as_dict(ten[1]) == {"tradition": 1.0}
    with pytest.raises(ValueError, match="20 category scores"):
        categories_to_schwartz(torch.zeros(3, 10))


def test_vector_and_dictionary_are_inverse():
    vector = SCHWARTZ.vector({"security": 1, "power": -0.5})
    assert vector.dtype == torch.float32
    assert vector.tolist() == [0, 0, 0, 0, -0.5, 1, 0, 0, 0, 0]
    assert SCHWARTZ.as_dict(vector) == {"power": -0.5, "security": 1.0}
    assert list(SCHWARTZ.as_dict(vector, drop_zero=False)) == list(TEN)
    assert SCHWARTZ.as_dict(torch.full((10,), -1e-9)) == {}


@pytest.mark.parametrize("name", ["Self-Direction", "self_direction", " SELF DIRECTION "])
def test_names_are_forgiving_about_case_and_separators(name):
    assert SCHWARTZ.index(name) == 0


def test_category_titles_are_names_too():
    assert VALUEEVAL20.index("Universalism: objectivity") == 19


def test_unknown_name_offers_close_matches_and_the_known_names():
    with pytest.raises(
        UnknownValueError, match=r"'benevolance'.*Did you mean benevolence\?.*universalism"
    ) as caught:
        SCHWARTZ.vector({"benevolance": 1})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.01, -2, "high", True, None])
def test_vector_refuses_what_is_not_a_number_in_range(value):
    with pytest.raises(ValueError, match="'power'"):
        SCHWARTZ.vector({"power": value})


def test_a_shift_may_reach_two():
    assert SCHWARTZ.vector({"power": -2}, limit=2)[4] == -2


def test_matrix_marks_unknown_rows():
    values, known = SCHWARTZ.matrix([{"power": 1}, None, {}])
    assert values.shape == (3, 10) and known.tolist() == [True, False, True]
    assert values[1:].abs().sum() == 0


def test_parse_reads_pairs():
    expected = SCHWARTZ.vector({"security": 1, "power": -0.5})
    assert torch.equal(SCHWARTZ.parse(" security = 1, Power=-0.5 ,"), expected)


@pytest.mark.parametrize(
    "text, says",
    [
        ("security", "--target: expected NAME=NUMBER"),
        ("security=high", "--target: 'high' of 'security' is not a number"),
        ("security=1.5", r"--target: value 'security' must be in \[-1, 1\], got 1.5"),
        ("security=nan", "--target: .*finite"),
        ("securty=1", "--target: unknown value 'securty'.*Did you mean security"),
        ("", "--target: is empty"),
        ("power=1,Power=0", "--target: .*twice"),
    ],
)
def test_parse_names_the_field_and_the_fault(text, says):
    with pytest.raises(ValueError, match=says):
        SCHWARTZ.parse(text, field="--target")


def test_parse_keeps_the_kind_of_error_for_unknown_names():
    with pytest.raises(UnknownValueError):
        SCHWARTZ.parse("securty=1")


def test_custom_space_round_trips_through_a_file(tmp_path):
    path = tmp_path / "space.json"
    SCHWARTZ.save(path)
    assert ValueSpace.from_file(path) == SCHWARTZ
    path.write_text(
        json.dumps(
            {
                "name": "care",
                "dimensions": [
                    {
                        "name": "warmth",
                        "title": "Warmth",
                        "definition": "Being warm.",
                        "keywords": ["kind"],
                    }
                ],
            }
        )
    )
    space = ValueSpace.from_file(path)
    assert space.names == ("warmth",) and space.vector({"warmth": 0.5}).tolist() == [0.5]


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"name": "x"}', "lacks the key 'dimensions'"),
        ('{"name": "x", "dimensions": []}', "has no dimensions"),
        (
            '{"name": "x", "dimensions": [{"name": "a", "title": "A"}]}',
            "lacks the key 'definition'",
        ),
        (
            '{"name": "x", "dimensions": [{"name": "a", "title": "A", "definition": "", "x": 1}]}',
            "unknown key 'x'",
        ),
        (
            '{"name": "x", "dimensions": [{"name": "A b", "title": "A", "definition": "d"}]}',
            "lower case words",
        ),
        (
            '{"name": "x", "dimensions": [{"name": "a", "title": "A", "definition": "", '
            '"keywords": ""}]}',
            "list of strings",
        ),
    ],
)
def test_a_bad_space_file_is_named(tmp_path, text, says):
    path = tmp_path / "space.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"space.json.*{says}"):
        ValueSpace.from_file(path)


def test_missing_space_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere.json: no such value space file"):
        ValueSpace.from_file(tmp_path / "nowhere.json")


def test_repeated_dimensions_are_refused():
    dimension = Dimension(name="a", title="A", definition="d")
    with pytest.raises(ValueError, match="repeated dimensions: a"):
        ValueSpace(name="x", dimensions=(dimension, dimension))


def test_snap_goes_to_the_nearest_likert_step():
    points = torch.linspace(-1.4, 1.4, 283)
    snapped = snap(points)
    distance = (points[:, None] - torch.tensor(LIKERT)).abs().min(1).values
    assert torch.allclose((snapped - points).abs(), distance, atol=1e-6)
    assert set(snapped.tolist()) == set(LIKERT)


def test_clip_target_stays_on_the_scale():
    assert clip_target(torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, -2.0, 0.5])).tolist() == [
        1.0,
        -1.0,
        0.5,
    ]


def test_cosine_agrees_with_the_definition_in_double_precision():
    torch.manual_seed(0)
    a, b = torch.randn(50, 10, dtype=torch.float64), torch.randn(50, 10, dtype=torch.float64)
    expected = (a * b).sum(-1) / (a.pow(2).sum(-1).sqrt() * b.pow(2).sum(-1).sqrt())
    assert torch.allclose(cosine(a, b), expected, atol=1e-12)
    assert torch.allclose(cosine(a.float(), b.float()).double(), expected, atol=1e-6)


def test_cosine_of_neutral_vectors_is_defined_and_has_finite_gradients():
    zero, one = torch.zeros(10), torch.ones(10)
    assert cosine(zero, one) == 0 and cosine(one, zero) == 0 and cosine(zero, zero) == 1
    a = torch.stack([zero, one]).requires_grad_()
    cosine(a, one.roll(1) * torch.arange(10.0)).sum().backward()
    assert a.grad is not None and torch.isfinite(a.grad).all()
    assert a.grad[0].abs().sum() == 0


def test_cosine_broadcasts():
    assert cosine(torch.randn(4, 3, 10), torch.randn(10)).shape == (4, 3)
