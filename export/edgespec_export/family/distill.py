"""Stage three: distil the draft from the target.

The draft sees the target's own visual features through its own projector, averaged 2 x 2, and
learns the target's distribution on texts that the target wrote and on texts of the data.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from tqdm import tqdm

from edgespec_export.family import batches, loop, models, sentences, train
from edgespec_export.family.generate import decode
from edgespec_export.family.grounding import Gaze, Glossary, gaze_loss
from edgespec_export.family.models import Llava
from edgespec_export.family.packing import Conversation, Packed, Row, Writer, pack
from edgespec_export.family.scenes import Scene, SpriteBank, patch_labels, render, sample_scene
from edgespec_export.family.sentences import Exchange
from edgespec_export.family.tower import patch_loss


@dataclass(frozen=True)
class Told:
    """A picture by its seed, and what the target said about it."""

    index: int
    exchanges: tuple[Exchange, ...]


@dataclass(frozen=True)
class Pair:
    """One step's data: the same rows laid out for the target and for the draft."""

    target: Packed
    draft: Packed
    images: NDArray[np.uint8]
    patches: NDArray[np.int64]
    gaze: Gaze


def picture(bank: SpriteBank, index: int, *, seed: int) -> tuple[NDArray[np.uint8], Scene]:
    """The picture and the record of an index of the distillation set."""
    rng = np.random.default_rng([seed, 4, index])
    scene = sample_scene(rng)
    return render(scene, bank, rng), scene


