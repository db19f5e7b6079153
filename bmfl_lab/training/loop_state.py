"""The state of a training run, and how it goes to disk and comes back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.training import checkpoint
from bmfl_lab.training.loop_parts import Batches, architecture, optimiser_tensors, restore_optimiser

if TYPE_CHECKING:
    from bmfl_lab.training.loop import LoopConfig


@dataclass
class Run:
    """A training run between two steps."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    accelerator: Any
    batches: Batches
    config: LoopConfig
    bfloat16: bool
    micro: int = 1
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @functools.cached_property
    def plain(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.module)

    @functools.cached_property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in self.plain.state_dict().items()}


def identity_of(run: Run, manifest: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what must be the same when the run is resumed."""
    return {
        **configs.to_dict(run.config),
        **dict(manifest or {}),
        "architecture": architecture(run.plain),
        "data": run.batches.fingerprint(),
    }


def environment(run: Run) -> dict[str, Any]:
    """Return what may differ on resume, but then not to the bit."""
    return {
        "processes": run.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": run.accelerator.device.type,
    }


def save(run: Run, folder: Path, identity: Mapping[str, Any]) -> None:
    """Write the checkpoint of this step, then delete what it replaces."""
    if not run.accelerator.is_main_process:
        return
    tensors = {f"model.{k}": v for k, v in run.plain.state_dict().items()}
    tensors |= optimiser_tensors(run.optimiser) | checkpoint.rng_tensors()
    tensors |= {f"sums.{k}": v for k, v in run.sums.items()}
    manifest = {
        "identity": dict(identity),
        "environment": environment(run),
        "step": run.step,
        "history": run.history,
        "best": run.best,
        "micro": run.micro,
        "notes": run.notes,
        "tensors": sorted(tensors),
    }
    checkpoint.write_bundle(folder, checkpoint.step_name(run.step), tensors, manifest)
    checkpoint.prune(folder, {run.step} | ({run.best["step"]} if run.best else set()))


def resume_run(
    run: Run, folder: Path, identity: Mapping[str, Any], allow_change: Sequence[str]
) -> None:
    """Continue from the newest checkpoint of `folder`, if there is one.

    Raises
    ------
    CheckpointError
        If it is damaged or belongs to another run.
    """
    step = checkpoint.newest_step(folder)
    if step is None:
        return
    name = checkpoint.step_name(step)
    checkpoint.refuse_changes(
        checkpoint.read_manifest(folder / f"{name}.json")["identity"], identity, allow_change
    )
    tensors, found = checkpoint.read_bundle(folder, name)
    if sorted(tensors) != found["tensors"]:
        raise checkpoint.mismatch(folder, found["tensors"], tensors)
    run.plain.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    restore_optimiser(run.optimiser, tensors)
    checkpoint.set_rng(tensors)
    run.sums = {
        k[5:]: v.to(run.accelerator.device) for k, v in tensors.items() if k.startswith("sums.")
    }
    run.step, run.history, run.best = found["step"], found["history"], found["best"]
    run.micro, run.notes = found["micro"], found["notes"]
    if run.best:
        kept, _ = checkpoint.read_bundle(folder, checkpoint.step_name(run.best["step"]))
        run.best_state = {k[6:]: v for k, v in kept.items() if k.startswith("model.")}
    now = environment(run)
    changed = [
        f"{k} {found['environment'].get(k)} -> {v}"
        for k, v in now.items()
        if found["environment"].get(k) != v
    ]
    if changed:
        run.notes.append("resumed, not bitwise: " + ", ".join(changed))
        print(f"fit: {run.notes[-1]}", flush=True)
