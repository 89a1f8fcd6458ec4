"""From nothing to the built-in family: every stage in order, each resumable."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from edgespec_export.family import (
    checkpoint,
    distill,
    emoji,
    evaluate,
    models,
    samples,
    tokenizer,
    tower,
    train,
)
from edgespec_export.family.loop import Schedule
from edgespec_export.family.packing import Writer
from edgespec_export.family.scenes import SpriteBank


@dataclass(frozen=True)
class Recipe:
    """How long every stage trains. The defaults made the family that is shipped."""

    variants: int = 32
    tower: Schedule = field(
        default_factory=lambda: Schedule(steps=2600, rate=1.5e-3, warmup=200, decay=0.05)
    )
    shallow: Schedule = field(
        default_factory=lambda: Schedule(
            steps=2400, rate=1.5e-3, warmup=150, floor=0.35, decay=0.05, save_every=250
        )
    )
    deep: Schedule = field(
        default_factory=lambda: Schedule(
            steps=900, rate=8e-4, warmup=60, decay=0.05, save_every=150
        )
    )
    draft: Schedule = field(default_factory=lambda: Schedule(steps=2400, rate=2e-3, decay=0.05))
    told: int = 1536
    scenes: int = 48
    measured: int = 200


@dataclass(frozen=True)
class Workshop:
    """What the stages share: places, seed, device, drawings and tokenizer."""

    out: Path
    seed: int
    device: str
    recipe: Recipe
    drawings: emoji.Drawings
    tokenizer: Tokenizer

    def state(self, name: str) -> Path:
        """Where a stage keeps its training state."""
        return self.out / "state" / f"{name}.pt"

    def writer(self, visual_tokens: int = models.VISUAL_TOKENS) -> Writer:
        return Writer(self.tokenizer, visual_tokens)

    def bank(self, seed: int) -> SpriteBank:
        """Training sprites: the held-out style is never among them."""
        shown = {style: self.drawings[style] for style in emoji.TRAIN_STYLES}
        return SpriteBank(shown, seed=self.seed + seed, variants=self.recipe.variants)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def run(
    out: Path,
    *,
    resume: bool = False,
    seed: int = 0,
    downloads: Path | None = None,
    device: str | None = None,
    recipe: Recipe | None = None,
) -> Path:
    """Train the family into `out` and return the path of the measured report (`report.json`).

    `out` receives `checkpoints/target`, `checkpoints/draft`, `samples/` and the training state.
    With `resume` an interrupted training goes on and ends as if it had never stopped. `downloads`
    is where the drawings are kept (default: `out`/downloads); `device` defaults to the GPU that
    torch sees, else the CPU.
    """
    states = out / "state"
    if states.exists() and not resume:
        raise FileExistsError(
            f"{out} already holds a training. Pass resume to continue it, or choose a new folder."
        )
    states.mkdir(parents=True, exist_ok=True)
    _keep_memory()
    begun = time.monotonic()
    styles = tuple(style.name for style in emoji.STYLES)
    shop = Workshop(
        out=out,
        seed=seed,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        recipe=recipe or Recipe(),
        drawings=emoji.load(downloads or out / "downloads", styles),
        tokenizer=tokenizer.load_or_train(out / "tokenizer.json", seed=seed),
    )
    shop.say(f"Training on {shop.device} into {out}.")
    target = target_of(shop, seer_of(shop))
    checkpoint.save(target, shop.tokenizer, out / "checkpoints" / "target")
    draft = draft_of(shop, target)
    checkpoint.save(draft, shop.tokenizer, out / "checkpoints" / "draft")
    compose(shop, out / "samples")
    report = measure(shop, out / "checkpoints", out / "samples")
    report["minutes"] = round((time.monotonic() - begun) / 60, 1)
    path = out / "report.json"
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


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
        device=shop.device,
    )
    return seer


def target_of(shop: Workshop, seer: tower.Seer) -> LlavaForConditionalGeneration:
    """Stage two: a target of half the depth, then the whole one grown from it."""
    writer, bank = shop.writer(), shop.bank(1)
    half = dataclasses.replace(models.TARGET, layers=models.TARGET.layers // 2)
    small = models.build(half, writer.words, seed=shop.seed).to(shop.device)
    train.begin(small, seer, writer)
    train.teach(
        small,
        writer,
        bank,
        shop.recipe.shallow,
        state=shop.state("shallow"),
        seed=shop.seed,
        device=shop.device,
        name="target, half depth",
    )
    large = models.build(models.TARGET, writer.words, seed=shop.seed).to(shop.device)
    train.grow(small, large)
    train.teach(
        large,
        writer,
        bank,
        shop.recipe.deep,
        state=shop.state("deep"),
        seed=shop.seed + 5,
        device=shop.device,
        name="target, full depth",
    )
    return rounded(large).eval()


def rounded(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The model with its weights rounded to float16, as they are shipped."""
    return model.half().float()


