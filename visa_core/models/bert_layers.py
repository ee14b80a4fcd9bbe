"""BERT's layers on packed rows with frozen weights laid out for speed.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA are built of the same layer. Here its projections
of queries, keys and values are one product, bias, GELU and residual go with their products, and
where only some tokens are read afterwards (a classifier reads the first of each row) the last layer
computes no others past its attention: 9/12 of that layer's products.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from visa_core.models.packed_rows import PackedRows
from visa_core.models.prepacked_linear import PrepackedLinear
from visa_kernels import packed_attention

KINDS = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel")


class BertLayers:
    """A copy of the linear weights of such an encoder, and its forward pass in evaluation mode."""

    def __init__(self, model: PreTrainedModel) -> None:
        assert self.why_not(model) is None
        self.model = model
        self.heads = model.config.num_attention_heads
        self.layers = [_Layer(layer) for layer in model.encoder.layer]
        self._versions = self._seen()

    @staticmethod
    def why_not(model: PreTrainedModel) -> str | None:
        """None where the model is built as expected; otherwise what is different."""
        if type(model).__name__ not in KINDS:
            return f"{type(model).__name__} is not one of {', '.join(KINDS)}"
        if model.config.hidden_act != "gelu" or model.config.add_cross_attention:
            return "its activation is not GELU, or it has cross-attention"
        linears = [module for layer in model.encoder.layer for module in _linears(layer)]
        if any(type(module) is not nn.Linear for module in linears):
            return "its linear layers were replaced, by adapters for example"
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            return "its modules have hooks"
        return None

    def is_stale(self) -> bool:
        """Whether the weights were replaced, moved or written to since they were copied."""
        return self._seen() != self._versions

    def hidden(self, rows: PackedRows, kept: torch.Tensor | None) -> torch.Tensor:
        """Last hidden states [N, D], or those of the tokens `kept` [M] alone, [M, D]."""
        x_ND = self._embedded(rows)
        for index, layer in enumerate(self.layers):
            is_last = index == len(self.layers) - 1
            x_ND = layer(x_ND, rows, self.heads, kept if is_last else None)
        return x_ND if kept is None or self.layers else x_ND[kept]

    def _embedded(self, rows: PackedRows) -> torch.Tensor:
        types = None if rows.types_N is None else rows.types_N[None]
        if types is None:
            types = torch.zeros_like(rows.ids_N)[None]
        positions = rows.position_N[None]
        x_1ND = self.model.embeddings(
            input_ids=rows.ids_N[None], token_type_ids=types, position_ids=positions
        )
        project = getattr(self.model, "embeddings_project", None)
        return (x_1ND if project is None else project(x_1ND))[0]

    def _seen(self) -> list[tuple[int, int]]:
        return [
            (x.data_ptr(), 0 if x.is_inference() else x._version)
            for x in self.model.encoder.parameters()
        ]


class _Layer:
    def __init__(self, layer: nn.Module) -> None:
        query, key, value, out, up, down = _linears(layer)
        self.qkv = PrepackedLinear(
            torch.cat([x.weight.detach() for x in (query, key, value)]),
            torch.cat([x.bias.detach() for x in (query, key, value)]),
        )
        self.out, self.down = (
            PrepackedLinear(x.weight.detach(), x.bias.detach()) for x in (out, down)
        )
        self.up = PrepackedLinear(up.weight.detach(), up.bias.detach(), gelu=True)
        self.norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)

    def __call__(
        self, x_ND: torch.Tensor, rows: PackedRows, heads: int, kept: torch.Tensor | None
    ) -> torch.Tensor:
        tokens = len(x_ND)
        q, k, v = self.qkv(x_ND).view(tokens, 3, heads, -1).unbind(1)
        seen_NHd = packed_attention(q, k, v, rows.cu_seqlens, max_seqlen=rows.longest)
        seen_ND = seen_NHd.reshape(tokens, -1)
        if kept is not None:
            seen_ND, x_ND = seen_ND[kept], x_ND[kept]
        x_ND = _norm(self.out.add_to(seen_ND, x_ND), self.norms[0])
        return _norm(self.down.add_to(self.up(x_ND), x_ND), self.norms[1])


def _linears(layer: nn.Module) -> list[nn.Module]:
    heads = layer.attention.self
    return [
        heads.query,
        heads.key,
        heads.value,
        layer.attention.output.dense,
        layer.intermediate.dense,
        layer.output.dense,
    ]


def _norm(x_ND: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return F.layer_norm(x_ND, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
