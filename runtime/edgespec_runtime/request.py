"""One running request: rounds become records, and times are added up."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter
from typing import Any

from edgespec.acceptance import StopRules
from edgespec.sizing import Setting, Sizer
from edgespec.sizing.policies.sized import SizedTrees
from edgespec_runtime.decoder import Round, decode
from edgespec_runtime.drafts import Drafter
from edgespec_runtime.drafts.ahead import counts
from edgespec_runtime.records import Generation, Record, Stats, runs
from edgespec_runtime.text import StopStrings, TextStream
from edgespec_runtime.tokenizer import Tokenizer
from edgespec_runtime.verifiers import Away, Verifier


class Request:
    """Iterates over records; ``stats`` tells what it took so far.

    Leaving it half way is safe: everything it changed (caches, noise, text state) is its own.
    """

    def __init__(
        self,
        verifier: Verifier,
        draft: Drafter,
        sizer: Sizer,
        tokenizer: Tokenizer,
        *,
        eos_ids: Sequence[int],
        stop: Sequence[str],
        max_new_tokens: int,
        setting: Setting,
    ) -> None:
        self.setting = setting
        self._verifier = verifier
        self._draft = draft
        self.sizer = sizer
        self._stream = TextStream(tokenizer)
        self._stops = StopStrings(stop)
        self._texts: list[str] = []  # of the round at hand, one per emitted token
        rules = StopRules(eos_ids, max_new_tokens, self._take_text)
        self._listener: Callable[[Round], None] | None = None
        self._rounds = decode(verifier, draft, sizer, rules)
        self._records = self._run()
        self._busy_s = self._first_s = self._first_engine_s = 0.0
        self._tokens = self._count = 0
        self._draft_ms = self._verify_ms = self._prepare_ms = 0.0

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        started = perf_counter()
        try:
            return next(self._records)
        finally:
            self._busy_s += perf_counter() - started

    def close(self) -> None:
        """Ends the request where it is; a session that a server holds for it is given back. Also
        done at the end of the text, and when the request is no longer referred to."""
        self._records.close()
        self._rounds.close()

    def finish(self) -> Generation:
        """Runs to the end and joins all records."""
        records = list(self)
        return Generation(
            text="".join(record.text for record in records),
            token_ids=tuple(record.token for record in records),
            finish_reason=records[-1].finish_reason or "length",
            prompt_tokens=self.prompt_tokens,
            stats=self.stats,
            sizing=self.sizing,
            text_source="draft" if any(r.source == "draft" for r in records) else "target",
            sources=runs(records),
            remote=self.remote,
        )

    @property
    def prompt_tokens(self) -> int:
        return self.setting.prompt_tokens

    def listen(self, listener: Callable[[Round], None]) -> None:
        """Has every round from here on told to ``listener`` before its records are handed out, the
        prefill included. A round holds its candidates: whoever keeps it keeps them."""
        self._listener = listener

    @property
    def sizing(self) -> dict[str, Any] | None:
        """What sizing has learnt so far, with this request; None for policies that learn nothing of
        the kind."""
        sizer = getattr(self.sizer, "inner", self.sizer)  # within a choice of modes
        return sizer.experience.as_json() if isinstance(sizer, SizedTrees) else None

    @property
    def remote(self) -> dict[str, Any] | None:
        """What talking to servers took so far; None where the target runs here."""
        verifier = self._verifier
        if not isinstance(verifier, Away):
            return None
        return {**verifier.account.as_json(), "drafted_ahead": counts(self._draft)}

    @property
    def stats(self) -> Stats:
        decode_s = self._busy_s - self._first_s
        engine_s = self._verifier.engine_s + self._draft.engine_s - self._first_engine_s
        after_first = max(self._tokens - 1, 0)
        return Stats(
            tokens_per_s=after_first / decode_s if after_first and decode_s > 0 else 0.0,
            ttft_ms=self._first_s * 1e3,
            rounds=self._count,
            accepted_length=after_first / self._count if self._count else 0.0,
            draft_ms=self._draft_ms,
            verify_ms=self._verify_ms,
            prepare_ms=self._prepare_ms,
            host_ms=max(decode_s - engine_s, 0.0) * 1e3,
            total_ms=self._busy_s * 1e3,
        )

    def _run(self) -> Generator[Record, None, None]:
        started = perf_counter()
        for index, outcome in enumerate(self._rounds):
            self._account(index, outcome, started)
            if self._listener is not None:
                self._listener(outcome)
            texts, self._texts = self._texts, []
            # End-of-sequence tokens and the last held-back text have no entry of their own.
            texts += [""] * (len(outcome.tokens) - len(texts))
            if outcome.finish_reason is not None:
                texts[-1] += self._rest(outcome.finish_reason)
            yield from self._emit(index, outcome, texts)

    def _emit(self, index: int, outcome: Round, texts: Sequence[str]) -> Iterator[Record]:
        last = len(outcome.tokens) - 1
        for i, (token, text) in enumerate(zip(outcome.tokens, texts, strict=True)):
            yield Record(
                token=token,
                text=text,
                from_draft=i < outcome.drafted,
                accepted=len(outcome.tokens) if index else 0,
                tree_nodes=outcome.tree_nodes,
                draft_ms=outcome.draft_ms if i == 0 else 0.0,
                verify_ms=outcome.verify_ms if i == 0 else 0.0,
                prepare_ms=outcome.prepare_ms if i == 0 else 0.0,
                source=outcome.source,
                finish_reason=outcome.finish_reason if i == last else None,
            )

    def _account(self, index: int, outcome: Round, started: float) -> None:
        self._tokens += len(outcome.tokens)
        if index == 0:
            self._first_s = perf_counter() - started
            self._first_engine_s = self._verifier.engine_s + self._draft.engine_s
            return
        self._count += 1
        self._draft_ms += outcome.draft_ms
        self._verify_ms += outcome.verify_ms
        self._prepare_ms += outcome.prepare_ms

    def _take_text(self, token: int) -> bool:
        """Stop rule: takes a token's text; True where it completes a stop string."""
        text, hit = self._stops.push(self._stream.push(token))
        self._texts.append(text)
        return hit

    def _rest(self, reason: str) -> str:
        """What was held back; after a stop string there is nothing more to say."""
        if reason == "stop":
            return ""
        text, hit = self._stops.push(self._stream.flush())
        return text if hit else text + self._stops.flush()
