"""Text to ids and back: a ``tokenizer.json`` without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgespec.errors import BundleError, PromptError

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A ``tokenizer.json`` with the names of its special tokens.

    ``special_tokens`` maps ``bos_token``, ``eos_token``, ... to their text: a chat template may ask
    for them, and a prompt that already begins with ``bos_token`` is not given a second one. Raises
    BundleError for a file that is missing or not understood.
    """

    def __init__(
        self, path: str | Path, *, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        import tokenizers

        if not Path(path).is_file():
            raise BundleError(f"no tokenizer at '{path}'; export the bundle again")
        try:
            self.backend: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for every kind of bad file
            raise BundleError(
                f"tokenizers {tokenizers.__version__} cannot read '{path}' ({error}); export the "
                f"bundle again or upgrade tokenizers"
            ) from error
        # What a training run left in the file must not cut or fill prompts.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.special_tokens: dict[str, str] = dict(special_tokens or {})

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read ``tokenizer.json`` and the special tokens' names from the JSON files beside it."""
        names: dict[str, str] = {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            path = Path(folder) / file
            if path.is_file():
                names.update(_token_names(path))
        return cls(Path(folder) / "tokenizer.json", special_tokens=names)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. Raises PromptError for text that is no valid Unicode."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text holds a lone surrogate at character {error.start}, which no tokenizer "
                f"accepts; remove it"
            ) from error
        return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; ids outside the vocabulary are passed over."""
        return str(
            self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)
        )

    def token_to_id(self, token: str) -> int | None:
        """Id of one token's exact text, or None."""
        found = self.backend.token_to_id(token)
        return None if found is None else int(found)


def _token_names(path: Path) -> dict[str, str]:
    """``{"bos_token": "<s>", ...}`` from a tokenizer_config.json or special_tokens_map.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        items = config.items()
    except (OSError, ValueError, AttributeError) as error:
        raise BundleError(
            f"'{path}' is not a readable JSON object ({error}); export again"
        ) from error
    names = {}
    for key, value in items:
        text = value.get("content") if isinstance(value, Mapping) else value
        if key.endswith("_token") and isinstance(text, str):
            names[key] = text
    return names
