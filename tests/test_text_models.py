"""Text-only checkpoints: exported, run plain and drafted, and refused pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgespec.bundle import Manifest, read_bundle
from edgespec.cli import main
from edgespec.errors import CheckpointError, ConfigError, InputError, PromptError
from edgespec_export.exporter import ExportRequest, export_bundle, plan_export
from edgespec_runtime import Model, load
from edgespec_runtime.remote import RemoteSettings
from tests.support.checkpoints import picture
from tests.support.compare import TIE
from tests.support.servers import running_server
from tests.support.texts import TEMPLATE, TextModel, write_text_draft, write_text_model
from tests.support.tiny import write_json, write_tiny

MODELS = {
    "llama": TextModel(template=TEMPLATE),
    "llama-bare": TextModel(tied=True),
    "mistral": TextModel("Mistral", kv_heads=1, template=TEMPLATE),
    "qwen2": TextModel("Qwen2"),
    "qwen2-tied": TextModel("Qwen2", tied=True, kv_heads=4, template=TEMPLATE),
}
PROMPTS = ("what is this", "abcabcabcabc and so on", "x")
NEW = 24


class Shelf:
    """Checkpoints and their bundles, made when first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[tuple[str, str], Model] = {}

    def checkpoint(self, name: str) -> Path:
        folder = self._folder / name
        return folder if folder.exists() else write_text_model(folder, MODELS[name], seed=3)

    def draft(self, name: str) -> Path:
        folder = self._folder / f"{name}-draft"
        if folder.exists():
            return folder
        return write_text_draft(folder, MODELS[name], self.checkpoint(name), noise=0.08)

    def bundle(self, name: str, draft: str = "none") -> Path:
        out = self._folder / f"{name}.{draft}.bundle"
        if not out.exists():
            drafts = {"none": None, "own": str(self.draft(name))}
            target = str(self.checkpoint(name))
            export_bundle(ExportRequest(target, out, draft=drafts[draft], parity=True))
        return out

    def model(self, name: str, draft: str = "none") -> Model:
        if (name, draft) not in self._models:
            self._models[name, draft] = load(self.bundle(name, draft), threads=1)
        return self._models[name, draft]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("texts"))


class Reference:
    """The checkpoint in transformers."""

    def __init__(self, folder: Path) -> None:
        import transformers

        hf: Any = transformers
        self._tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        self._model = hf.AutoModelForCausalLM.from_pretrained(folder).eval()

    def ids(self, prompt: str) -> list[int]:
        """As a chat where there is a template, else as it is."""
        if not self._tokenizer.chat_template:
            return list(self._tokenizer(prompt).input_ids)
        message = {"role": "user", "content": prompt}
        return list(
            self._tokenizer.apply_chat_template(
                [message], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )

    def tokens(self, ids: list[int], new: int) -> list[int]:
        import torch

        asked = torch.tensor([ids])
        answer = self._model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=new
        )
        return list(answer[0, len(ids) :].tolist())

    def gap(self, ids: list[int], ours: int, theirs: int) -> float:
        """How far apart the two tokens' logits are behind ``ids``."""
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor([ids])).logits[0, -1]
        return float(abs(logits[ours] - logits[theirs]))


@pytest.mark.parametrize("name", MODELS)
def test_text_is_transformers_own(shelf: Shelf, name: str) -> None:
    """Plain, with a draft and with n-grams."""
    model, reference = shelf.model(name, "own"), Reference(shelf.checkpoint(name))
    accepted = 0.0
    for prompt in PROMPTS:
        ids = reference.ids(prompt)
        wanted = reference.tokens(ids, NEW)
        for draft in ("none", "model", "ngram", "model+ngram"):
            ours = model.generate(None, prompt, draft=draft, max_new_tokens=NEW)
            assert ours.prompt_tokens == len(ids)
            _check_equal(list(ours.token_ids), wanted, reference, ids)
            accepted = max(accepted, ours.stats.accepted_length)
    assert accepted > 1.5, "no draft was ever accepted"


