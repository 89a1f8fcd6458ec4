"""One answer as the client holds it: what is asked next, and what is committed. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edgespec.acceptance import Verdict
from edgespec.sampling import SamplingParams
from edgespec.tree import TokenTree
from edgespec_runtime.prompt import Prompt
from edgespec_runtime.remote.checks import Expected, check_open, check_round
from edgespec_runtime.remote.pictures import Shown
from edgespec_runtime.wire import verifier_pb2 as pb
from edgespec_runtime.wire.prefix import Prefix, context_digest


@dataclass(frozen=True)
class Asked:
    """What an answer depends on, and what is wanted with it."""

    fingerprints: pb.Fingerprints
    prompt_ids: Sequence[int]
    """One placeholder per picture."""
    context: int
    """Rows of the expanded prompt."""
    shown: tuple[Shown, ...]
    sampling: SamplingParams
    max_new_tokens: int
    max_nodes: int
    features: pb.Features = pb.NO_FEATURES
    named: bool = False


def wire_ids(prompt: Prompt) -> list[int]:
    """The prompt's ids with one placeholder for each picture."""
    ids: list[int] = []
    at = 0
    for start, end in prompt.image_spans:
        ids += prompt.ids[at : start + 1].tolist()
        at = end
    ids += prompt.ids[at:].tolist()
    return ids


def wire_sampling(params: SamplingParams) -> pb.Sampling:
    return pb.Sampling(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        seed=params.seed,
    )


class Session:
    """The state that is true: tokens, their hash, epoch and round."""

    def __init__(self, asked: Asked) -> None:
        self.id = secrets.token_bytes(16)
        self.epoch = 0
        self.tokens: list[int] = []
        self._asked = asked
        self._round = 0
        self._prefix = Prefix(context_digest(self._open_message([])))

    @property
    def context(self) -> int:
        """Rows behind the last committed token."""
        return self._asked.context + max(len(self.tokens) - 1, 0)

    @property
    def tokens_left(self) -> int:
        return self._asked.max_new_tokens - len(self.tokens)

    def open(self, sent: Collection[bytes]) -> bytes:
        """The request that opens the session anew, with all that is committed; pictures whose
        digests were ``sent`` before are named by them."""
        self.epoch += 1
        self._round = 0
        message = self._open_message(sent)
        message.session_id, message.epoch = self.id, self.epoch
        message.accepted_ids.extend(self.tokens)
        return message.SerializeToString()

    def rename(self) -> None:
        """Goes on as another session, whose epochs begin anew."""
        self.id = secrets.token_bytes(16)
        self.epoch = 0

    def opened(self, reply: pb.OpenReply, expected: Expected) -> Verdict:
        """Commits what an open brought. Raises BadReply, and then nothing has changed."""
        verdict = check_open(reply, self.epoch, self.tokens, self._prefix, self.context, expected)
        self._commit(verdict)
        return verdict

    def verify(self, tree: TokenTree) -> bytes:
        """The request of the next round."""
        return pb.VerifyRequest(
            session_id=self.id,
            epoch=self.epoch,
            round=self._round + 1,
            committed_len=len(self.tokens),
            prefix_hash=self._prefix.value,
            tree=pb.Tree(token_ids=tree.tokens, parents=tree.parents),
        ).SerializeToString()

    def proceed(self, stop_ids: Sequence[int]) -> bytes:
        """The request for plain rounds up to the end of the answer."""
        return pb.ContinueRequest(
            session_id=self.id,
            epoch=self.epoch,
            round=self._round + 1,
            committed_len=len(self.tokens),
            prefix_hash=self._prefix.value,
            max_tokens=self.tokens_left,
            stop_ids=stop_ids,
        ).SerializeToString()

    def verified(self, tree: TokenTree, reply: pb.VerifyReply, expected: Expected) -> Verdict:
        """Commits what a round over ``tree`` brought. Raises BadReply, and then nothing has
        changed."""
        verdict = check_round(reply, self._round + 1, tree, self._prefix, expected)
        self._round += 1
        self._commit(verdict)
        return verdict

    def adopt(self, tokens: Sequence[int]) -> None:
        """Takes tokens that were named elsewhere; the session has to be opened anew."""
        self.tokens += tokens
        self._prefix.extend(tokens)

    def close(self) -> bytes:
        return pb.CloseRequest(session_id=self.id, epoch=self.epoch).SerializeToString()

    def _commit(self, verdict: Verdict) -> None:
        self.tokens += verdict.tokens
        self._prefix.extend(verdict.tokens)

    def _open_message(self, sent: Collection[bytes]) -> pb.OpenRequest:
        asked = self._asked
        return pb.OpenRequest(
            fingerprints=asked.fingerprints,
            prompt_ids=asked.prompt_ids,
            pictures=[
                pb.Picture(sha256=shown.digest) if shown.digest in sent else shown.message
                for shown in asked.shown
            ],
            sampling=wire_sampling(asked.sampling),
            max_new_tokens=asked.max_new_tokens,
            max_nodes=asked.max_nodes,
            features=asked.features,
            want_named=asked.named,
        )
