"""From nothing to the built-in family: every stage in order, each resumable."""

from __future__ import annotations

import ctypes
import dataclasses
import datetime
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import distributed

from edgespec.errors import InputError
from edgespec_export.family import (
    checkpoint,
    distill,
    emoji,
    lessons,
    models,
    tokenizer,
    tower,
    train,
)
from edgespec_export.family.heads import HeadRecipe, train_heads
from edgespec_export.family.loop import Schedule, crew
from edgespec_export.family.models import Llava
from edgespec_export.family.packing import Writer
from edgespec_export.family.report import compose, measure
from edgespec_export.family.scenes import SpriteBank
from edgespec_export.vocabulary import write_frequencies


@dataclass(frozen=True)
class Recipe:
    """How long every stage trains, and on how much per step.

    `gentle` is the strength of the sprites' variation while the whole target trains: the tower has
    seen the full variation by then, and milder pictures leave the text model less noise.
    """

    variants: int = 32
    gentle: float = 0.7
    pictures: int = 32
    size: train.Size = field(default_factory=lambda: train.Size(rows=8, dense=16))
    tower: Schedule = field(
        default_factory=lambda: Schedule(steps=2600, rate=1.5e-3, warmup=200, decay=0.05)
    )
    shallow: Schedule = field(
        default_factory=lambda: Schedule(steps=2400, rate=1e-3, warmup=150, floor=0.35, decay=0.05)
    )
    deep: Schedule = field(
        default_factory=lambda: Schedule(steps=1400, rate=6e-4, warmup=30, decay=0.05)
    )
    draft: Schedule = field(
        default_factory=lambda: Schedule(steps=2400, rate=2e-3, warmup=60, decay=0.05)
    )
    draft_size: train.Size = field(default_factory=lambda: train.Size(rows=8, tokens=344, dense=0))
    told: int = 1536
    heads: HeadRecipe = field(default_factory=HeadRecipe)
    scenes: int = 48
    measured: int = 200


@dataclass(frozen=True)
class Workshop:
    """What the stages share: places, seed, device, drawings and tokenizer."""

    out: Path
    seed: int
    device: str
    workers: int
    recipe: Recipe
    drawings: emoji.Drawings
    tokenizer: Tokenizer

    def state(self, name: str) -> Path:
        """Where a stage keeps its training state."""
        return self.out / "state" / f"{name}.pt"

    def writer(self, visual_tokens: int = models.VISUAL_TOKENS) -> Writer:
        return Writer(self.tokenizer, visual_tokens)

    def bank(self, seed: int, *, strength: float = 1.0) -> SpriteBank:
        """Training sprites: the held-out style is never among them."""
        shown = {style: self.drawings[style] for style in emoji.TRAIN_STYLES}
        variants = self.recipe.variants
        return SpriteBank(shown, seed=self.seed + seed, variants=variants, strength=strength)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


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


def seer_of(shop: Workshop) -> tower.Seer:
    """Stage one: the pre-trained tower and projector."""
    seer = tower.Seer(models.VISION, models.TARGET.hidden, seed=shop.seed).to(shop.device)
    tower.pretrain(
        seer,
        shop.bank(0),
        shop.recipe.tower,
        state=shop.state("tower"),
        seed=shop.seed,
        rows=shop.recipe.pictures // shop.workers,
        device=shop.device,
    )
    return seer


def shared(size: train.Size, workers: int) -> train.Size:
    """One worker's part of a step."""
    return dataclasses.replace(size, rows=size.rows // workers, dense=size.dense // workers)


def target_of(shop: Workshop, seer: tower.Seer) -> Llava:
    """Stage two: a target of half the depth, then the whole one grown from it."""
    writer, bank = shop.writer(), shop.bank(1)
    size = shared(shop.recipe.size, shop.workers)
    middle = models.TARGET.layers // 4
    half = dataclasses.replace(models.TARGET, layers=models.TARGET.layers // 2)
    small = models.build(half, writer.words, seed=shop.seed).to(shop.device)
    train.begin(small, seer, writer)
    train.copy_head(small, middle, writer, 1.0)
    train.teach(
        small,
        writer,
        bank,
        shop.recipe.shallow,
        state=shop.state("shallow"),
        seed=shop.seed,
        size=size,
        device=shop.device,
        gaze_layer=middle,
        name="target, half depth",
    )
    large = models.build(models.TARGET, writer.words, seed=shop.seed).to(shop.device)
    train.grow(small, large)
    train.teach(
        large,
        writer,
        shop.bank(2, strength=shop.recipe.gentle),
        shop.recipe.deep,
        state=shop.state("deep"),
        seed=shop.seed + 5,
        size=size,
        device=shop.device,
        gaze_layer=2 * middle,
        name="target, full depth",
    )
    return rounded(large).eval()


def rounded(model: Llava) -> Llava:
    """The model with its weights rounded to float16, as they are shipped."""
    return model.half().float()


def draft_of(shop: Workshop, target: Llava) -> Llava:
    """Stage three: the draft, distilled from the finished target."""
    wide, narrow = shop.writer(), shop.writer(models.POOLED_TOKENS)
    bank = shop.bank(1)
    path = shop.out / "state" / "told.json"
    rank, workers = crew()
    if rank == 0:
        distill.remembered(
            path,
            lambda: distill.tell(
                target, wide, bank, seed=shop.seed, scenes=shop.recipe.told, device=shop.device
            ),
        )
    if workers > 1:
        distributed.barrier()
    told = distill.remembered(path, list)
    draft = models.build(models.DRAFT, wide.words, seed=shop.seed + 1).to(shop.device)
    shown = [distill.picture(bank, index, seed=shop.seed + 7)[0] for index in range(64)]
    images = torch.from_numpy(np.stack(shown)).to(shop.device)
    distill.begin(draft, target, narrow, images)
    distill.distil(
        draft,
        target,
        told,
        wide,
        narrow,
        bank,
        shop.recipe.draft,
        state=shop.state("draft"),
        seed=shop.seed,
        size=shared(shop.recipe.draft_size, shop.workers),
        device=shop.device,
    )
    return rounded(draft).eval()
