"""From token ids to text while they arrive: incremental detokenisation and stop strings."""

from __future__ import annotations

import codecs
import json
import re
import string
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from edgespec.errors import ConfigError

if TYPE_CHECKING:
    from edgespec_runtime.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


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
        self._shares = _shares_of(tokenizer, skip_special_tokens)
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


class _Share:
    """What one token adds to the text: bytes, or characters (others when it is the first)."""

    __slots__ = ("first", "raw", "text")

    def __init__(self, raw: bytes = b"", text: str = "", first: str = "") -> None:
        self.raw, self.text, self.first = raw, text, first


class _Shares:
    """Each token's share of the text, looked up when it is first seen and then kept."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._backend = tokenizer.backend
        self._skip = skip_special_tokens
        added = self._backend.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._known: dict[int, _Share | None] = {}
        self.strip_char, self.strip_count = "", 0
        self._has_byte_tokens = False
        self._anchor = -1
        self._anchor_text = ""
        self.kind = self._classify()

    def get(self, token_id: int) -> _Share | None:
        """The share of one token, or None when it adds nothing and counts for nothing."""
        if token_id not in self._known:
            self._known[token_id] = self._find(token_id)
        return self._known[token_id]

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=self._skip))

    def _find(self, token_id: int) -> _Share | None:
        token = self._backend.id_to_token(token_id)
        if token is None or (self._skip and token_id in self._special):
            return None
        if self.kind == "bytes":
            return _Share(raw=_byte_level(token))
        if self.kind == "whole":
            return _Share()
        match = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if match:
            return _Share(raw=bytes.fromhex(match[1]))
        text = self.decode([self._anchor, token_id])[len(self._anchor_text) :]
        # What is stripped from the text's start is counted in the stream, not here.
        first = text if self.strip_count else self.decode([token_id])
        return _Share(text=text, first=first)

    def _classify(self) -> str:
        """ "bytes": tokens are bytes; "pieces": tokens are strings; "whole": neither is known."""
        decoder = self._backend.decoder
        # A decoder's pickled state is its JSON; the whole tokenizer's would be megabytes.
        config = None if decoder is None else json.loads(decoder.__getstate__())
        steps = _steps(config)
        names = [step["type"] for step in steps]
        if names == ["ByteLevel"]:
            return "bytes"
        if names not in ([], ["Metaspace"], ["WordPiece"]) and not self._read_pieces(steps):
            return "whole"
        return "pieces" if self._find_anchor() else "whole"

    def _read_pieces(self, steps: list[dict[str, Any]]) -> bool:
        """Whether this is Llama's chain: Replace one character, ByteFallback, Fuse, Strip."""
        order = ["Replace", "ByteFallback", "Fuse", "Strip"]
        places = [order.index(s["type"]) if s["type"] in order else -1 for s in steps]
        if -1 in places or places != sorted(set(places)):
            return False
        for step in steps:
            if step["type"] == "Replace" and len(step["pattern"].get("String", "")) != 1:
                return False
            if step["type"] == "Strip":
                if step["stop"] or order.index("Fuse") not in places:
                    return False
                self.strip_char, self.strip_count = step["content"], step["start"]
        self._has_byte_tokens = "ByteFallback" in [step["type"] for step in steps]
        return True

    def _find_anchor(self) -> bool:
        """Find a token that reads as one plain letter: behind it, a token shows its own share."""
        for letter in string.ascii_letters + string.digits:
            token_id = self._backend.token_to_id(letter)
            if token_id is not None and token_id not in self._special:
                if self.decode([token_id]) == letter:
                    self._anchor, self._anchor_text = token_id, letter
                    return True
        return False


def _steps(config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The decoder's steps in order, nested sequences opened."""
    if config is None:
        return []
    if config["type"] == "Sequence":
        return [step for inner in config["decoders"] for step in _steps(inner)]
    return [config]


@lru_cache(maxsize=1)
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    pairs = [(chr(byte), byte) for byte in plain]
    return dict(pairs + [(chr(256 + n), byte) for n, byte in enumerate(others)])


def _byte_level(token: str) -> bytes:
    """Bytes of a byte-level token; one with other characters (an added one) stands for itself."""
    try:
        return bytes(_byte_alphabet()[char] for char in token)
    except KeyError:
        return token.encode("utf-8")


_TABLES: WeakKeyDictionary[Tokenizer, dict[bool, _Shares]] = WeakKeyDictionary()


def _shares_of(tokenizer: Tokenizer, skip_special_tokens: bool) -> _Shares:
    """The tokenizer's shares, kept as long as it lives: a new stream costs nothing."""
    tables = _TABLES.setdefault(tokenizer, {})
    if skip_special_tokens not in tables:
        tables[skip_special_tokens] = _Shares(tokenizer, skip_special_tokens)
    return tables[skip_special_tokens]


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
