"""What linear_grpo_loss should take on a GPU, before one is at hand: `python -m bench.predict`.

A sum of the parts that cannot overlap, each from its operations or bytes and the device's ceilings
(default: an H200). Where a part overlaps with another only in part, the share is said. To be held
against `python -m bench.run --op linear_grpo_loss --device cuda` and corrected by it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from visa_kernels.linear_logprobs import chunks


@dataclass(frozen=True, kw_only=True)
class Device:
    """Ceilings as measured."""

    flops: float = 790e12
    """of a large bf16 matrix product, per second"""
    bandwidth: float = 4.3e12
    """of a copy, bytes per second"""
    processors: int = 132
    cache: float = 50e6
    """bytes of L2"""


@dataclass(frozen=True, kw_only=True)
class Size:
    """A batch, in 16-bit types."""

    tokens: int = 8192
    hidden: int = 4096
    vocabulary: int = 131072
    accumulate_into: bool = False

    @property
    def chunk(self) -> int:
        most = chunks.BYTES["cuda"] // (2 * self.vocabulary)
        if self.tokens <= most:
            return self.tokens
        return chunks.of_gpu(self.tokens, self.hidden, most, Device().processors)

    @property
    def chunk_sizes(self) -> list[int]:
        starts = range(0, self.tokens, self.chunk)
        return [min(self.chunk, self.tokens - start) for start in starts]


def seconds(size: Size, device: Device) -> dict[str, float]:
    """Time of each part."""
    product = 2 * size.hidden * size.vocabulary / device.flops
    wasted = sum(
        max(chunks.rounds_filled(n, size.hidden, device.processors) - n, 0)
        for n in size.chunk_sizes
    )
    weight = size.vocabulary * size.hidden
    reread = device.processors * 2 * size.vocabulary > device.cache
    row_bytes = 2 * size.vocabulary * (3 if reread else 2)
    visits = 2 * len(size.chunk_sizes) - (0 if size.accumulate_into else 1)
    times = {
        "matrix products, 6 T D V": 3 * product * size.tokens,
        "last rounds of tiles not full": product * wasted,
        "dweight read and written, half overlapped": 4 * weight * visits / device.bandwidth / 2,
        "row kernel: logits read, dlogits written": size.tokens * row_bytes / device.bandwidth,
        "vectors, one sync, launches": 150e-6,
    }
    if not size.accumulate_into:
        times["dweight to 16 bits"] = 6 * weight / device.bandwidth
        times["dweight times the loss's gradient"] = 4 * weight / device.bandwidth
    return times


def scratch_bytes(size: Size) -> dict[str, int]:
    """Memory beside hidden, weight and their gradients."""
    memory = {"a chunk of logits": 2 * size.chunk * size.vocabulary}
    memory["vectors of T"] = 4 * 24 * size.tokens
    if not size.accumulate_into:
        memory["dweight in float32, until it is cast"] = 4 * size.vocabulary * size.hidden
    return memory


def report(size: Size, device: Device) -> str:
    """A table of both."""
    times = seconds(size, device)
    total = sum(times.values())
    floor = 6 * size.tokens * size.hidden * size.vocabulary / device.flops
    lines = [f"T={size.tokens} D={size.hidden} V={size.vocabulary}, chunks {size.chunk_sizes}"]
    lines += [f"  {1e3 * value:8.3f} ms  {name}" for name, value in times.items()]
    lines += [f"  {1e3 * total:8.3f} ms  in all: {floor / total:.1%} of the floor"]
    lines += [f"  {value / 1e6:8.1f} MB  {name}" for name, value in scratch_bytes(size).items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("tokens", "hidden", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Size, name))
    options = vars(parser.parse_args())
    for accumulate_into in (False, True):
        print("dweight added to a float32 .grad" if accumulate_into else "dweight returned")
        print(report(Size(accumulate_into=accumulate_into, **options), Device()))


if __name__ == "__main__":
    main()
