"""The stages of training the family, each resumable: tower, target, draft."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import distributed

from edgespec_export.family import batches, distill, models, tower, train
from edgespec_export.family.loop import crew
from edgespec_export.family.models import Llava
from edgespec_export.family.workshop import Workshop


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


def shared(size: batches.Size, workers: int) -> batches.Size:
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
