"""What `from visa_core import ...` offers."""

from __future__ import annotations

import importlib

import pytest

import visa_core


@pytest.mark.parametrize("name", visa_core.__all__)
def test_every_public_name_is_the_one_of_its_module(name: str) -> None:
    value = getattr(visa_core, name)
    assert name in dir(visa_core)
    if name != "__version__":
        home = importlib.import_module(visa_core._HOME[name])
        assert value is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Pipelin'"):
        visa_core.Pipelin  # noqa: B018
