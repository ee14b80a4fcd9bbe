"""DeepSpeed ZeRO behind the learner: optimizer, gradients and weights shared out over ranks.

DeepSpeed does the sharing and the updates; this module gives it torch's AdamW and our schedule,
and turns its mean over ranks into the sum that our losses need. Checkpoints are ours: tensors by
parameter name, complete, independent of the number of ranks, never pickle.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn

from visa_core.config import RewriterTraining
from visa_core.training.distributed import World
from visa_core.training.learner import Bucket, checkpointing, name_buckets
from visa_core.training.optim import Schedule, decay_groups

Result = TypeVar("Result")
MOMENTS = ("exp_avg", "exp_avg_sq")
SECTIONS_OF_OURS = ("optimizer", "scheduler", "gradient_accumulation_steps", "train_batch_size")


class Pass(nn.Module):
    """The module that DeepSpeed wraps: one call is one pass of whatever function reads the model.

    The head's weight is declared its own, so ZeRO-3 gathers it for losses that multiply by it
    themselves, outside the head's forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        """function(model, *args)."""
        with checkpointing(self.model):
            return function(self.model, *args)


class ZeroLearner:
    """A model in training under DeepSpeed ZeRO stage 1, 2 or 3; see `Learner` for what it offers.

    Under stage 3 weights are whole only inside `forward`, `whole` and a bucket.
    """

    keeps_storage = False

    def __init__(
        self, model: nn.Module, config: RewriterTraining, total_updates: int, world: World
    ) -> None:
        deepspeed = import_deepspeed(world)
        self.model = model
        self.world = world
        self.stage = config.zero
        self.lr = config.lr
        self.schedule = Schedule(total_updates, config.schedule, config.warmup)
        adamw = torch.optim.AdamW(
            decay_groups([p for p in model.parameters() if p.requires_grad], config.weight_decay),
            lr=config.lr,
            betas=(0.9, config.beta2),
            fused=True,
        )
        wrapper = Pass(model)
        self.engine, *_ = deepspeed.initialize(
            model=wrapper, optimizer=adamw, config=deepspeed_settings(config, model)
        )
        if self.stage == 3:
            deepspeed.zero.register_external_parameter(
                wrapper, model.get_output_embeddings().weight
            )
        self._deepspeed = deepspeed
        self._start_moments()
        world.at_end.append(self.close)

    def close(self) -> None:
        """Let DeepSpeed go: its process groups must be gone before the interpreter ends, and its
        engine, optimizer and parameters refer to them and to each other.
        """
        self.engine.destroy()
        del self.engine
        for parameter in self.model.parameters():
            for name in [n for n in vars(parameter) if n.startswith(("ds_", "_z3_", "_dp_"))]:
                delattr(parameter, name)
        gc.collect()

    @property
    def readable(self) -> nn.Module:
        """The Hugging Face module."""
        return self.model

    def forward(self, function: Callable[..., Result], *args: Any) -> Result:
        """function(model, *args), weights gathered as they are needed."""
        return self.engine(function, *args)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of this part of the step's loss; DeepSpeed divides by the ranks."""
        self.engine.backward(loss * self.world.size)

    def step(self, update: int) -> dict[str, torch.Tensor | float]:
        """Clip, update, clear; returns grad_norm and lr. A gradient that is not finite changes
        no weight and raises FloatingPointError.
        """
        lr = self.lr * self.schedule.factor(update)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm() or 0.0)
        if self.engine.optimizer.overflow or not 0 <= norm < float("inf"):
            raise FloatingPointError(
                f"the gradient norm is not finite at step {update}; lower the learning rate"
            )
        return {"grad_norm": norm, "lr": lr}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All weights on every rank, DeepSpeed's hooks off the modules."""
        if self.stage < 3:
            yield
            return
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        with unwrap_model_for_generation(self.engine):
            yield

    def buckets(self, max_bytes: int = 2**28) -> Iterator[Bucket]:
        """All weights, gathered a bucket at a time; a bucket is freed when the next is asked for.

        All ranks iterate to the end.
        """
        for names in name_buckets(self.model, max_bytes, self._bytes):
            parameters = [self.model.get_parameter(name) for name in names]
            with self._gathered(parameters):
                yield [(n, p.detach()) for n, p in zip(names, parameters, strict=True)]

    def _bytes(self, parameter: nn.Parameter) -> int:
        numel = parameter.ds_numel if self.stage == 3 else parameter.numel()
        return numel * parameter.element_size()

    @contextmanager
    def _gathered(
        self, parameters: list[nn.Parameter], writer: int | None = None
    ) -> Iterator[None]:
        if self.stage < 3:
            yield
            return
        with self._deepspeed.zero.GatheredParameters(parameters, modifier_rank=writer):
            yield

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments by name, other parameters and buffers as they are, on rank 0 (the
        others get an empty one); and how many updates the moments have seen.
        """
        utils = self._deepspeed.utils
        updates = int(self._steps()[0])
        masters, moments, rest = {}, {}, {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                master = utils.safe_get_full_fp32_param(parameter)
                found = {k: utils.safe_get_full_optimizer_state(parameter, k) for k in MOMENTS}
                if self.world.is_main:
                    masters[name] = master.to("cpu", copy=True)
                    moments[name] = {k: v.to("cpu", copy=True) for k, v in found.items()}
            else:
                with self._gathered([parameter]):
                    if self.world.is_main:
                        rest[name] = parameter.detach().to("cpu", copy=True)
        return {"masters": masters, "moments": moments, "frozen": rest, "updates": updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint that every rank has read."""
        if "masters" not in state:
            raise ValueError("the checkpoint was written without --zero; resume with the run's own")
        for step in self._steps():
            step.fill_(state["updates"])
        values = state["masters"] | state["frozen"]
        for name, parameter in self.model.named_parameters():
            value = values[name].to(self.world.device)
            with self._gathered([parameter], writer=0), torch.no_grad():
                if self.stage < 3 or self.world.is_main:
                    parameter.copy_(value)
            if parameter.requires_grad:
                self._write(parameter, value, None)
                for key, moment in state["moments"][name].items():
                    self._write(parameter, moment.to(self.world.device), key)

    def _write(self, parameter: nn.Parameter, value: torch.Tensor, key: str | None) -> None:
        """This rank's part of a master (key None) or a moment."""
        utils = self._deepspeed.utils
        if self.stage < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # the full setters of stage 3 cannot write a last part that is padded
        size = parameter.ds_tensor.numel()
        padded = torch.zeros(size * self.world.size, dtype=value.dtype, device=value.device)
        padded[: value.numel()] = value.reshape(-1)
        part = padded[self.world.rank * size : (self.world.rank + 1) * size]
        if key is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, key)

    def _flat_masters(self) -> list[torch.Tensor]:
        optimizer = self.engine.optimizer
        if self.stage == 3:
            return list(optimizer.fp32_partitioned_groups_flat)
        return list(optimizer.single_partition_of_fp32_groups)

    def _steps(self) -> list[torch.Tensor]:
        """AdamW's own counts of its steps, one for each flat master."""
        states = self.engine.optimizer.optimizer.state
        return [states[master]["step"] for master in self._flat_masters()]

    def _start_moments(self) -> None:
        """Make AdamW's moments now: a checkpoint is written into them, and DeepSpeed links those
        of all parameter groups only if they exist before the first group's first step.
        """
        optimizer = self.engine.optimizer
        for master in self._flat_masters():
            step = torch.zeros((), device=master.device)
            moments = {key: torch.zeros_like(master) for key in MOMENTS}
            optimizer.optimizer.state[master] = {"step": step, **moments}
        if self.stage < 3:
            optimizer._lazy_init_hp_params_optimizer_state()


