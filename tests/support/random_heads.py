"""Random feature-level drafts for a checkpoint of the zoo, in their published layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from edgespec_export.compression import Compression, parse_compression
from edgespec_export.heads.geometry import HeadGeometry
from edgespec_export.heads.modules import Head, build_head
from edgespec_export.heads.save import write_head
from edgespec_export.plan import Model, open_model

VARIANTS = ("eagle", "eaglevlm", "msd", "vispec", "specvlm", "eagle3")


def random_head(model: Model, variant: str, compressor: str = "", *, seed: int = 0) -> Head:
    """Weights of a size at which attention is selective and rows differ."""
    text = replace(model.geometry.text, layers=1, kv_heads=model.geometry.text.heads)
    table = torch.from_numpy(model.checkpoint.tensor("text.embed_tokens.weight"))
    output = torch.from_numpy(model.checkpoint.tensor(f"{model.proposer.name}.weight"))
    three = variant == "eagle3"
    trained = variant == "specvlm"
    geometry = HeadGeometry(
        variant,
        text,
        feature_size=3 * text.hidden if three else text.hidden,
        fc_bias=not three,
        queries=3 if variant == "vispec" else 0,
        feature_layers=(0, 1, 2) if three else (),
        compression=_compression(compressor) if trained else None,
    )
    head = build_head(geometry, table, output)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.startswith("embed_tokens"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                parameter.copy_((1.0 if "norm" in name else 0.0) + 0.2 * noise)
            else:
                parameter.copy_(1.5 * noise / parameter[0].numel() ** 0.5)
    return head


def _compression(text: str) -> Compression:
    """As asked for; elastic ones with branches that suit the zoo's small images."""
    branches: tuple[str, ...] = ("prune:4", "pool:4", "conv:3", "resampler:2", "text-only")
    if text == "elastic:concat":
        branches = branches[:4]
    given = () if text and text not in ("elastic:select", "elastic:concat") else branches
    return parse_compression(text or "elastic:select", given)


def write_random_head(
    folder: Path, target: Path, variant: str, compressor: str = "", *, seed: int = 0
) -> Path:
    """A checkpoint of ``random_head`` for the target in ``target``."""
    model = open_model(str(target))
    head = random_head(model, variant, compressor, seed=seed)
    return write_head(folder, head, target_fingerprint=model.text_fingerprint, dtype="float32")
