"""A loaded bundle: ``stream`` and ``generate``. Text and pictures in, records out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgespec.bundle import Bundle
from edgespec.latency import DeviceProfile
from edgespec.sampling import Sampler, SamplingParams
from edgespec.sizing import Plain, Policy, parse_policy
from edgespec.sizing.budgets import Budget
from edgespec.sizing.experience import Experience
from edgespec_runtime.defaults import new_tokens, sampling, usual_policy
from edgespec_runtime.drafts.choice import DraftChoice, choose_draft
from edgespec_runtime.engines import Engine, StepGraph
from edgespec_runtime.engines.choice import Choice
from edgespec_runtime.images import listed
from edgespec_runtime.inputs import splice
from edgespec_runtime.limits import check_policy, why_draft_is_left_out, within
from edgespec_runtime.loading import Floats, draft_of, load_graphs, roles_for, vocabulary
from edgespec_runtime.prompt import Asked
from edgespec_runtime.reader import Reader
from edgespec_runtime.records import Generation
from edgespec_runtime.request import Request
from edgespec_runtime.tables import Table
from edgespec_runtime.terms import Terms, load_of
from edgespec_runtime.verifiers import LocalVerifier, Verifier
from edgespec_runtime.verifiers.opening import open_here

if TYPE_CHECKING:
    from edgespec_runtime.images import ImageSource
    from edgespec_runtime.remote.opening import RemoteTarget


class Model:
    """A bundle on an engine. Requests are independent of each other; weights are shared."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        profile: DeviceProfile | None = None,
        budget: Budget | None = None,
        remote: RemoteTarget | None = None,
        stand_in: tuple[StepGraph, Table] | None = None,
        choice: Choice | None = None,
        exact: bool = False,
    ) -> None:
        """``remote``: the target on servers; it is then not loaded here, unless its settings ask
        for that as well. ``stand_in``: a step graph and its token table in place of the target, to
        clock what this device does by itself; what is generated then means nothing. ``choice``:
        how it came to ``engine``. ``exact``: plain decoding goes through the kernels that
        verification does, see ``LocalVerifier``."""
        self.bundle = bundle
        self.profile = profile
        self.budget = budget or Budget()
        self.experience = Experience()
        """What requests teach about sizing; shared by them."""
        self.manifest = bundle.manifest
        self.engine = engine.facts
        self.choice = choice
        self.draft_left_out = ""
        if self.manifest.graph("draft"):
            alone = remote is not None and not remote.settings.drafts
            why = "the draft is not loaded: servers decode alone (mode 'remote')" if alone else ""
            self.draft_left_out = why or why_draft_is_left_out(self.budget, profile)
        """Why the bundle's draft was not loaded; empty where it was, or where there is none."""
        roles = roles_for(
            self.manifest,
            target=stand_in is None and (remote is None or remote.settings.local == "target"),
            draft=not self.draft_left_out,
            embeddings=remote is not None and remote.settings.embeddings,
        )
        loaded = load_graphs(bundle, engine, roles)
        self.notes = tuple(engine.notes)
        """What runs slower than it could, for the user to know."""
        self.graphs = loaded.graphs
        """Those without memory, by role."""
        self.steps = loaded.steps
        """The decoders, by role."""
        self.tables = loaded.tables
        """Token tables [V, H] of target and draft, by role."""
        if stand_in is not None:
            self.steps["target"], self.tables["target"] = stand_in
        self.draft = draft_of(bundle, loaded)
        self.reader = Reader.of(bundle)
        self.tokenizer = self.reader.tokenizer
        self._remote = remote
        self._exact = exact

    @property
    def has_draft(self) -> bool:
        return self.draft is not None

    @property
    def variant(self) -> str | None:
        """What kind of draft the bundle holds ("vlm", "text", "vispec", ...), None without one."""
        return self.manifest.variant

    @property
    def compressor(self) -> str:
        """The compressor of the draft's visual tokens as ``--compressor`` spells it, or "none"."""
        return self.manifest.draft_compressor

    def sampling(self, **given: Any) -> SamplingParams:
        """The checkpoint's generation defaults with ``given`` (not None) over them.

        A checkpoint that does not ask for sampling is greedy, as in Hugging Face's generate.
        """
        return sampling(self.manifest.generation, given)

    def stream(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        prompt: Asked,
        *,
        draft: str = "auto",
        policy: Policy | str | None = None,
        budget: Budget | None = None,
        coupled: bool = True,
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

        ``prompt``: a text, messages, or token ids, which no template touches.
        ``images``: none, one or several (paths, bytes, PIL images, [H, W, 3] uint8 arrays).
        ``draft``: "auto" (the bundle's, if it has one), "none" (plain decoding), "model", "ngram"
        (look-up in the text so far; needs no draft in the bundle) or "model+ngram".
        ``policy``: how large a tree; sizing by measured cost where the model was loaded with a
        profile. ``budget``: limits, checked before anything runs (default: those the model was
        loaded with). ``coupled``: whether the draft may rank by the noise that the target draws
        with; it changes speed alone. Sampling settings left out are the checkpoint's. Raises
        InputError for what cannot be used.
        """
        params = self.sampling(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            repetition_penalty=repetition_penalty, seed=seed,
        )  # fmt: skip
        chosen = choose_draft(
            draft, has_model=self.has_draft, bundle=self.bundle.path, left_out=self.draft_left_out
        )
        tree = self._policy(policy, chosen)
        terms = self._terms(
            listed(images), prompt, params, chosen, tree, budget, coupled, max_new_tokens
        )
        return self._request(terms, stop)

    def generate(
        self,
        images: ImageSource | Sequence[ImageSource] | None,
        prompt: Asked,
        **settings: Any,
    ) -> Generation:
        """Runs ``stream`` to its end and joins it; takes the same arguments."""
        return self.stream(images, prompt, **settings).finish()

    def prompt_embeds(
        self, images: ImageSource | Sequence[ImageSource] | None, prompt: Asked
    ) -> Floats:
        """[L, H]: a prompt as the target reads it, visual tokens in their places."""
        pictures = listed(images)
        built = self.reader.prompt(prompt, len(pictures))
        visual = self.reader.visual(pictures, self.graphs, drafted=False)
        return splice(built.ids, built.image_spans, self.tables["target"], visual.target)

    def close(self) -> None:
        """Ends the connections of a model whose target is elsewhere; else there is nothing to do.
        Requests must be over."""
        if self._remote is not None:
            self._remote.close()

    def _policy(self, asked: Policy | str | None, choice: DraftChoice) -> Policy:
        """What was asked for; plain decoding where nothing drafts."""
        usual = usual_policy(self.profile, ngram_alone=choice.ngram_alone)
        policy = parse_policy(asked) if isinstance(asked, str) else (asked or usual)
        check_policy(policy, self.steps)
        return policy if choice.model or choice.ngram else Plain()

    def _terms(
        self,
        pictures: Sequence[ImageSource],
        prompt: Asked,
        params: SamplingParams,
        choice: DraftChoice,
        policy: Policy,
        budget: Budget | None,
        coupled: bool,
        max_new_tokens: int | None,
    ) -> Terms:
        """What was asked for, as far as bundle, context and budget have room for it."""
        built = self.reader.prompt(prompt, len(pictures))
        most = int(self.manifest.text["max_positions"])
        emitted = new_tokens(max_new_tokens, len(built.ids), most)
        limits = budget or self.budget
        own = self.draft if choice.model else None
        load = load_of(built, own, emitted)
        policy = within(
            limits, policy, self.profile, load,
            drafts=choice.model, draft_loaded=self.has_draft,
        )  # fmt: skip
        return Terms(
            prompt=built,
            pictures=pictures,
            visual=self.reader.visual(pictures, self.graphs, drafted=choice.model),
            sampler=Sampler(params, vocabulary(self.bundle)),
            choice=choice,
            draft=own,
            policy=policy,
            budget=limits,
            load=load,
            coupled=coupled and choice.model and not params.greedy,
        )

    def _request(self, terms: Terms, stop: Sequence[str]) -> Request:
        """Opens draft and target for these terms; with servers, sizing chooses where that runs."""
        remote, eos = self._remote, self.manifest.generation["eos_token_ids"]
        own = terms.open_draft(ahead=remote is not None and remote.settings.ahead)
        setting = terms.setting(
            eos=eos, profile=self.profile, remote=remote, experience=self.experience
        )
        question, sizer = terms.question(exact=self._exact), terms.policy.start(setting)

        def here() -> LocalVerifier:
            return open_here(self.steps["target"], self.tables["target"], question)

        verifier: Verifier
        if remote is None:
            verifier = here()
        else:
            verifier, sizer = remote.route(question, sizer, setting, here, own)
        image = self.manifest.text.get("image_token_id")
        drafter = terms.choice.complete(own, terms.prompt.ids.tolist(), image)
        return Request(
            verifier, drafter, sizer, self.tokenizer, setting=setting, eos_ids=eos, stop=stop,
            max_new_tokens=terms.load.new_tokens,
        )  # fmt: skip
