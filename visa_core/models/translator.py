"""The Translator T(I, q, y) -> dv: which change of values an instruction asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from visa_core.models.vector_head import VectorModel


class Translator(VectorModel):
    """Asked-for change of the value vector, each entry in [-2, 2] (from one end of the scale to
    the other).
    """

    kind: ClassVar[str] = "translator"
    limit: ClassVar[float] = 2.0

    def tokenize(
        self, instructions: Sequence[str], queries: Sequence[str], responses: Sequence[str]
    ) -> list[list[int]]:
        """Token rows of instruction, query and response; warns with the number of rows that were
        cut.
        """
        return self.encoder.tokenize(instructions, queries, responses)

    def predict(
        self,
        instructions: Sequence[str],
        queries: Sequence[str],
        responses: Sequence[str],
        batch_size: int = 64,
    ) -> torch.Tensor:
        """Shifts [B, K] float32 on the CPU, in the order given."""
        rows = self.tokenize(instructions, queries, responses)
        return self._predict_rows(rows, batch_size)[0]
