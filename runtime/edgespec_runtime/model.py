"""A loaded bundle: ``stream`` and ``generate``. Text and pictures in, records out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgespec.bundle import Bundle, read_bundle
from edgespec.errors import BundleError, ConfigError, PromptError
from edgespec.sampling import Sampler, SamplingParams
from edgespec.sizing import Eagle2, Plain, Policy, Setting, parse_policy
from edgespec_runtime.drafts import Drafter, NoDraft
from edgespec_runtime.drafts.choice import DraftChoice, choose_draft
from edgespec_runtime.drafts.opening import DraftModel
from edgespec_runtime.engines import Engine, Graph, StepGraph, open_engine
from edgespec_runtime.inputs import VisualInputs, splice
from edgespec_runtime.prompt import Prompt, build_prompt
from edgespec_runtime.records import Generation
from edgespec_runtime.request import Request
from edgespec_runtime.template import ChatTemplate, Message
from edgespec_runtime.tokenizer import Tokenizer
from edgespec_runtime.verifiers import LocalVerifier
from edgespec_runtime.vision import ImageProcessor, preprocess

if TYPE_CHECKING:
    from edgespec_runtime.images import ImageSource

DEFAULT_NEW_TOKENS = 512
# A chain is the cheapest shape where a draft step is dear: one engine call. Measured on the
# built-in family (docs/performance.md); sizing by measured cost will choose per round.
DEFAULT_POLICY = Eagle2(nodes=12, depth=12, top_k=1)
STEP_ROLES = ("target", "draft", "draft_chain")


class Model:
    """A bundle on an engine. Requests are independent of each other; weights are shared."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self._graphs: dict[str, Graph] = {}
        self._steps: dict[str, StepGraph] = {}
        for spec in self.manifest.graphs:
            if spec.role in STEP_ROLES:
                self._steps[spec.role] = engine.load_step(spec, bundle.path)
            else:
                self._graphs[spec.role] = engine.load(spec, bundle.path)
        for role in ("vision", "projector"):
            if role not in self._graphs:
                raise BundleError(f"{bundle.path} has no '{role}' graph; export it again")
        # Plain views of the mapped files: numpy's memmap class makes every lookup slower.
        self._tables = {
            role: np.asarray(np.load(bundle.file(f"{role}.embed.npy"), mmap_mode="r"))
            for role in self._steps
            if role != "draft_chain"
        }
        self.draft = self._open_draft()
        special = self.manifest.text["special_tokens"]
        self.tokenizer = Tokenizer(bundle.file("tokenizer.json"), special_tokens=special)
        template = bundle.file("chat_template.jinja").read_text(encoding="utf-8")
        self._template = ChatTemplate.from_source(template)
        self._processor = self._image_processor("preprocessor_config.json")
        own = "draft_preprocessor_config.json"
        self._draft_processor = (
            self._image_processor(own) if own in self.manifest.files else self._processor
        )

    @property
    def has_draft(self) -> bool:
        return self.draft is not None

    @property
    def variant(self) -> str | None:
        """What kind of draft the bundle holds ("vlm", "vispec", ...), None without one."""
        return self.manifest.variant

    @property
    def compressor(self) -> str:
        """The compressor of the draft's visual tokens as ``--compressor`` spells it, or "none"."""
        return self.manifest.draft_compressor

    def sampling(self, **given: Any) -> SamplingParams:
        """The checkpoint's generation defaults with ``given`` (not None) over them.

        A checkpoint that does not ask for sampling is greedy, as in Hugging Face's generate.
        """
        defaults = dict(self.manifest.generation)
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        merged = {name: defaults[name] for name in names if name in defaults}
        if not defaults.get("do_sample", False):
            merged = {k: v for k, v in merged.items() if k == "repetition_penalty"}
        elif "temperature" not in merged:
            merged["temperature"] = 1.0
        merged.update({k: v for k, v in given.items() if v is not None})
        return SamplingParams(**merged)

    def stream(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        prompt: str | Sequence[Message],
        *,
        draft: str = "auto",
        policy: Policy | str | None = None,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Request:
        """Starts a request; iterate over it for records.

        ``images``: none, one or several (paths, bytes, PIL images, [H, W, 3] uint8 arrays).
        ``draft``: "auto" (the bundle's, if it has one), "none" (plain decoding), "model", "ngram"
        (look-up in the text so far; needs no draft in the bundle) or "model+ngram".
        Sampling settings left out are the checkpoint's. Raises InputError for what cannot be used.
        """
        params = self.sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        choice = choose_draft(draft, has_model=self.has_draft, bundle=self.bundle.path)
        policy = self._policy(policy, choice)
        pictures = _as_list(images)
        text = self.manifest.text
        built = build_prompt(
            prompt,
            len(pictures),
            self._template,
            self.tokenizer,
            image_token=text["image_token"],
            image_token_id=text["image_token_id"],
            image_seq_len=text["visual_tokens"],
            max_context=text["max_positions"] - 1,
        )
        budget = self._new_tokens(max_new_tokens, len(built.ids))
        visual = self._visual_inputs(pictures, choice.model)
        own: Drafter = NoDraft()
        if self.draft and choice.model:
            own = self.draft.open(built, visual, policy, budget)
        setting = self._setting(built, choice, params, budget)
        return Request(
            self._verifier(built, visual, params, budget + policy.max_nodes, choice.model),
            choice.complete(own, built.ids.tolist(), text["image_token_id"]),
            policy.start(setting),
            self.tokenizer,
            eos_ids=self.manifest.generation["eos_token_ids"],
            stop=stop,
            max_new_tokens=budget,
            setting=setting,
        )

    def generate(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        prompt: str | Sequence[Message],
        **settings: Any,
    ) -> Generation:
        """Runs ``stream`` to its end and joins it; takes the same arguments."""
        request = self.stream(images, prompt, **settings)
        records = list(request)
        return Generation(
            text="".join(record.text for record in records),
            token_ids=tuple(record.token for record in records),
            finish_reason=records[-1].finish_reason or "length",
            prompt_tokens=request.prompt_tokens,
            stats=request.stats,
        )

    def _verifier(
        self,
        prompt: Prompt,
        visual: VisualInputs,
        params: SamplingParams,
        extra: int,
        speculate: bool,
    ) -> LocalVerifier:
        step, table = self._steps["target"], self._tables["target"]
        features = speculate and self.draft is not None and self.draft.wants_features
        return LocalVerifier(
            step.open(len(prompt.ids) + extra + 1, ("logits", *(["hidden"] if features else []))),
            table,
            lambda: splice(prompt.ids, prompt.image_spans, table, visual.target),
            prompt.ids.tolist(),
            Sampler(params, int(step.spec.meta["vocab"])),
            features=features,
        )

    def _open_draft(self) -> DraftModel | None:
        if "draft" not in self._steps:
            return None
        return DraftModel(
            self._steps["draft"],
            self._steps.get("draft_chain"),
            self._tables["draft"],
            self._graphs,
            self.manifest.compressor or {},
        )

    def _visual_inputs(self, pictures: Sequence[ImageSource], speculate: bool) -> VisualInputs:
        if not pictures:
            return VisualInputs(self._graphs, None, None)
        pixels = preprocess(pictures, self._processor)
        own_tower = speculate and "draft_vision" in self._graphs
        draft_pixels = preprocess(pictures, self._draft_processor) if own_tower else None
        return VisualInputs(self._graphs, pixels, draft_pixels)

    def _policy(self, asked: Policy | str | None, choice: DraftChoice) -> Policy:
        """What was asked for; plain decoding where nothing drafts."""
        policy = parse_policy(asked) if isinstance(asked, str) else (asked or DEFAULT_POLICY)
        self._check_policy(policy)
        return policy if choice.model or choice.ngram else Plain()

    def _setting(
        self, prompt: Prompt, choice: DraftChoice, params: SamplingParams, budget: int
    ) -> Setting:
        """What a policy may know of the request."""
        own = self.draft if choice.model else None
        return Setting(
            prompt_tokens=len(prompt.ids),
            draft_prompt_tokens=own.prompt_length(prompt) if own else 0,
            images=len(prompt.image_spans),
            max_new_tokens=budget,
            temperature=params.temperature,
            chain_steps=own.chain_steps if own else 0,
            draft=choice.name,
            question=hash(prompt.ids.tobytes()),
        )

    def _check_policy(self, policy: Policy) -> None:
        """Refuses a tree that the bundle's graphs were not built for."""
        draft = self._steps.get("draft")
        if draft is not None and policy.top_k > int(draft.spec.meta["top_k"]):
            raise ConfigError(
                f"the policy asks for top_k={policy.top_k}; this bundle's draft graph gives "
                f"{draft.spec.meta['top_k']} candidates per node"
            )
        rows = max(policy.max_nodes, policy.max_drafted)
        most = min(int(step.spec.meta["tree_rows"]) for step in self._steps.values())
        if rows > most:
            raise ConfigError(
                f"the policy's trees take up to {rows} rows, this bundle's graphs take {most}; "
                "ask for fewer nodes, levels or candidates"
            )

    def _new_tokens(self, asked: int | None, prompt_tokens: int) -> int:
        room = int(self.manifest.text["max_positions"]) - prompt_tokens
        if asked is None:
            return min(DEFAULT_NEW_TOKENS, room)
        if asked < 1:
            raise ConfigError(f"max_new_tokens is {asked}; it must be at least 1")
        if asked > room:
            raise PromptError(
                f"the prompt takes {prompt_tokens} tokens and {asked} new ones were asked for, but "
                f"the context holds {prompt_tokens + room}; ask for at most {room}"
            )
        return asked

    def _image_processor(self, name: str) -> ImageProcessor:
        config: Mapping[str, Any] = json.loads(self.bundle.file(name).read_text(encoding="utf-8"))
        return ImageProcessor.from_config(config)


def load(
    bundle: str | Path, *, engine: str = "ort", threads: int = 0, check_hashes: bool = True
) -> Model:
    """Opens a bundle: checks it whole, then loads its graphs. Raises BundleError or EngineError."""
    return Model(
        read_bundle(bundle, check_hashes=check_hashes), open_engine(engine, threads=threads)
    )


def _as_list(images: ImageSource | Sequence[ImageSource] | None) -> list[ImageSource]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]
