"""The prediction for a GPU adds up and meets the bounds that the design promises."""

from __future__ import annotations

import pytest

from bench import predict


@pytest.mark.parametrize("accumulate_into", [False, True])
def test_the_largest_case(accumulate_into: bool) -> None:
    size = predict.Size(accumulate_into=accumulate_into)
    assert sum(size.chunk_sizes) == size.tokens
    floor = 6 * 8192 * 4096 * 131072 / 790e12
    total = sum(predict.seconds(size, predict.Device()).values())
    assert 0.85 < floor / total < 1
    beside_dweight = predict.scratch_bytes(size)
    beside_dweight.pop("dweight in float32, until it is cast", None)
    assert sum(beside_dweight.values()) < 1e9
    assert f"{floor / total:.1%}" in predict.report(size, predict.Device())