def tell(
    target: Llava,
    writer: Writer,
    bank: SpriteBank,
    *,
    seed: int,
    scenes: int,
    rows: int = 64,
    device: str = "cpu",
) -> list[Told]:
    """Let the target speak about `scenes` pictures: long descriptions, greedy and some sampled."""
    told: list[Told] = []
    target.eval()
    for start in tqdm(range(0, scenes, rows), desc="target's own texts", file=sys.stderr):
        indices = range(start, min(scenes, start + rows))
        shown = [picture(bank, index, seed=seed) for index in indices]
        images = torch.from_numpy(np.stack([image for image, _ in shown])).to(device)
        rng = np.random.default_rng([seed, 5, start])
        heard: list[list[Exchange]] = [[] for _ in shown]
        for temperature in (0.0, 1.0 if start // rows % 4 == 0 else 0.0):
            asked = [sentences.detailed(scene, rng) for _, scene in shown]
            answers = decode(
                target,
                writer,
                images,
                [exchange.prompt for exchange in asked],
                temperature=temperature,
                seed=start,
            )
            for which, (exchange, answer) in enumerate(zip(asked, answers, strict=True)):
                text = writer.tokenizer.decode(answer).strip()
                heard[which].append(Exchange(exchange.task, exchange.prompt, text))
        told += [Told(index, tuple(said)) for index, said in zip(indices, heard, strict=True)]
    return told


def remembered(path: Path, make: Callable[[], list[Told]]) -> list[Told]:
    """The texts kept at `path`; made and kept there first if there are none."""
    if not path.exists():
        text = json.dumps([asdict(told) for told in make()])
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return [
        Told(entry["index"], tuple(Exchange(**said) for said in entry["exchanges"]))
        for entry in json.loads(path.read_text(encoding="utf-8"))
    ]


def pair(
    step: int,
    told: Sequence[Told],
    wide: Writer,
    narrow: Writer,
    bank: SpriteBank,
    size: batches.Size,
    *,
    seed: int,
    glossary: Glossary,
) -> Pair:
    """The data of one step: half of the rows carry the target's own texts."""
    rng = np.random.default_rng([seed, 6, step])
    both: tuple[list[Row], list[Row]] = ([], [])
    images: list[NDArray[np.uint8]] = []
    patches: list[NDArray[np.int64]] = []
    budget = size.tokens - wide.visual_tokens
    for row in range(size.rows):
        first: list[Conversation] = []
        if told and row % 2 == 0:
            chosen = told[int(rng.integers(len(told)))]
            image, scene = picture(bank, chosen.index, seed=seed)
            said = [chosen.exchanges[int(k)] for k in rng.permutation(len(chosen.exchanges))]
            first = [wide.conversation([exchange], images=1) for exchange in said]
        else:
            scene = sample_scene(rng)
            image = render(scene, bank, rng)
            first = [wide.conversation([sentences.detailed(scene, rng)], images=1)]

        def more(scene: Scene = scene) -> Conversation:
            asked = sentences.detailed if rng.random() < 0.3 else sentences.question
            return wide.conversation([asked(scene, rng)], images=1)

        conversations = batches.fill((), first, more, budget).conversations
        both[0].append(Row(wide.prefix(1), conversations))
        both[1].append(Row(narrow.prefix(1), conversations))
        images.append(image)
        patches.append(patch_labels(scene))
    pad = wide.words.pad
    packed = pack(both[1], pad)
    gaze = glossary.gaze(packed, patches, pooled=True)
    return Pair(pack(both[0], pad), packed, np.stack(images), np.stack(patches), gaze)


@torch.no_grad()
def begin(
    draft: Llava,
    target: Llava,
    writer: Writer,
    images: torch.Tensor,
) -> None:
    """Start the draft from the target: its tower, and everything else reduced to the draft's width.

    The embeddings keep their main directions; the projector keeps the most used hidden units of
    the target's and is fitted, on some pictures, to give the target's visual tokens in them.
    """
    draft.model.vision_tower.load_state_dict(target.model.vision_tower.state_dict())
    hidden = draft.config.text_config.hidden_size
    table = target.get_input_embeddings().weight
    _, _, directions = torch.linalg.svd(table, full_matrices=False)
    basis = directions[:hidden].T
    draft.get_input_embeddings().weight.copy_(table @ basis)
    mine, his = draft.model.multi_modal_projector, target.model.multi_modal_projector
    seen = models.features(target, images).flatten(0, 1)
    inner = his.act(his.linear_1(seen))
    used = (inner.std(0) * his.linear_2.weight.norm(dim=0)).argsort(descending=True)[:hidden]
    used = used.sort().values
    mine.linear_1.weight.copy_(his.linear_1.weight[used])
    mine.linear_1.bias.copy_(his.linear_1.bias[used])
    # Ridge regression in float64: a least-squares driver does not repeat its last bits.
    known = torch.cat([inner[:, used], torch.ones_like(inner[:, :1])], 1).double()
    wanted = (his.linear_2(inner) @ basis).double()
    ridge = 1e-6 * torch.eye(known.shape[1], dtype=known.dtype, device=known.device)
    fitted = torch.linalg.solve(known.T @ known / len(known) + ridge, known.T @ wanted / len(known))
    mine.linear_2.weight.copy_(fitted[:-1].T)
    mine.linear_2.bias.copy_(fitted[-1])
    last = draft.config.text_config.num_hidden_layers - 1
    train.copy_head(draft, last, writer, 2.0)


def distil(
    draft: Llava,
    target: Llava,
    told: Sequence[Told],
    wide: Writer,
    narrow: Writer,
    bank: SpriteBank,
    schedule: loop.Schedule,
    *,
    state: Path,
    seed: int,
    size: batches.Size = batches.Size(tokens=344),  # noqa: B008 - frozen
    device: str = "cpu",
) -> bool:
    """Train the draft; True when finished. The tower stays as it is, bit for bit."""
    draft.model.vision_tower.requires_grad_(False)
    target.requires_grad_(False).eval()
    targets = train.label_ids(wide).to(device)
    glossary = Glossary(narrow)
    last = draft.config.text_config.num_hidden_layers - 1

    def loss_of(data: Pair) -> tuple[torch.Tensor, dict[str, float]]:
        images = torch.from_numpy(data.images).to(device)
        image = wide.words.image
        with torch.no_grad():
            seen = models.features(target, images)
            states = train.hidden_states(
                target, models.project(target, seen).flatten(0, 1), data.target, image
            )
            wanted = target.lm_head(states)
        visual = models.project(draft, seen)
        table = draft.get_input_embeddings().weight
        layers: list[torch.Tensor] = []
        states = train.hidden_states(
            draft, models.pool(visual).flatten(0, 1), data.draft, image, all_layers=layers
        )
        logits = states @ table.T
        best = wanted.argmax(-1)
        soft = functional.cross_entropy(logits, torch.softmax(wanted, -1))
        hard = functional.cross_entropy(logits, best)
        truth = torch.from_numpy(data.patches).to(device)
        patch, named = patch_loss(visual, table[targets], truth)
        with torch.no_grad():
            agree = (logits.argmax(-1) == best).float().mean()
        gaze = gaze_loss(draft, last, layers[last], data.draft, data.gaze, glossary.offset)
        figures = {"agree": float(agree), "patch": named, "gaze": float(gaze.detach())}
        return 0.5 * soft + 0.5 * hard + 0.2 * patch + 0.2 * gaze, figures

    optimizer = loop.optimiser([(draft, 1.0)], schedule)
    return loop.train(
        "draft",
        draft,
        optimizer,
        schedule,
        make_batch=lambda step: pair(
            step, told, wide, narrow, bank, size, seed=seed, glossary=glossary
        ),
        loss_of=loss_of,
        state=state,
    )