def import_deepspeed(world: World) -> Any:
    """The package, told its device; a world of one rank gets the process group it asks for.

    On a CPU its shared-memory collectives, which it would compile now, are left out: gloo's do.
    """
    os.environ.setdefault("DS_ACCELERATOR", world.device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(
            "--zero needs the package deepspeed: pip install 'visa-core[deepspeed]'"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch's new names of its collectives, which DeepSpeed does not use yet: one line a call
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    if world.device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not dist.is_initialized():
        backend = "nccl" if world.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return deepspeed


def deepspeed_settings(config: RewriterTraining, model: nn.Module) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, and over it the user's file, section by section."""
    zero: dict[str, Any] = {"stage": config.zero}
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": next(model.parameters()).dtype == torch.bfloat16},
    }
    if config.deepspeed_config is not None:
        for key, value in _users_settings(config.deepspeed_config, config.zero).items():
            both = isinstance(value, dict) and isinstance(settings.get(key), dict)
            settings[key] = {**settings[key], **value} if both else value
    return settings


def _users_settings(path: Path, stage: int) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--deepspeed-config {path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--deepspeed-config {path} must hold one JSON object")
    ours = [key for key in SECTIONS_OF_OURS if key in given]
    if ours:
        raise ValueError(
            f"--deepspeed-config {path} sets {', '.join(ours)}, which the stage's own settings "
            "decide (--lr, --batch-size ...): take them out"
        )
    asked = given.get("zero_optimization", {}).get("stage", stage)
    if asked != stage:
        raise ValueError(f"--deepspeed-config {path} asks for stage {asked} and --zero for {stage}")
    return given
