"""The built-in family through the whole product: equal to transformers' generate, and it speeds up.

How well it sees is tested in test_family_checkpoints.py; speed is for `edgespec bench`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import edgespec_runtime
from edgespec.bundle import Manifest, read_bundle
from edgespec.cli import main
from edgespec_export.exporter import export_bundle
from edgespec_export.family import DRAFTS, checkpoint_path, export_request, sample_folder
from edgespec_runtime import Model
from tests.support.compare import TIE, first_difference

NEW_TOKENS = 160


def questions(domain: str, category: str, count: int) -> list[tuple[Path, str]]:
    lines = (sample_folder() / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = [r for r in rows if r["category"] == category and len(r["turns"]) == 1]
    return [(sample_folder() / r["image"], r["turns"][0]) for r in chosen[:count]]


ASKED = [
    *questions("in_domain", "detailed", 6),
    *questions("in_domain", "naming", 10),
    *questions("out_of_domain", "detailed", 4),
]


@pytest.fixture(scope="module")
def model(builtin_bundle: Path) -> Model:
    return edgespec_runtime.load(builtin_bundle, threads=1)


@pytest.fixture(scope="module")
def original() -> Any:
    transformers: Any = LlavaForConditionalGeneration  # its annotations are not complete
    return transformers.from_pretrained(checkpoint_path("target"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    transformers: Any = AutoProcessor
    return transformers.from_pretrained(checkpoint_path("target"))


def encode(processor: Any, image: Path, prompt: str) -> Any:
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor(images=Image.open(image).convert("RGB"), text=text, return_tensors="pt")


def tied(original: Any, inputs: Any, tokens: list[int], a: int, b: int) -> bool:
    """Whether tokens a and b score the same after ``tokens``, as far as float32 tells."""
    given = torch.cat([inputs["input_ids"], torch.tensor([tokens], dtype=torch.long)], dim=1)
    logits = original(input_ids=given, pixel_values=inputs["pixel_values"]).logits[0, -1]
    return abs(float(logits[a] - logits[b])) < TIE


@pytest.mark.parametrize("number", range(len(ASKED)))
def test_equals_transformers(number: int, model: Model, original: Any, processor: Any) -> None:
    image, prompt = ASKED[number]
    inputs = encode(processor, image, prompt)
    with torch.no_grad():
        whole = original.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        theirs = whole[0, inputs["input_ids"].shape[1] :].tolist()
        for draft in ("none", "model"):
            settings = {"draft": draft, "temperature": 0.0, "max_new_tokens": NEW_TOKENS}
            ours = list(model.generate(image, prompt, **settings).token_ids)
            at = first_difference(ours, theirs)
            if at is not None:
                assert tied(original, inputs, theirs[:at], ours[at], theirs[at]), (draft, at)


def test_a_chain_in_one_call_equals_step_by_step(model: Model) -> None:
    """The chain graph proposes exactly what the step graph does: same rounds, same trees."""
    image, prompt = ASKED[0]
    seen = []
    for chained in (True, False):
        request = model.stream(image, prompt, policy="eagle2:nodes=14,depth=7,top_k=2,beam_width=1")
        drafter: Any = request._draft
        assert drafter._chain is not None
        if not chained:
            drafter._chain = None
        seen.append([(r.token, r.from_draft, r.accepted, r.tree_nodes) for r in request])
    assert seen[0] == seen[1]


def test_speculation_pays(model: Model) -> None:
    """Long descriptions bring several tokens a round: the draft is no decoration."""
    lengths = [
        model.generate(image, prompt, temperature=0.0).stats.accepted_length
        for image, prompt in questions("in_domain", "detailed", 10)
    ]
    assert sum(lengths) / len(lengths) > 3


def test_the_command_exports_the_family_as_it_was_trained(
    builtin_bundle: Path, tmp_path: Path
) -> None:
    def exported(*words: str) -> Manifest:
        out = tmp_path / f"{len(words)}"
        assert main(["export", "--target", "builtin", "--out", str(out), *words]) == 0
        return read_bundle(out).manifest

    usual = read_bundle(builtin_bundle).manifest
    assert exported().files == usual.files
    device = exported("--part", "device")
    assert device.models == usual.models and set(device.files) < set(usual.files)
    assert exported("--part", "device", "--draft", "vispec").variant == "vispec"
    own = str(checkpoint_path("draft"))  # a path is the user's own draft, whatever lies there
    made = exported("--part", "device", "--draft", own, "--compressor", "pool:2")
    assert made.draft_compressor == "pool:2" and "draft.ids.npy" not in made.files


@pytest.mark.parametrize("role", [role for role, _ in DRAFTS])
def test_every_shipped_draft_is_exact_and_pays(role: str, tmp_path: Path) -> None:
    """Greedy and sampled, chains and trees: the target's text, several tokens a round."""
    export_bundle(export_request(role, tmp_path / "b"))
    model = edgespec_runtime.load(tmp_path / "b", threads=1)
    lengths = []
    asked = [*questions("in_domain", "detailed", 3), *questions("in_domain", "naming", 1)]
    for image, prompt in asked:
        for temperature in (0.0, 1.0):
            given: dict[str, Any] = {"temperature": temperature, "seed": 11, "max_new_tokens": 64}
            plain = model.generate(image, prompt, draft="none", **given)
            for policy in (None, "eagle2:nodes=16,depth=5,top_k=3"):
                ours = model.generate(image, prompt, policy=policy, **given)
                assert ours.token_ids == plain.token_ids
                if policy is None and temperature == 0 and len(plain.token_ids) > 40:
                    lengths.append(ours.stats.accepted_length)
    assert len(lengths) == 3 and sum(lengths) / len(lengths) > 5
