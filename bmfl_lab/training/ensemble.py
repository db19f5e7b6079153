"""Train many small fusion models at once: one batched model with a leading axis over models.

Models of the same architecture that differ in seed, alpha, source of the responses or silenced
vertices are stacked (``torch.func.stack_module_state``) and step together; each keeps its own
initial weights, order of images, gradient norm and selected epoch, exactly as `train_fusion` would
give it.

Shape suffixes: M models, B batch, P patches, D width, V vertices, C classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, NumericsError, message
from bmfl_lab.losses import fusion_loss, pearson_regulariser
from bmfl_lab.runtime import pick_device, progress, seed_for
from bmfl_lab.training.fusion_parts import ResponseSource
from bmfl_lab.training.loop_parts import Batches, architecture, learning_rate
from bmfl_lab.training.recipes import FusionConfig, fit_fusion, prepare_fusion
from bmfl_lab.training.trained_fusion import TrainedFusion

MOST = 16
MOST_VALUES = 100_000
"""Token values of a batch up to which stacking models pays on a CPU."""


@dataclass(frozen=True)
class Job:
    """One model to train.

    Parameters
    ----------
    name : str
        Name in tables.
    config : FusionConfig
        What to train.
    seed : int
        Of initial weights, order and dropout.
    encoder, brain, atlas, silent
        As `train_fusion`.
    """

    name: str
    config: FusionConfig
    seed: int = 0
    encoder: Any = None
    brain: ResponseSource | None = None
    atlas: Atlas | None = None
    silent: np.ndarray | None = None


def train_fusions(
    jobs: Sequence[Job],
    study: Study,
    *,
    store: FeatureStore | None = None,
    device: str = "auto",
    backbone: Any = None,
    at_once: int | None = None,
) -> list[TrainedFusion]:
    """Train several fusion models or baselines, those of one architecture as one batched model.

    Parameters
    ----------
    jobs : sequence of Job
        What to train.
    study : Study
        As `train_fusion`.
    store, device, backbone
        As `train_fusion`.
    at_once : int, optional
        Models of one batched model, at most; 1 trains one after the other. By default 16 for small
        models, and on a CPU 1 for larger ones, where the batched model is slower (see Notes).

    Returns
    -------
    list of TrainedFusion
        In the order of the jobs.

    Raises
    ------
    ConfigError
        If there is no job, or `at_once` is below 1.
    NumericsError
        If a loss or gradient is not finite, naming the model.
    DataError
        As `train_fusion`.

    Notes
    -----
    Measured in CPU seconds on one core (``tests/benchmarks/bench_ensemble.py``, five models, other
    work on the machine): models of the planted study's size train 1.2 to 1.3 times as fast at once
    as one by one (16 models: 1.5). On the demo study there is nothing to gain: preset "quick"
    reaches 0.94, all patches with batches of 128 reach 0.66 to 0.7, because their tokens no longer
    fit into the processor's cache. There the tokens that all models share, kept in memory once, are
    what saves time.

    Same result as `train_fusion` job by job, up to rounding, with three exceptions: dropout draws
    other random numbers, there are no checkpoints to resume from, and training is float32 on one
    device.
    """
    if not jobs or (at_once is not None and at_once < 1):
        raise ConfigError(
            message("at least one job and at_once >= 1", f"{len(jobs)} and {at_once}", "name some")
        )
    device, store = pick_device(device), store if store is not None else FeatureStore()
    shared: dict[Any, Any] = {}
    groups: dict[Any, list[int]] = {}
    for i, job in enumerate(jobs):
        groups.setdefault(configs.config_hash(configs.replace(job.config, alpha=0.0)), []).append(i)
    found: dict[int, TrainedFusion] = {}
    for part in _parts(groups.values(), at_once or MOST):
        shared: dict[Any, Any] = {}
        same: dict[str, list[tuple]] = {}
        for i in part:
            prepared = _prepare(jobs[i], study, store, device, backbone, shared)
            found[i] = prepared[0]
            same.setdefault(architecture(prepared[0].module), []).append(prepared)
        for stacked in same.values():
            if (
                len(stacked) == 1
                or at_once == 1
                or (at_once is None and not _pays(stacked[0], device))
            ):
                for prepared in stacked:
                    fit_fusion(*prepared, study)
                continue
            names = sorted({trained.name for trained, _, _ in stacked})
            _Stack(stacked, device).train(f"{len(stacked)} models ({', '.join(names)[:60]})")
    return [found[i] for i in range(len(jobs))]


def _parts(groups: Iterable[list[int]], size: int) -> list[list[int]]:
    return [g[k : k + size] for g in groups for k in range(0, len(g), size)]


def _pays(prepared: tuple, device: str) -> bool:
    """Tell whether a batched model is faster: where a step is small against the cost of starting its operations."""
    trained, data, _ = prepared
    return (
        device != "cpu"
        or trained.config.loop.batch_size * data["patches"][0].numel() <= MOST_VALUES
    )


def _prepare(job: Job, study: Study, store: Any, device: str, backbone: Any, shared: dict) -> tuple:
    trained, data, held_out = prepare_fusion(
        job.config,
        study,
        encoder=job.encoder,
        brain=job.brain,
        atlas=job.atlas,
        store=store,
        device=device,
        seed=job.seed,
        name=job.name,
        backbone=backbone,
        silent=job.silent,
    )
    # all jobs read the same tokens, and those of one source and selection the same responses: keep
    # each once
    place = (job.config.kind, job.config.block)
    for split, tensors in (("train", data), ("val", held_out)):
        for name in ("cls", "patches", "label"):
            tensors[name] = shared.setdefault((split, name, place), tensors[name])
        if "response" in tensors and job.silent is None:
            # the job is kept beside its responses, so that the id of its source is not given to
            # another one
            key = (split, id(job.brain or job.encoder), job.config.regions)
            tensors["response"] = shared.setdefault(key, (tensors["response"], job))[0]
    if trained.donors is not None:
        key = ("donors", id(job.brain or job.encoder))
        trained.donors = shared.setdefault(key, (trained.donors, job))[0]
    return trained, data, held_out


class _Stack:
    """Models of one architecture, stacked."""

    def __init__(self, prepared: Sequence[tuple], device: str):
        self.trained: list[TrainedFusion] = [t for t, _, _ in prepared]
        self.data: list[Mapping[str, Tensor]] = [d for _, d, _ in prepared]
        self.held_out: list[Mapping[str, Tensor]] = [h for _, _, h in prepared]
        self.device = torch.device(device)
        config = self.trained[0].config
        self.config, self.loop = config, config.loop
        modules = [t.module.to(self.device).train() for t in self.trained]
        self.frozen = {k for k, p in modules[0].named_parameters() if not p.requires_grad}
        parameters, buffers = stack_module_state(modules)
        self.state = {k: v.detach() for k, v in parameters.items()}
        self.buffers = {k: v.detach() for k, v in buffers.items()}
        self.skeleton = copy.deepcopy(modules[0]).to("meta")
        backbone_only = config.head == "backbone"
        self.alpha_M = torch.tensor(
            [0.0 if backbone_only else t.config.alpha for t in self.trained]
        )
        self.batches = [
            Batches({"cls": d["cls"]}, self.loop.batch_size, t.seed, torch.device("cpu"))
            for t, d in zip(self.trained, self.data)
        ]
        self.has_response = "response" in self.data[0]
        gradient = grad_and_value(self._loss, has_aux=True)
        self.gradient = vmap(gradient, randomness="different")
        self.predict = vmap(
            self._logits, in_dims=(0, 0, None, None, 0 if self.has_response else None)
        )

    def _loss(self, trained, fixed, cls, patches, response, label, alpha):
        out = functional_call(self.skeleton, {**trained, **fixed}, (cls, patches, response))
        options = {"axis": self.config.pcc_axis, "label_smoothing": self.config.label_smoothing}
        if out.x_vb is None:
            loss, parts = fusion_loss(out.logits, label, **options)
        else:
            # alpha differs between models, so that the regulariser is added here
            base, parts = fusion_loss(out.logits, label, out.x_vb, out.x_bv, 0.0, **options)
            loss = base + alpha * pearson_regulariser(out.x_vb, out.x_bv, self.config.pcc_axis)
        return loss, {**parts, "accuracy": (out.logits.argmax(1) == label).float().mean()}

    def _logits(self, trained, fixed, cls, patches, response):
        return functional_call(self.skeleton, {**trained, **fixed}, (cls, patches, response)).logits

    def _gather(self, epoch: int, within: int) -> tuple:
        rows = [torch.from_numpy(np.asarray(b.indices(epoch, within))) for b in self.batches]
        names = (
            ("cls", "patches", "response", "label")
            if self.has_response
            else ("cls", "patches", "label")
        )
        found = {
            n: torch.stack([d[n][r] for d, r in zip(self.data, rows)]).to(self.device)
            for n in names
        }
        response = found.get("response", torch.zeros(len(rows), 1, device=self.device))
        return found["cls"].float(), found["patches"].float(), response, found["label"]

    def train(self, what: str) -> None:
        trainable = {k: v for k, v in self.state.items() if k not in self.frozen}
        fixed = {**{k: v for k, v in self.state.items() if k in self.frozen}, **self.buffers}
        optimiser = _optimiser(trainable, self.loop)
        per_epoch, total = self.batches[0].per_epoch, self.loop.epochs * self.batches[0].per_epoch
        best: list[tuple[float, int]] = [(-math.inf, 0)] * len(self.trained)
        kept = {k: v.clone() for k, v in trainable.items()}
        histories: list[list[dict]] = [[] for _ in self.trained]
        alpha_M, sums = self.alpha_M.to(self.device), {}
        with (
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            _plain_attention(),
        ):
            for step in progress(range(total), f"{what}: steps"):
                epoch, within = divmod(step, per_epoch)
                torch.manual_seed(seed_for(self.trained[0].seed, "stack step", step))
                inputs = self._gather(epoch, within)
                # the optimiser's tensors require gradients: else each gradient would keep a graph
                # of its own, and the last of them, held by those tensors and holding them, would
                # never be freed
                with torch.no_grad():
                    gradient, (loss_M, parts) = self.gradient(trainable, fixed, *inputs, alpha_M)
                self._clip(gradient, loss_M, step)
                for name, value in trainable.items():
                    value.grad = gradient[name]
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(self.loop, step, total)
                optimiser.step()
                for name, value in {"loss": loss_M, **parts}.items():
                    sums[name] = sums.get(name, 0) + value.detach().double() * len(inputs[3][0])
                if within + 1 == per_epoch:
                    rows = self._end_epoch(
                        epoch, optimiser, sums, {k: v.detach() for k, v in trainable.items()}, fixed
                    )
                    sums = {}
                    self._select(rows, histories, best, kept, trainable)
        self._finish(kept, histories, best)

    def _clip(self, gradient: dict[str, Tensor], loss_M: Tensor, step: int) -> None:
        """Clip each model's own norm, as if it were alone."""
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradient.values()]).norm(dim=0)
        bad = ~torch.isfinite(norms) | ~torch.isfinite(loss_M)
        if bad.any():
            worst = self.trained[int(bad.nonzero()[0, 0])]
            raise NumericsError(
                message(
                    "finite losses and gradients",
                    f"a value that is not, at step {step} of {worst.name!r} (seed {worst.seed})",
                    "lower the learning rate, or train this model alone for a full explanation",
                )
            )
        if self.loop.clip_norm:
            scale = (self.loop.clip_norm / (norms + 1e-6)).clamp_max(1.0)
            for name, g in gradient.items():
                gradient[name] = g * scale.view(-1, *[1] * (g.ndim - 1))

    @torch.no_grad()
    def _end_epoch(self, epoch, optimiser, sums, trained, fixed) -> list[dict[str, Any]]:
        first = self.held_out[0]
        self.skeleton.eval()
        logits = []
        for start in range(0, len(first["cls"]), 256):
            part = slice(start, start + 256)
            response = torch.zeros(1)
            if self.has_response:
                response = torch.stack([h["response"][part] for h in self.held_out]).to(self.device)
            tokens = (first[n][part].to(self.device).float() for n in ("cls", "patches"))
            logits.append(self.predict(trained, fixed, *tokens, response).cpu())
        self.skeleton.train()
        logits_MBC, label = torch.cat(logits, 1).double(), first["label"]
        nll_M = -logits_MBC.log_softmax(2)[:, torch.arange(len(label)), label].mean(1)
        accuracy_M = (logits_MBC.argmax(2) == label).double().mean(1)
        n, lr = self.batches[0].n, float(optimiser.param_groups[0]["lr"])
        return [
            {
                "epoch": epoch + 1,
                "lr": lr,
                **{k: float(v[m]) / n for k, v in sums.items()},
                "val_accuracy": float(accuracy_M[m]),
                "val_nll": float(nll_M[m]),
            }
            for m in range(len(self.trained))
        ]

    def _select(self, rows, histories, best, kept, trainable) -> None:
        for m, row in enumerate(rows):
            histories[m].append(row)
            if row["val_accuracy"] > best[m][0]:
                best[m] = (row["val_accuracy"], row["epoch"])
                for name, value in trainable.items():
                    kept[name][m] = value.detach()[m]

    def _finish(self, kept, histories, best) -> None:
        for m, trained in enumerate(self.trained):
            with torch.no_grad():
                for name, parameter in trained.module.named_parameters():
                    if name in kept:
                        parameter.copy_(kept[name][m])
            trained.module.eval()
            trained.history, trained.epoch = histories[m], best[m][1]
            trained.selection = "best validation accuracy"
            trained.notes = (f"trained as one of {len(self.trained)} batched models",)


def _plain_attention():
    # the fused kernels have no rule for a leading model axis
    return sdpa_kernel(SDPBackend.MATH)


def _optimiser(stacked: Mapping[str, Tensor], loop: Any) -> torch.optim.Optimizer:
    for value in stacked.values():
        value.requires_grad_(True)
    # one more axis than the models' own parameters, of which those with two or more are decayed
    groups = [
        {"params": [p for p in stacked.values() if p.ndim >= 3], "weight_decay": loop.weight_decay},
        {"params": [p for p in stacked.values() if p.ndim < 3], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if loop.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=loop.lr, momentum=0.9)
    kind = torch.optim.AdamW if loop.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=loop.lr, fused=True)
