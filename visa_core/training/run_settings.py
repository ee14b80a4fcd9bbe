"""Whether a resumed run has the settings that it was begun with."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from visa_core.training.checkpoint import CheckpointError

FREE_TO_CHANGE = ("resume", "tensorboard", "track", "track_project")
"""Settings that a resumed run may have otherwise."""


def defaults_of(settings: Any) -> dict[str, Any]:
    """The defaults of a settings dataclass, parts included; fields without one are left out."""
    defaults = {}
    for field in fields(settings):
        value = field.default if field.default_factory is MISSING else field.default_factory()
        if value is not MISSING:
            defaults[field.name] = asdict(value) if _is_part(value) else value
    return defaults


def refuse_other_settings(
    path: Path, old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any]
) -> None:
    """Raise CheckpointError that names the settings which differ between two run records.

    A setting that the old record lacks did not exist when the run was begun: a new one's default
    leaves runs as they were, so the run goes on with that, and with nothing else.
    """
    before, after = _flatten(old), _flatten(new)
    usual = _flatten(json.loads(json.dumps(defaults, default=str)))
    added = {k: usual[k] for k in after.keys() - before.keys() if k in usual}
    before |= added
    changed = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    changed = [k for k in changed if k.rsplit(".", 1)[-1] not in FREE_TO_CHANGE]
    if changed:
        listed = ", ".join(f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in changed[:5])
        raise CheckpointError(
            f"--resume with other settings than {path} holds ({listed}); restore them"
        )


def _is_part(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        k: v
        for key, sub in tree.items()
        for k, v in _flatten(sub, f"{prefix}.{key}" if prefix else key).items()
    }
