"""Where each Hugging Face parameter lives in a vLLM model, and how the two come to share it.

vLLM fuses projections (q, k and v are rows of one matrix, gate and up of another) and pads the
vocabulary. Everything needed to undo that is read from the vLLM modules themselves, so the map
holds for any model whose parameters are rows of vLLM's; one that is not is refused with a list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

Named = list[tuple[str, torch.Tensor]]

LISTED = 12
"""Problems that a refusal prints in full."""


@dataclass(frozen=True)
class Place:
    """Rows [start, stop) of vLLM's tensor `name`."""

    name: str
    tensor: torch.Tensor
    start: int
    stop: int

    def view(self) -> torch.Tensor:
        """The rows, sharing vLLM's storage."""
        return self.tensor[self.start : self.stop] if self.tensor.ndim else self.tensor

    @property
    def key(self) -> tuple[int, int, int]:
        """The same for two names of one tied weight."""
        return self.tensor.data_ptr(), self.start, self.stop


class UnmappableError(ValueError):
    """The model's weights cannot be shared with vLLM; `problems` lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        listed = "".join(f"\n  - {problem}" for problem in problems[:LISTED])
        more = f"\n  and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        super().__init__(
            "the trained model cannot share its weights with vLLM:"
            f"{listed}{more}\nUse --vllm.weights copy (vLLM keeps a copy, written after each "
            "update), or --engine hf."
        )


def weight_map(
    named: Iterable[tuple[str, torch.Tensor]], vllm_model: nn.Module, settings: Iterable[str] = ()
) -> dict[str, Place]:
    """Hugging Face name -> place in vLLM, for the names in `named` (ties under every name).

    `settings` are reasons found elsewhere why nothing can be shared, such as quantisation.
    Raises UnmappableError with all reasons: names, shapes, dtypes, ties, rows of vLLM that no
    parameter fills.
    """
    named = list(named)
    targets = dict(vllm_model.named_parameters(remove_duplicate=False))
    problems = list(settings)
    places: dict[str, Place] = {}
    unknown: list[str] = []
    for name, parameter in named:
        place = _find(name, parameter, vllm_model, targets)
        if place is None:
            unknown.append(name)
        elif problem := _mismatch(name, parameter, place):
            problems.append(problem)
        else:
            places[name] = place
    problems += _not_in_vllm(named, places, unknown)
    problems += _tie_problems(named, places)
    if not problems:
        problems += _unfilled(places, targets, vllm_model)
    if problems:
        raise UnmappableError(problems)
    return places


def fused_rows(vllm_model: nn.Module) -> dict[str, tuple[str, int]]:
    """Name of an unfused projection -> (name of the fused one, its number in it)."""
    packed: dict[str, list[str]] = getattr(vllm_model, "packed_modules_mapping", {})
    return {part: (whole, i) for whole, parts in packed.items() for i, part in enumerate(parts)}


def _find(
    name: str, parameter: torch.Tensor, vllm_model: nn.Module, targets: dict[str, torch.Tensor]
) -> Place | None:
    module_path, _, leaf = name.rpartition(".")
    if name in targets:
        tensor = _plain(targets[name])
        rows = tensor.shape[0] if tensor.ndim else 0
        owner = vllm_model.get_submodule(module_path)
        if (getattr(owner, "org_vocab_size", None),) == _shape(parameter)[:1]:
            rows = owner.org_vocab_size
        return Place(name, tensor, 0, rows)
    parent, _, last = module_path.rpartition(".")
    fused = fused_rows(vllm_model).get(last)
    if fused is None:
        return None
    whole = f"{parent}.{fused[0]}" if parent else fused[0]
    target = targets.get(f"{whole}.{leaf}")
    sizes = getattr(vllm_model.get_submodule(whole), "output_partition_sizes", None)
    if target is None or sizes is None or fused[1] >= len(sizes):
        return None
    start = sum(sizes[: fused[1]])
    return Place(f"{whole}.{leaf}", _plain(target), start, start + sizes[fused[1]])


def _shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """Of the whole parameter, also where DeepSpeed has partitioned it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _plain(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter's tensor without vLLM's subclass."""
    return parameter.detach().as_subclass(torch.Tensor)


def _mismatch(name: str, parameter: torch.Tensor, place: Place) -> str | None:
    if place.tensor.numel() == 0:
        return f"{name}: vLLM has repacked {place.name} and keeps no plain tensor"
    if not place.tensor.is_contiguous():
        return f"{name}: vLLM keeps {place.name} in another memory layout"
    rows = place.view()
    if tuple(rows.shape) != _shape(parameter):
        return (
            f"{name}: shape {_shape(parameter)}, but its rows of vLLM's {place.name} "
            f"{tuple(place.tensor.shape)} are {tuple(rows.shape)} (tensor parallelism, another "
            "vocabulary, or another model)"
        )
    if rows.dtype != parameter.dtype:
        return f"{name}: dtype {parameter.dtype}, but vLLM's {place.name} has {rows.dtype}"
    return None


def _not_in_vllm(named: Named, places: dict[str, Place], unknown: list[str]) -> list[str]:
    """Names without a place, except second names of a tied weight that has one."""
    placed = {id(parameter) for name, parameter in named if name in places}
    lost = [name for name, parameter in named if name in unknown and id(parameter) not in placed]
    return [f"{name}: vLLM's model has no such parameter" for name in lost]


def _tie_problems(named: Named, places: dict[str, Place]) -> list[str]:
    by_parameter: dict[int, tuple[str, Place]] = {}
    by_place: dict[tuple[int, int, int], tuple[str, int]] = {}
    problems = []
    for name, parameter in named:
        if name not in places:
            continue
        first, place = by_parameter.setdefault(id(parameter), (name, places[name]))
        if place.key != places[name].key:
            problems.append(f"{name}: tied to {first} in the trained model, but not in vLLM")
        other, identity = by_place.setdefault(places[name].key, (name, id(parameter)))
        if identity != id(parameter):
            problems.append(f"{name}: tied to {other} in vLLM, but not in the trained model")
    return problems


def _unfilled(
    places: dict[str, Place], targets: dict[str, torch.Tensor], vllm_model: nn.Module
) -> list[str]:
    """Parameters of vLLM with rows that nothing fills; rows that pad a vocabulary need not be."""
    filled: dict[int, set[tuple[int, int]]] = {}
    for place in places.values():
        filled.setdefault(place.tensor.data_ptr(), set()).add((place.start, place.stop))
    problems = []
    for name, target in targets.items():
        owner = vllm_model.get_submodule(name.rpartition(".")[0])
        wanted = getattr(owner, "org_vocab_size", target.shape[0] if target.ndim else 0)
        rows = sum(stop - start for start, stop in filled.get(_plain(target).data_ptr(), ()))
        if rows != wanted:
            problems.append(
                f"vLLM's {name} {tuple(target.shape)}: {rows} of its {wanted} rows belong to a "
                "parameter of the trained model"
            )
    return problems


@torch.no_grad()
def share(named: Iterable[tuple[str, torch.Tensor]], places: dict[str, Place]) -> None:
    """Write each parameter's values into its place once, then make the parameter a view of it.

    The nn.Parameter objects stay the same, so an optimizer built before or after sees them; their
    old storage is freed. Parameters may come from another device than vLLM's.
    """
    seen: set[int] = set()
    for name, parameter in named:
        if name in places and id(parameter) not in seen:
            seen.add(id(parameter))
            view = places[name].view()
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = None


@torch.no_grad()
def unshare(named: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Give each parameter memory of its own again, one at a time."""
    seen: set[int] = set()
    for _, parameter in named:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            parameter.data = parameter.data.clone()


@torch.no_grad()
def clear_padding(places: dict[str, Place], vllm_model: nn.Module) -> None:
    """Zero the rows that pad a vocabulary: empty weights may hold anything, NaN included."""
    ends: dict[str, tuple[torch.Tensor, int]] = {}
    for place in places.values():
        _, end = ends.get(place.name, (place.tensor, 0))
        ends[place.name] = (place.tensor, max(end, place.stop))
    for tensor, end in ends.values():
        tensor[end:].zero_()


def shared_bytes(
    named: Iterable[tuple[str, torch.Tensor]], vllm_model: nn.Module
) -> tuple[int, int]:
    """(bytes of parameters inside vLLM's storage, bytes of parameters outside it), by address."""
    spans = {
        (p.untyped_storage().data_ptr(), p.untyped_storage().nbytes())
        for p in vllm_model.parameters()
    }
    inside = outside = 0
    seen: set[int] = set()
    for _, parameter in named:
        if id(parameter) in seen:
            continue
        seen.add(id(parameter))
        size, first = parameter.nbytes, parameter.data_ptr()
        held = any(first >= start and first + size <= start + length for start, length in spans)
        inside, outside = inside + size * held, outside + size * (not held)
    return inside, outside
