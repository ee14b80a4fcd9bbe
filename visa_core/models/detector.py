"""The Detector D(q, y) -> v: which values a response expresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from visa_core.models.vector_head import VectorModel
from visa_core.values import categories_to_schwartz


class Detector(VectorModel):
    """Value vector of a response to a query, each entry in [-1, 1].

    A detector trained on ValueEval'23 also has a head of the twenty categories. Trained on nothing
    else, its values are those categories' probabilities mapped to the ten, hence in [0, 1].
    """

    kind: ClassVar[str] = "detector"
    limit: ClassVar[float] = 1.0

    def tokenize(self, queries: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        """Token rows of query and response; warns with the number of rows that were cut."""
        return self.encoder.tokenize(queries, responses)

    def predict(
        self, queries: Sequence[str], responses: Sequence[str], batch_size: int = 64
    ) -> torch.Tensor:
        """Values [B, K] float32 on the CPU, in the order given."""
        values, categories = self._predict_rows(self.tokenize(queries, responses), batch_size)
        return values if self.config.vector_trained else categories_to_schwartz(categories)

    def predict_categories(
        self, queries: Sequence[str], responses: Sequence[str], batch_size: int = 64
    ) -> torch.Tensor:
        """Probability of each of the twenty categories, [B, 20] float32.

        Raises ValueError for a detector that was not trained on them.
        """
        if self.category_head is None:
            raise ValueError("this detector has no category head: train it on valueeval23 data")
        return self._predict_rows(self.tokenize(queries, responses), batch_size)[1]
