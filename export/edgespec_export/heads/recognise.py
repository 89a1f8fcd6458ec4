"""Which of the family a head is, by the names of its tensors (strict: nothing is guessed)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgespec.errors import CheckpointError
from edgespec_export.checkpoint import Checkpoint, Entry
from edgespec_export.heads.label import check_variant

# Layouts by what only they have. EAGLE and MSD share every name, and so do EagleVLM and a SpecVLM
# whose compressor has no weights.
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "eagle": ("eagle", "msd"),
    "normed": ("eaglevlm", "specvlm"),
    "compressed": ("specvlm",),
    "vispec": ("vispec",),
    "eagle3": ("eagle3",),
}
"""Variants that the tensors of each layout can be; the first one unless something says another."""

MSD_TRACES = ("llava", "qwen2_vl")
"""``model_type`` of published MSD heads, whose configs are cut down from their target's."""

MEDUSA = re.compile(r"medusa_head\.|\d+\.\d+\.linear\.weight$")


@dataclass(frozen=True)
class Recognised:
    """A variant, and what told it."""

    variant: str
    told_by: str


def recognise(checkpoint: Checkpoint, said: str | None, asked: str | None) -> Recognised:
    """``said`` by its own config, ``asked`` for by the user. Raises CheckpointError where names,
    config and user contradict each other, and for layouts that edgespec knows but cannot use."""
    layout = _layout(checkpoint)
    possible = LAYOUTS[layout]
    for name, who in ((said, "its config.json says"), (asked, "what was asked for is")):
        if name is not None and check_variant(name) not in possible:
            raise CheckpointError(
                f"{checkpoint.source}: {who} '{name}', but its tensors are those of "
                f"{' or '.join(possible)}"
            )
    if said and asked and said != asked:
        raise CheckpointError(
            f"{checkpoint.source}: '{asked}' was asked for, but its config.json says '{said}'"
        )
    if asked or said:
        return Recognised(str(asked or said), "as asked for" if asked else "by its config.json")
    if layout == "eagle" and _looks_like_msd(checkpoint.config):
        raise CheckpointError(
            f"{checkpoint.source}: its tensors are those of EAGLE and of MSD alike, and its "
            "config.json is cut down from a vision-language model's, as MSD's are; say which: "
            "variant 'msd' or variant 'eagle'"
        )
    shared = "; MSD shares them, and is taken when asked for" if layout == "eagle" else ""
    return Recognised(possible[0], f"by its tensors{shared}")


def canonical_entries(checkpoint: Checkpoint, variant: str) -> dict[str, Entry]:
    """Entries under official names: speculators calls EAGLE-3's ``midlayer`` ``layers.0``."""
    entries: dict[str, Entry] = {}
    for key, entry in checkpoint.entries.items():
        name = key
        if variant == "eagle3" and key.startswith("layers.0."):
            name = "midlayer." + key.removeprefix("layers.0.")
        if name in entries or (name != key and name in checkpoint.entries):
            raise CheckpointError(f"{checkpoint.source}: tensor '{key}' is also there as '{name}'")
        entries[name] = entry
    return entries


def _layout(checkpoint: Checkpoint) -> str:
    names = checkpoint.shapes
    _refuse_known(checkpoint)
    if any(name.startswith(("imadpt.", "img_fc.")) for name in names):
        return "vispec"
    if _is_eagle3(checkpoint):
        return "eagle3"
    if any(name.startswith("compressor.") for name in names):
        return "compressed"
    if "layers.0.input_layernorm.weight" in names:
        return "normed"
    if "fc.weight" in names or any(name.startswith("layers.0.") for name in names):
        return "eagle"
    shown = ", ".join(sorted(names)[:4]) or "none at all"
    raise CheckpointError(
        f"{checkpoint.source}: its tensors ({shown}, ...) are those of no feature-level draft that "
        "edgespec knows: EAGLE-1/2/3, EagleVLM, MSD, ViSpec, SpecVLM"
    )


def _is_eagle3(checkpoint: Checkpoint) -> bool:
    """Its layer reads [embedding; feature], under either of two names."""
    shapes = checkpoint.shapes
    if any(name.startswith("midlayer.") for name in shapes):
        return True
    fc, query = shapes.get("fc.weight", ()), shapes.get("layers.0.self_attn.q_proj.weight", ())
    wide = len(fc) == 2 and len(query) == 2 and query[1] == 2 * fc[0]
    return wide or "layers.0.hidden_norm.weight" in shapes


def _refuse_known(checkpoint: Checkpoint) -> None:
    """Layouts that are recognised, and why they cannot be used."""
    names = checkpoint.shapes
    reasons = (
        (
            "img_adaptor.query" in names,
            "a ViSpec head in the layout of NeMo Automodel, which is another function (a final "
            "norm that ViSpec has not); give the original ViSpec checkpoint",
        ),
        (
            any(MEDUSA.match(name) for name in names),
            "Medusa heads, which guess each token without seeing those between; edgespec does not "
            "build them: take or train an EAGLE-style head",
        ),
        (
            any(n.startswith(("text.", "vision.", "projector.", "model.")) for n in names),
            "a whole language model, not a feature-level head; a draft of its own is given as a "
            "stand-alone draft checkpoint",
        ),
    )
    for found, reason in reasons:
        if found:
            raise CheckpointError(f"{checkpoint.source} holds {reason}")


def _looks_like_msd(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in MSD_TRACES


def is_head(checkpoint: Checkpoint) -> bool:
    """Whether it is to be opened as a feature-level draft, not as a whole vision-language model.

    By its tensors: MSD heads keep the ``model_type`` of their target.
    """
    return not any(name.startswith(("vision.", "text.")) for name in checkpoint.entries)