def draft_of(
    shop: Workshop, target: LlavaForConditionalGeneration
) -> LlavaForConditionalGeneration:
    """Stage three: the draft, distilled from the finished target."""
    wide, narrow = shop.writer(), shop.writer(models.POOLED_TOKENS)
    bank = shop.bank(1)
    told = distill.remembered(
        shop.out / "state" / "told.json",
        lambda: distill.tell(
            target, wide, bank, seed=shop.seed, scenes=shop.recipe.told, device=shop.device
        ),
    )
    draft = models.build(models.DRAFT, wide.words, seed=shop.seed + 1).to(shop.device)
    distill.begin(draft, target)
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
        device=shop.device,
    )
    return rounded(draft).eval()


def compose(shop: Workshop, folder: Path) -> None:
    """Write the sample and evaluation scenes."""
    inside = {style: shop.drawings[style] for style in emoji.TRAIN_STYLES}
    outside = {emoji.HELD_OUT_STYLE: shop.drawings[emoji.HELD_OUT_STYLE]}
    scenes = shop.recipe.scenes
    samples.write(folder, "in_domain", inside, seed=shop.seed + 101, scenes=scenes)
    samples.write(folder, "out_of_domain", outside, seed=shop.seed + 102, scenes=scenes)
    samples.showpieces(folder, inside, seed=shop.seed + 103)


def measure(shop: Workshop, checkpoints: Path, folder: Path) -> dict[str, object]:
    """Measure the saved checkpoints on new scenes and on the committed ones."""
    target, draft = (
        LlavaForConditionalGeneration.from_pretrained(checkpoints / name, dtype=torch.float32)
        .to(shop.device)
        .eval()
        for name in ("target", "draft")
    )
    wide, narrow = shop.writer(), shop.writer(models.POOLED_TOKENS)
    report: dict[str, object] = {}
    for domain, styles in (
        ("in_domain", emoji.TRAIN_STYLES),
        ("out_of_domain", (emoji.HELD_OUT_STYLE,)),
    ):
        shown = {style: shop.drawings[style] for style in styles}
        bank = SpriteBank(
            shown, seed=shop.seed + 104, variants=8, strength=samples.STRENGTH
        )
        asked = evaluate.fresh(bank, seed=shop.seed + 105, scenes=shop.recipe.measured)
        longs = evaluate.long_questions(
            bank, seed=shop.seed + 106, scenes=max(1, shop.recipe.measured // 4)
        )
        committed = evaluate.questions(folder / f"{domain}.jsonl", "naming")
        drafted = evaluate.drafting(target, draft, wide, narrow, longs, device=shop.device)
        report[domain] = {
            "naming": evaluate.exact(target, wide, asked, device=shop.device),
            "naming_committed": evaluate.exact(target, wide, committed, device=shop.device),
            "naming_blank": evaluate.exact(
                target, wide, evaluate.blank(asked), device=shop.device
            ),
            "naming_shuffled": evaluate.exact(
                target, wide, evaluate.shuffled(asked), device=shop.device
            ),
            "detailed_exact": evaluate.exact(
                target, wide, longs, limit=200, device=shop.device
            ),
            "draft": dataclasses.asdict(drafted),
            "questions": len(asked),
        }
    return report