def _check_equal(
    ours: list[int], theirs: list[int], reference: Reference, prompt: list[int]
) -> None:
    if ours == theirs:
        return
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    gap = reference.gap([*prompt, *theirs[:at]], ours[at], theirs[at])
    assert gap < TIE, f"token {at} is {ours[at]} for {theirs[at]}, {gap:.2g} apart"


def test_a_bundle_without_pictures(shelf: Shelf) -> None:
    bundle = read_bundle(shelf.bundle("llama", "own"))
    manifest = bundle.manifest
    assert {graph.role for graph in manifest.graphs} == {"target", "draft", "draft_chain"}
    assert "image_token" not in manifest.text and "image_token_id" not in manifest.text
    assert manifest.variant == "text"
    assert "preprocessor_config.json" not in manifest.files
    assert manifest.models["target"].architecture == "LlamaForCausalLM"
    assert all(_difference(manifest, graph.stem) < 1e-3 for graph in manifest.graphs)


def _difference(manifest: Manifest, stem: str) -> float:
    found: Mapping[str, Any] = manifest.parity[stem]
    return float(found.get("max_abs_diff", 0.0))


def test_pictures_are_refused(shelf: Shelf) -> None:
    model = shelf.model("llama")
    shown = picture(32, 0)
    with pytest.raises(PromptError, match="reads text alone; leave them out"):
        model.generate(shown, "what is this")
    parts = [{"type": "image"}, {"type": "text", "text": "what is this"}]
    with pytest.raises(PromptError, match="1 image parts, but 0 images"):
        model.generate(None, [{"role": "user", "content": parts}])


def test_messages_and_templates(shelf: Shelf) -> None:
    """Parts of text become the string that a text template reads."""
    model = shelf.model("llama")
    said = model.generate(None, "hello", max_new_tokens=4)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert model.generate(None, parts, max_new_tokens=4).token_ids == said.token_ids


def test_prompts_of_token_ids(shelf: Shelf) -> None:
    model, reference = shelf.model("qwen2"), Reference(shelf.checkpoint("qwen2"))
    ids = reference.ids("hello there")
    wanted = model.generate(None, "hello there", max_new_tokens=8).token_ids
    for given in (ids, tuple(ids), np.array(ids)):
        assert model.generate(None, given, max_new_tokens=8).token_ids == wanted
    with pytest.raises(PromptError, match="token id 320, but the vocabulary has 320"):
        model.generate(None, [1, 320])
    with pytest.raises(PromptError, match="token id -1"):
        model.generate(None, [-1])
    with pytest.raises(PromptError, match=r"one row of whole numbers; got shape \[1, 2\]"):
        model.generate(None, np.array([[1, 2]]))
    with pytest.raises(PromptError, match="no tokens"):
        model.generate(None, np.array([], dtype=np.int64))


def test_sampling_is_the_same_with_a_draft(shelf: Shelf) -> None:
    model = shelf.model("llama", "own")
    settings: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_new_tokens": NEW}
    plain = model.generate(None, "abc", draft="none", **settings)
    assert model.generate(None, "abc", draft="model", **settings).token_ids == plain.token_ids


def test_a_draft_of_another_kind_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    seeing, blind = write_tiny(tmp_path / "llava"), shelf.checkpoint("llama")
    for target, draft, words in (
        (blind, seeing, "is a text model and draft .* a LLaVA; a draft must be of its target's"),
        (seeing, blind, "is a LLaVA and draft .* a text model; a draft must be of its target's"),
    ):
        with pytest.raises(CheckpointError, match=words):
            plan_export(ExportRequest(str(target), tmp_path / "out", draft=str(draft)))
    with pytest.raises(ConfigError, match="a feature-level one, which is built for LLaVA"):
        asked = ExportRequest(str(blind), tmp_path / "out", draft=str(seeing), draft_variant="msd")
        plan_export(asked)
    request = ExportRequest(
        str(blind), tmp_path / "out", draft=str(shelf.draft("llama")), compressor="pool:4"
    )
    with pytest.raises(ConfigError, match="sees no pictures; leave --compressor out"):
        plan_export(request)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"architectures": ["LlamaForSequenceClassification"]}, "does not generate text"),
        ({"rope_interleaved": True}, "rope_interleaved, a rotary embedding that is not built"),
        ({"sliding_window": 16, "model_type": "mistral"}, "sliding-window"),
        ({"attention_multiplier": 2.0}, "does not understand: attention_multiplier"),
    ],
)
def test_configs_that_would_change_the_text(
    shelf: Shelf, tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    folder = write_text_model(tmp_path / "broken", MODELS["llama"])
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, **changed})
    with pytest.raises(InputError, match=words):
        plan_export(ExportRequest(str(folder), tmp_path / "out"))


