"""From token ids to text while they arrive: incremental detokenisation and stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgespec.errors import ConfigError
from edgespec_runtime.shares import shares_of

if TYPE_CHECKING:
    from edgespec_runtime.tokenizer import Tokenizer


class TextStream:
    """Text of a growing list of token ids, given out as soon as later tokens cannot change it.

    What all ``push`` calls and the last ``flush`` return, joined, equals
    ``tokenizer.decode(ids, skip_special_tokens)``. A push costs the same however long the text is:
    each token's share of the text is looked up once per tokenizer and then joined, nothing is
    decoded twice. Held back are an unfinished UTF-8 character (byte-level tokenizers) and a run of
    byte tokens until it ends (Llama-style ones, where one bad byte spoils its whole run). With a
    decoder of another kind (CTC, BPE with a suffix) everything is held back until ``flush``.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._shares = shares_of(tokenizer, skip_special_tokens)
        self._first = True
        self._restart()

    def push(self, token_id: int) -> str:
        """Add one token; return the text that is now final: maybe none, maybe several tokens'."""
        share = self._shares.get(int(token_id))
        if share is None:  # a special token, or an id the tokenizer does not know
            return ""
        kind = self._shares.kind
        if kind == "bytes":
            return self._utf8.decode(share.raw)
        if kind == "whole":
            self._ids.append(int(token_id))
            return ""
        if share.raw:
            self._run += share.raw
            return ""
        text = share.first if self._first else share.text
        self._first = False
        return self._stripped(self._take_run() + text)

    def flush(self) -> str:
        """End of the text: return what was held back. The stream is then as new."""
        kind = self._shares.kind
        if kind == "bytes":
            text = self._utf8.decode(b"", final=True)
        elif kind == "whole":
            text = self._shares.decode(self._ids)
        else:
            text = self._stripped(self._take_run())
        self._restart()
        return text

    def _restart(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._ids: list[int] = []
        self._run = b""  # bytes of consecutive byte tokens
        self._first = True
        self._to_strip = self._shares.strip_count

    def _take_run(self) -> str:
        """The byte tokens' characters; as tokenizers has it, all are U+FFFD if one is not valid."""
        if not self._run:
            return ""
        run, self._run, self._first = self._run, b"", False
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        """``text`` without the characters that the decoder strips from the start of the whole."""
        while self._to_strip and text:
            if text[0] != self._shares.strip_char:
                self._to_strip = 0
            else:
                self._to_strip -= 1
                text = text[1:]
        return text


class StopStrings:
    """Cuts a stream of text before the first stop string.

    The first is the one that is *complete* first, and of several complete at one character the
    longest. So the result does not depend on how the text was cut into pieces: one token at a time
    and ten tokens a round give the same text. Raises ConfigError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise ConfigError(f"stop strings must be a list; got the single string {stops!r}")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise ConfigError(f"a stop string must be a non-empty string; got {stop!r}")
        self._stops = tuple(stops)
        self._beginnings = {stop[:n] for stop in self._stops for n in range(1, len(stop))}
        self._longest = max((len(beginning) for beginning in self._beginnings), default=0)
        self._held = ""
        self._hit = False

    def push(self, text: str) -> tuple[str, bool]:
        """Add text; return (text that may be shown, whether a stop string was found by now)."""
        if self._hit or not text:
            return "", self._hit
        text = self._held + text
        found = [
            (text.find(stop) + len(stop), text.find(stop)) for stop in self._stops if stop in text
        ]
        if found:
            self._hit, self._held = True, ""
            return text[: min(found)[1]], True
        keep = min(self._longest, len(text))
        while keep and text[-keep:] not in self._beginnings:
            keep -= 1
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """End of the text: return what was held back in case a stop string had begun."""
        held, self._held = self._held, ""
        return held
