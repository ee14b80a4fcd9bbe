"""Launching on the device that a tensor lives on, also when another one is current."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def on(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one; does nothing for CPU tensors."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
