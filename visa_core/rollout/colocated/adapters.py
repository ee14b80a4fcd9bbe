"""peft-wrapped models: which weights vLLM shares, and which it holds with their adapters merged in.

Merging into a shared weight and taking the adapter out again leaves rounding behind at every step,
so an adapted weight is not shared: its place in vLLM holds base + adapter, computed afresh from the
frozen base after each update. All other weights are views as in full fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from visa_core.rollout.colocated.weight_map import Named, Place


@dataclass(frozen=True)
class TrainedWeights:
    """Parameters under the names that the plain model gives them, ties under every name.

    plain: can be shared. adapted: name -> the peft layer that wraps this frozen weight.
    """

    plain: Named
    adapted: dict[str, Any]
    frozen: dict[str, torch.Tensor]

    def all(self) -> Named:
        """Every parameter that vLLM must have a place for."""
        return [*self.plain, *self.frozen.items()]


def is_peft(model: nn.Module) -> bool:
    """Whether peft wraps the model; peft itself is not imported."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def base_model(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside a peft model, or the model itself."""
    return model.get_base_model() if is_peft(model) else model


def trained_weights(model: nn.Module) -> TrainedWeights:
    """The parameters of a plain or peft-wrapped model. Raises ValueError for adapters that are no
    matrix added to a weight (DoRA, biases, prompts, scalings).
    """
    base = base_model(model)
    if not is_peft(model):
        return TrainedWeights(list(base.named_parameters(remove_duplicate=False)), {}, {})
    layers = {name: m for name, m in base.named_modules() if hasattr(m, "base_layer")}
    wrapped = {name: m for name, m in base.named_modules() if hasattr(m, "modules_to_save")}
    _refuse_other_kinds(model, layers)
    plain: Named = []
    frozen: dict[str, torch.Tensor] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owner = _owner(name, layers | wrapped)
        if owner is None:
            plain.append((name, parameter))
        elif owner in layers and name.startswith(f"{owner}.base_layer."):
            leaf = name.removeprefix(f"{owner}.base_layer.")
            if leaf == "weight":
                frozen[f"{owner}.{leaf}"] = parameter
            else:
                plain.append((f"{owner}.{leaf}", parameter))
        elif owner in wrapped:
            saved = f"{owner}.modules_to_save.{_only(wrapped[owner].active_adapters)}."
            if name.startswith(saved):
                plain.append((f"{owner}.{name.removeprefix(saved)}", parameter))
    return TrainedWeights(plain, {f"{name}.weight": m for name, m in layers.items()}, frozen)


@torch.no_grad()
def merge(trained: TrainedWeights, places: dict[str, Place]) -> int:
    """Write base + adapter into the places of the adapted weights; returns bytes written."""
    written = 0
    for name, layer in trained.adapted.items():
        view = places[name].view()
        merged = trained.frozen[name].float()
        if not layer.disable_adapters:
            for adapter in layer.active_adapters:
                if adapter in layer.scaling:
                    merged = merged + layer.get_delta_weight(adapter).float()
        view.copy_(merged)
        written += view.nbytes
    return written


def _owner(name: str, modules: dict[str, nn.Module]) -> str | None:
    parts = name.split(".")
    prefixes = (".".join(parts[:i]) for i in range(1, len(parts)))
    return next((prefix for prefix in prefixes if prefix in modules), None)


def _only(adapters: list[str]) -> str:
    if len(adapters) != 1:
        raise ValueError(f"the vllm engine needs one active adapter, found {', '.join(adapters)}")
    return adapters[0]


def _refuse_other_kinds(model: nn.Module, layers: dict[str, nn.Module]) -> None:
    problems = []
    for adapter, config in model.peft_config.items():
        if getattr(config, "use_dora", False):
            problems.append(f"adapter {adapter!r} is DoRA")
        if getattr(config, "lora_bias", False) or getattr(config, "bias", "none") != "none":
            problems.append(f"adapter {adapter!r} trains biases")
        if getattr(config, "is_prompt_learning", False):
            problems.append(f"adapter {adapter!r} is learned prompts")
    if not layers and not problems:
        problems.append("no layer has an adapter that is added to its weight")
    for name, layer in layers.items():
        if not hasattr(layer, "get_delta_weight") or not hasattr(layer, "scaling"):
            problems.append(f"{name} has an adapter of kind {type(layer).__name__}")
        elif getattr(layer, "merged", False):
            problems.append(f"{name}: its adapter is merged; call unmerge_adapter() first")
    if problems:
        raise ValueError(
            "the vllm engine takes LoRA adapters that are added to a weight: "
            + "; ".join(problems[:5])
            + ". Use --engine hf for this model."
        )