def test_keys_of_published_configs(shelf: Shelf, tmp_path: Path) -> None:
    """SmolLM2's and Qwen2.5's say what is true of every Llama and Qwen2."""
    folder = write_text_model(tmp_path / "published", MODELS["llama"])
    config = json.loads((folder / "config.json").read_text())
    known = {"is_llama_config": True, "rope_interleaved": False, "use_mrope": False}
    write_json(folder / "config.json", {**config, **known, "transformers.js_config": {}})
    assert plan_export(ExportRequest(str(folder), tmp_path / "out")).target.tensors.text


def test_named_templates(tmp_path: Path) -> None:
    """Of several templates the default one is taken, as transformers does."""
    folder = write_text_model(tmp_path / "named", MODELS["llama"])
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    write_json(folder / "tokenizer_config.json", {**settings, "chat_template": named})
    export_bundle(ExportRequest(str(folder), tmp_path / "out"))
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


def test_commands(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """export, profile, generate and bench, as a user calls them."""
    bundle, profile = tmp_path / "text.bundle", tmp_path / "profile.json"
    target, draft = str(shelf.checkpoint("llama")), str(shelf.draft("llama"))
    assert main(["export", "--target", target, "--draft", draft, "--out", str(bundle)]) == 0
    measuring = ["--quick", "--max-nodes", "4", "--max-context", "32", "--out", str(profile)]
    assert main(["profile", "--bundle", str(bundle), "--threads", "1", *measuring]) == 0
    common = ["--bundle", str(bundle), "--threads", "1", "--profile", str(profile), "--json"]
    capsys.readouterr()
    assert main(["generate", *common, "--prompt", "hello", "--max-new-tokens", "8"]) == 0
    assert len(json.loads(capsys.readouterr().out)["token_ids"]) == 8
    data = tmp_path / "asked.jsonl"
    rows = [{"id": n, "turns": [text], "category": "text"} for n, text in enumerate(PROMPTS)]
    data.write_text("\n".join(map(json.dumps, rows)))
    asked = ["--data", str(data), "--max-new-tokens", "8", "--repeats", "1"]
    methods = ["--method", "text", "--method", "ngram"]
    assert main(["bench", *common, *asked, *methods]) == 0
    cells = json.loads(capsys.readouterr().out)
    assert {cell["method"] for cell in cells} == {"text", "ngram"}
    assert all(cell["exact_match"] == 1.0 for cell in cells)


@pytest.mark.slow
def test_a_target_on_a_server(shelf: Shelf) -> None:
    """The same text, whether the server verifies or streams; and no picture gets there."""
    bundle = shelf.bundle("llama", "own")
    wanted = shelf.model("llama", "own").generate(None, "hello", max_new_tokens=NEW).token_ids
    with running_server(bundle, "--kv-mb", 64) as server:
        for mode in ("hybrid", "remote"):
            settings = RemoteSettings((server.address,), mode=mode)
            away = load(bundle, threads=1, remote=settings)
            found = away.generate(None, "hello", max_new_tokens=NEW)
            with pytest.raises(PromptError, match="reads text alone"):
                away.generate(picture(32, 0), "hello")
            away.close()
            assert found.token_ids == wanted
