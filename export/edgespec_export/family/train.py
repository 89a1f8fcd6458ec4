"""Stage two: teach the target to talk about scenes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from edgespec_export.family import loop, models
from edgespec_export.family.batches import Lesson, Size, lesson
from edgespec_export.family.grounding import COPIERS, Glossary, gaze_loss
from edgespec_export.family.models import Llava
from edgespec_export.family.objects import COLOURS, objects
from edgespec_export.family.packing import IGNORE, Packed, Writer
from edgespec_export.family.scenes import SpriteBank
from edgespec_export.family.tower import Seer, patch_loss


def label_ids(writer: Writer) -> torch.Tensor:
    """The token of every patch label: the object's name or the background's colour."""
    names = [thing.name for thing in objects()] + list(COLOURS)
    return torch.tensor([writer.encode(f" {name}")[0] for name in names])


def hidden_states(
    model: Llava,
    visual: torch.Tensor,
    packed: Packed,
    image: int,
    *,
    all_layers: list[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Final hidden states at the labelled places, [places, text hidden].

    The inputs of all layers are appended to `all_layers` where it is given. `visual` is
    [all visual tokens of the batch, text hidden] in row-major order.
    """
    device = visual.device
    ids = packed.ids.to(device)
    embeds = model.get_input_embeddings()(ids)
    embeds = embeds.masked_scatter((ids == image)[..., None], visual)
    mask = torch.zeros(packed.mask.shape, device=device)
    mask.masked_fill_(~packed.mask.to(device), torch.finfo(torch.float32).min)
    outputs = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=packed.positions.to(device),
        use_cache=False,
        output_hidden_states=all_layers is not None,
    )
    if all_layers is not None:
        all_layers += outputs.hidden_states
    chosen: torch.Tensor = outputs.last_hidden_state[(packed.labels != IGNORE).to(device)]
    return chosen


def begin(model: Llava, seer: Seer, writer: Writer) -> None:
    """Start the target from the seer: its tower, its projector, and its labels as embeddings."""
    model.model.vision_tower.load_state_dict(seer.vision_tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(seer.projector.state_dict())
    with torch.no_grad():
        rows = seer.labels.weight
        model.get_input_embeddings().weight[label_ids(writer)] = rows


def grow(small: Llava, large: Llava) -> None:
    """Copy a trained model into one of twice the depth that computes the same function.

    Every layer is followed by a copy of itself whose two output matrices are zero: it adds nothing
    at first and learns from there.
    """
    state = dict(small.state_dict())
    deep = dict(large.state_dict())
    for key in deep:
        if ".layers." in key and "language_model" in key:
            head, tail = key.split(".layers.")
            number, rest = tail.split(".", 1)
            source = state[f"{head}.layers.{int(number) // 2}.{rest}"]
            silent = int(number) % 2 and rest in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            deep[key] = torch.zeros_like(source) if silent else source.clone()
        else:
            deep[key] = state[key].clone()
    large.load_state_dict(deep)


def copy_head(model: Llava, layer: int, writer: Writer, scale: float) -> None:
    """Start two heads of a layer as copiers: what they look at is written out as its name.

    Visual tokens point at the embeddings of the words they show, so copying is a projection onto
    the span of those embeddings. One head of each key-value group carries half of its directions.
    """
    block = model.model.language_model.layers[layer]
    attention = block.self_attn
    size = attention.head_dim
    groups = attention.k_proj.weight.shape[0] // size
    share = attention.q_proj.weight.shape[0] // size // groups
    with torch.no_grad():
        table = model.get_input_embeddings().weight[label_ids(writer)]
        _, _, directions = torch.linalg.svd(table, full_matrices=False)
        gain = block.input_layernorm.weight
        for group in range(min(groups, COPIERS)):
            basis = directions[group * size : (group + 1) * size]
            attention.v_proj.weight[group * size : (group + 1) * size] = basis / gain
            head = group * share
            attention.o_proj.weight[:, head * size : (head + 1) * size] = scale * basis.T


def teach(
    model: Llava,
    writer: Writer,
    bank: SpriteBank,
    schedule: loop.Schedule,
    *,
    state: Path,
    seed: int,
    size: Size = Size(),  # noqa: B008 - frozen
    device: str = "cpu",
    tower_rate: float = 0.6,
    patch_weight: float = 1.0,
    gaze_layer: int | None = None,
    name: str = "target",
) -> bool:
    """Train the target; True when finished."""
    targets = label_ids(writer).to(device)
    glossary = None if gaze_layer is None else Glossary(writer)

    def loss_of(data: Lesson) -> tuple[torch.Tensor, dict[str, float]]:
        images = torch.from_numpy(data.images).to(device)
        visual = models.project(model, models.features(model, images))
        table = model.get_input_embeddings().weight
        truth = torch.from_numpy(data.patches).to(device)
        patch, seen = patch_loss(visual, table[targets], truth)
        used = int((data.packed.ids == writer.words.image).sum())
        layers: list[torch.Tensor] | None = None if gaze_layer is None else []
        states = hidden_states(
            model,
            visual.flatten(0, 1)[:used],
            data.packed,
            writer.words.image,
            all_layers=layers,
        )
        labels = data.packed.labels[data.packed.labels != IGNORE].to(device)
        logits = states @ table.T
        loss = functional.cross_entropy(logits, labels)
        with torch.no_grad():
            right = (logits.argmax(-1) == labels).float().mean()
        figures = {"text": float(loss.detach()), "top1": float(right), "patch": seen}
        loss = loss + patch_weight * patch
        if layers and gaze_layer is not None and data.gaze is not None and glossary is not None:
            gaze = gaze_loss(
                model, gaze_layer, layers[gaze_layer], data.packed, data.gaze, glossary.offset
            )
            figures["gaze"] = float(gaze.detach())
            loss = loss + 0.3 * gaze
        return loss, figures

    optimizer = loop.optimiser([(model.model.vision_tower, tower_rate), (model, 1.0)], schedule)
    return loop.train(
        name,
        model,
        optimizer,
        schedule,
        make_batch=lambda step: lesson(step, writer, bank, size, seed=seed, glossary=glossary),
        loss_of=loss_of,
        state=state,
    )
