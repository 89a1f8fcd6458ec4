"""What each token of a tokenizer adds to a text, looked up once."""

from __future__ import annotations

import json
import re
import string
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from edgespec_runtime.tokenizer import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Share:
    """What one token adds to the text: bytes, or characters (others when it is the first)."""

    __slots__ = ("first", "raw", "text")

    def __init__(self, raw: bytes = b"", text: str = "", first: str = "") -> None:
        self.raw, self.text, self.first = raw, text, first


class Shares:
    """Each token's share of the text, looked up when it is first seen and then kept."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._backend = tokenizer.backend
        self._skip = skip_special_tokens
        added = self._backend.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special}
        self._known: dict[int, Share | None] = {}
        self.strip_char, self.strip_count = "", 0
        self._has_byte_tokens = False
        self._anchor = -1
        self._anchor_text = ""
        self.kind = self._classify()

    def get(self, token_id: int) -> Share | None:
        """The share of one token, or None when it adds nothing and counts for nothing."""
        if token_id not in self._known:
            self._known[token_id] = self._find(token_id)
        return self._known[token_id]

    def decode(self, ids: list[int]) -> str:
        return str(self._backend.decode(ids, skip_special_tokens=self._skip))

    def _find(self, token_id: int) -> Share | None:
        token = self._backend.id_to_token(token_id)
        if token is None or (self._skip and token_id in self._special):
            return None
        if self.kind == "bytes":
            return Share(raw=_byte_level(token))
        if self.kind == "whole":
            return Share()
        match = _BYTE_TOKEN.fullmatch(token) if self._has_byte_tokens else None
        if match:
            return Share(raw=bytes.fromhex(match[1]))
        text = self.decode([self._anchor, token_id])[len(self._anchor_text) :]
        # What is stripped from the text's start is counted in the stream, not here.
        first = text if self.strip_count else self.decode([token_id])
        return Share(text=text, first=first)

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


_TABLES: WeakKeyDictionary[Tokenizer, dict[bool, Shares]] = WeakKeyDictionary()


def shares_of(tokenizer: Tokenizer, skip_special_tokens: bool) -> Shares:
    """The tokenizer's shares, kept as long as it lives: a new stream costs nothing."""
    tables = _TABLES.setdefault(tokenizer, {})
    if skip_special_tokens not in tables:
        tables[skip_special_tokens] = Shares(tokenizer, skip_special_tokens)
    return tables[skip_special_tokens]
