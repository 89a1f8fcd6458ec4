"""From nothing to the built-in family: every stage in order, each resumable."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from edgespec.errors import InputError
from edgespec_export.family import checkpoint, emoji, lessons, tokenizer
from edgespec_export.family.heads import train_heads
from edgespec_export.family.loop import crew
from edgespec_export.family.report import compose, measure
from edgespec_export.family.stages import draft_of, seer_of, target_of
from edgespec_export.family.workshop import Recipe, Workshop
from edgespec_export.vocabulary import write_frequencies


def run(
    out: Path,
    *,
    resume: bool = False,
    seed: int = 0,
    downloads: Path | None = None,
    device: str | None = None,
    workers: int | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """Train the family into `out` and return the path of the measured report (`report.json`).

    `out` receives `checkpoints/` (target, draft and the feature-level drafts), `samples/` and the
    training state.
    With `resume` an interrupted training goes on and ends as if it had never stopped. `downloads`
    is where the drawings are kept (default: `out`/downloads). `device` defaults to the GPU that
    torch sees, else the CPU; `workers` to one process on a GPU and to two on a CPU, which share
    every step (one thread each waits less than two threads on one step).
    """
    states = out / "state"
    if states.exists() and not resume:
        raise InputError(
            f"{out} already holds a training. Pass resume to continue it, or choose a new folder."
        )
    if not states.exists() and (out / "edgespec.json").exists():
        raise InputError(f"{out} is a bundle; choose another folder for the training.")
    states.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if workers is None:
        workers = 1 if device == "cuda" else min(2, os.cpu_count() or 1)
    job = Job(out, downloads or out / "downloads", seed, device, workers, recipe or Recipe())
    shop = _open(job)
    shop.say(f"Training on {device} with {workers} worker(s) into {out}.")
    if workers == 1:
        _stages(shop)
    else:
        meeting = states / f"meeting-{os.getpid()}"
        meeting.unlink(missing_ok=True)
        processes: Any = torch.multiprocessing
        processes.spawn(_worker, args=(job, str(meeting)), nprocs=workers)
        meeting.unlink(missing_ok=True)
    scenes = shop.recipe.heads.counted
    counts = lessons.count_tokens(shop.tokenizer, seed=seed, scenes=scenes)
    ends = [shop.writer().words.eos]
    write_frequencies(out / "frequencies.json", shop.tokenizer.get_vocab_size(), counts, ends)
    train_heads(
        out / "checkpoints" / "target",
        out / "heads",
        out / "checkpoints",
        shop.bank(31, strength=0.7),
        shop.recipe.heads,
        seed,
    )
    compose(shop, out / "samples")
    report = measure(shop, out / "checkpoints", out / "samples")
    report["minutes"] = round((time.monotonic() - begun) / 60, 1)
    path = out / "report.json"
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


@dataclass(frozen=True)
class Job:
    """What a worker needs to know to take part."""

    out: Path
    downloads: Path
    seed: int
    device: str
    workers: int
    recipe: Recipe


def _open(job: Job) -> Workshop:
    """Fetch the drawings and train the tokenizer, or load them."""
    _keep_memory()
    return Workshop(
        out=job.out,
        seed=job.seed,
        device=job.device,
        workers=job.workers,
        recipe=job.recipe,
        drawings=emoji.load(job.downloads, tuple(style.name for style in emoji.STYLES)),
        tokenizer=tokenizer.load_or_train(job.out / "tokenizer.json", seed=job.seed),
    )


def _worker(rank: int, job: Job, meeting: str) -> None:
    """One of several processes that share every training step."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.workers))
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=job.workers,
        timeout=datetime.timedelta(hours=3),
    )
    _stages(_open(job))
    distributed.destroy_process_group()


def _stages(shop: Workshop) -> None:
    """All training, and the two checkpoints."""
    rank, workers = crew()
    target = target_of(shop, seer_of(shop))
    if rank == 0:
        checkpoint.save(target, shop.tokenizer, shop.out / "checkpoints" / "target")
    draft = draft_of(shop, target)
    if rank == 0:
        checkpoint.save(draft, shop.tokenizer, shop.out / "checkpoints" / "draft")
    if workers > 1:
        distributed.barrier()


def _keep_memory() -> None:
    """Ask glibc to keep freed memory: returning it after every step costs a tenth of the time."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
