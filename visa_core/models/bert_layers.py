"""BERT's layers on packed rows with frozen weights laid out for speed.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT and ELECTRA are built of the same layer. Here its projections
of keys and values are one product, bias, GELU and residual go with their products, and where only
the first token of each row is read afterwards (by a classifier) the last layer computes no other
past its keys and values: that leaves out 10/12 of its products and nearly all of its attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from visa_core.models.first_attention import first_token_attention
from visa_core.models.packed_rows import PackedRows
from visa_core.models.prepacked_linear import PrepackedLinear
from visa_kernels import packed_attention

KINDS = ("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel")


class BertLayers:
    """A copy of the linear weights of such an encoder, and its forward pass in evaluation mode.

    In bfloat16 products and attention read and write that type, with sums and softmax in float32;
    embeddings, residual stream and layer norms stay in float32.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype = torch.float32) -> None:
        assert self.why_not(model) is None
        self.model = model
        self.heads = model.config.num_attention_heads
        self.layers = [_Layer(layer, dtype) for layer in model.encoder.layer]
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

    def hidden(self, rows: PackedRows) -> torch.Tensor:
        """Last hidden states [N, D] in float32."""
        x_ND = self._embedded(rows)
        for layer in self.layers:
            x_ND = layer(x_ND, rows, self.heads)
        return x_ND

    def first(self, rows: PackedRows) -> torch.Tensor:
        """Last hidden states of each row's first token, [B, D] in float32."""
        x_ND = self._embedded(rows)
        for layer in self.layers[:-1]:
            x_ND = layer(x_ND, rows, self.heads)
        return self.layers[-1].first(x_ND, rows, self.heads) if self.layers else x_ND[rows.first_B]

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
    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        query, key, value, out, up, down = _linears(layer)
        self.dtype = dtype
        self.query, self.key_value = self._linear(query), self._linear(key, value)
        self.out, self.down = self._linear(out), self._linear(down)
        self.up = self._linear(up, gelu=True)
        self.norms = (layer.attention.output.LayerNorm, layer.output.LayerNorm)

    def __call__(self, x_ND: torch.Tensor, rows: PackedRows, heads: int) -> torch.Tensor:
        read_ND = x_ND.to(self.dtype)
        q, k, v = self._heads(read_ND, read_ND, heads)
        seen_NHd = packed_attention(q, k, v, rows.cu_seqlens, max_seqlen=rows.longest)
        return self._after_attention(seen_NHd, x_ND)

    def first(self, x_ND: torch.Tensor, rows: PackedRows, heads: int) -> torch.Tensor:
        """The same for the first token of each row alone, [B, D]."""
        read_ND = x_ND.to(self.dtype)
        q, k, v = self._heads(read_ND[rows.first_B], read_ND, heads)
        return self._after_attention(first_token_attention(q, k, v, rows), x_ND[rows.first_B])

    def _heads(
        self, asking_MD: torch.Tensor, read_ND: torch.Tensor, heads: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [M, H, d], k and v [N, H, d]."""
        q_MHd = self.query(asking_MD).unflatten(1, (heads, -1))
        k_NHd, v_NHd = self.key_value(read_ND).unflatten(1, (2, heads, -1)).unbind(1)
        return q_MHd, k_NHd, v_NHd

    def _after_attention(self, seen_MHd: torch.Tensor, x_MD: torch.Tensor) -> torch.Tensor:
        x_MD = _norm(self.out.add_to(seen_MHd.flatten(1), x_MD), self.norms[0])
        return _norm(self.down.add_to(self.up(x_MD.to(self.dtype)), x_MD), self.norms[1])

    def _linear(self, *linears: nn.Module, gelu: bool = False) -> PrepackedLinear:
        """One product of linears that read the same."""
        weight, bias = _stacked([x.weight for x in linears]), _stacked([x.bias for x in linears])
        return PrepackedLinear(weight.to(self.dtype), bias.to(self.dtype), gelu=gelu)


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


def _stacked(parameters: list[torch.Tensor]) -> torch.Tensor:
    """One parameter as it is, several in a copy."""
    rows = [x.detach() for x in parameters]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _norm(x_ND: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
    return F.layer_norm(x_ND, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
