"""Stage one: teach the vision tower and the projector to say what every patch shows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from edgespec_export.family import loop, models
from edgespec_export.family.objects import COLOURS, objects
from edgespec_export.family.scenes import SpriteBank, patch_labels, render, sample_scene

LABELS = len(objects()) + len(COLOURS)


class Seer(torch.nn.Module):
    """Tower, projector and one embedding per label; the embeddings later start the text model's.

    A visual token is trained to point at the embedding of the word it shows, so the text model
    begins with pictures that already speak its language.
    """

    def __init__(self, vision: models.VisionShape, hidden: int, *, seed: int) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        from edgespec_export.family.tokenizer import Words

        torch.manual_seed(seed)
        shape = models.TextShape(hidden, 1, 1, 1, 8)
        config = models.config(shape, vision, Words(16, 0, 1, 2, 3, 4))
        assert isinstance(config.vision_config, CLIPVisionConfig)
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.projector = LlavaMultiModalProjector(config)
        self.labels = torch.nn.Embedding(LABELS, hidden)
        torch.nn.init.normal_(self.labels.weight, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, side, side, 3] uint8 -> visual tokens [B, patches, hidden]."""
        states = self.vision_tower(models.pixels(images), output_hidden_states=True).hidden_states
        tokens: torch.Tensor = self.projector(states[-1][:, 1:])
        return tokens


def place_codes(hidden: int) -> torch.Tensor:
    """Fixed directions [hidden, 9] along which a visual token says in which cell it is."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(hidden, 9, generator=generator) / math.sqrt(hidden)


def patch_loss(
    tokens: torch.Tensor, words: torch.Tensor, truth: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """How badly visual tokens [B, patches, hidden] say what they show and where it is.

    `words` are the labels' embeddings [LABELS, hidden], `truth` the labels [B, 2, patches]. Also
    returns the share of object patches that are named right.
    """
    plain = functional.rms_norm(tokens, tokens.shape[-1:])
    what, where = truth[:, 0], truth[:, 1]
    scores = plain @ words.T
    places = plain @ place_codes(tokens.shape[-1]).to(tokens.device)
    loss = functional.cross_entropy(scores.flatten(0, 1), what.flatten())
    loss = loss + 0.3 * functional.cross_entropy(places.flatten(0, 1), where.flatten())
    with torch.no_grad():
        things = what < len(objects())
        hit = (scores.argmax(-1) == what)[things].float().mean()
    return loss, float(hit)


def batch(
    step: int, bank: SpriteBank, *, seed: int, rows: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The pictures and patch labels of one step; two thirds of the scenes are dense."""
    rng = np.random.default_rng([seed, 1, step])
    scenes = [sample_scene(rng, dense=row % 3 != 0) for row in range(rows)]
    images = np.stack([render(scene, bank, rng) for scene in scenes])
    return images, np.stack([patch_labels(scene) for scene in scenes])


def pretrain(
    seer: Seer,
    bank: SpriteBank,
    schedule: loop.Schedule,
    *,
    state: Path,
    seed: int,
    rows: int = 32,
    device: str = "cpu",
) -> bool:
    """Train the seer; True when finished."""

    def loss_of(
        data: tuple[NDArray[np.uint8], NDArray[np.int64]],
    ) -> tuple[torch.Tensor, dict[str, float]]:
        images, labels = (torch.from_numpy(array).to(device) for array in data)
        loss, hit = patch_loss(seer(images), seer.labels.weight, labels)
        return loss, {"acc": hit}

    optimizer = loop.optimiser([(seer, 1.0)], schedule)
    return loop.train(
        "vision tower",
        seer,
        optimizer,
        schedule,
        make_batch=lambda step: batch(step, bank, seed=seed, rows=rows),
        loss_of=loss_of,
        state=state,
    )
