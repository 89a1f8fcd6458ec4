"""One resumable training loop for the tower, the target and the draft.

Everything a step uses is a function of (seed, step) and of the saved state, so a training that was
interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed
from tqdm import tqdm

from edgespec.errors import InputError
from edgespec_export.distill.settings import warmed_cosine

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Schedule:
    """Steps, peak learning rate and saving rhythm of one training."""

    steps: int
    rate: float
    warmup: int = 100
    floor: float = 0.02
    decay: float = 0.01
    save_every: int = 200
    stop_after: int | None = None

    def factor(self, step: int) -> float:
        """The learning rate of a step relative to the peak: linear warm-up, then a cosine."""
        return warmed_cosine(step, steps=self.steps, warmup=self.warmup, floor=self.floor)


def optimiser(
    groups: Iterable[tuple[torch.nn.Module, float]], schedule: Schedule
) -> torch.optim.AdamW:
    """AdamW over modules, each with its rate relative to the peak; no decay on vectors."""
    parameters: list[dict[str, object]] = []
    seen: set[int] = set()
    for module, relative in groups:
        fresh = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
        seen.update(id(p) for p in fresh)
        for decayed in (True, False):
            chosen = [p for p in fresh if (p.ndim >= 2) == decayed]
            if chosen:
                parameters.append(
                    {
                        "params": chosen,
                        "lr": schedule.rate * relative,
                        "peak": schedule.rate * relative,
                        "weight_decay": schedule.decay if decayed else 0.0,
                    }
                )
    return torch.optim.AdamW(parameters, betas=(0.9, 0.98), eps=1e-8)


def crew() -> tuple[int, int]:
    """This process's number among the workers, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def train(
    name: str,
    model: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    schedule: Schedule,
    *,
    make_batch: Callable[[int], Batch],
    loss_of: Callable[[Batch], tuple[torch.Tensor, dict[str, float]]],
    state: Path,
) -> bool:
    """Run a training to its end, from the saved state if there is one; True when it is finished."""
    step = 0
    rank, workers = crew()
    if state.exists():
        saved = torch.load(state, map_location="cpu", weights_only=True)
        if saved.get("workers", workers) != workers:
            raise InputError(
                f"{state} was begun with {saved['workers']} workers and cannot be continued with "
                f"{workers}: the result would differ. Use the same number, or a new folder."
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = int(saved["step"])
    last = min(schedule.steps, schedule.stop_after or schedule.steps)
    averages: dict[str, float] = {}
    with tqdm(
        total=schedule.steps,
        initial=step,
        desc=name,
        file=sys.stderr,
        mininterval=5,
        disable=rank > 0,
    ) as bar:
        while step < last:
            # Made in this thread: on two cores a second thread makes the matrix products spin.
            batch = make_batch(step * workers + rank)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * schedule.factor(step)
            loss, figures = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            if workers > 1:
                average_gradients(model, workers)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            figures = {"loss": float(loss.detach()), **figures}
            for key, value in figures.items():
                averages[key] = 0.96 * averages.get(key, value) + 0.04 * value
            bar.update()
            if step % 20 == 0:
                bar.set_postfix({key: f"{value:.3f}" for key, value in averages.items()})
            if step % schedule.save_every == 0 or step == last:
                if rank == 0:
                    _save(state, model, optimizer, step, workers)
                if workers > 1:
                    distributed.barrier()
    return step >= schedule.steps


def average_gradients(model: torch.nn.Module, workers: int) -> None:
    """Replace every gradient by its mean over the workers."""
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(
        gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(part.view_as(gradient))


def _save(
    state: Path, model: torch.nn.Module, optimizer: torch.optim.AdamW, step: int, workers: int
) -> None:
    """Write the state beside its place and move it there, so that it is never half written."""
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_suffix(".partial")
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "workers": workers,
    }
    torch.save(content, partial)
    partial.replace(state)
