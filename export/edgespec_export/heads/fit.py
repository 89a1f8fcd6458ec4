"""Whether a head is of the size of its target, and which model it is for where it is not."""

from __future__ import annotations

from collections.abc import Mapping

from edgespec.errors import CheckpointError
from edgespec_export.checkpoint import Checkpoint
from edgespec_export.geometry import TextGeometry
from edgespec_export.heads.settings import Settings, tensor_sizes

KNOWN_TARGETS: Mapping[tuple[int, int], str] = {
    (4096, 32000): "a Vicuna-7B, or LLaVA-1.5-7B in its original layout",
    (5120, 32000): "a Vicuna-13B, or LLaVA-1.5-13B in its original layout",
    (4096, 32064): "LLaVA-1.5-7B or LLaVA-1.6-Vicuna-7B",
    (5120, 32064): "LLaVA-1.5-13B or LLaVA-1.6-Vicuna-13B",
    (4096, 128256): "Llama-3-8B",
    (8192, 128256): "Llama-3-70B",
    (2048, 151936): "Qwen2.5-VL-3B, a kind of target that cannot be exported yet",
    (3584, 152064): "Qwen2.5-VL-7B or its relatives, a kind of target that cannot be exported yet",
}
"""(hidden size, vocabulary) of targets that heads have been published for."""
MSD_PADDING = 64
"""Rows that the Hugging Face layout of LLaVA adds to the vocabulary that MSD was trained on."""


def check_fit(
    checkpoint: Checkpoint, variant: str, settings: Settings, target: TextGeometry
) -> None:
    """Hidden size, vocabulary and, for EAGLE-3, the features' width. Raises CheckpointError that
    names every difference and, where it is known, the model that the head is for."""
    shapes = dict(checkpoint.shapes)
    sizes = {**{k: v for k, v in settings.text.items() if v is not None}, **tensor_sizes(shapes)}
    hidden, vocab = sizes.get("hidden_size"), sizes.get("vocab_size")
    problems = []
    features = hidden
    if variant == "eagle3":
        columns = shapes.get("fc.weight", ())[1:2]
        features = settings.target_hidden or (
            columns[0] // 3 if columns and columns[0] % 3 == 0 else hidden
        )
        if columns and features and columns[0] != 3 * features:
            raise CheckpointError(
                f"{checkpoint.source}: fc.weight has {columns[0]} columns where three features of "
                f"{features} were expected"
            )
    if isinstance(features, int) and features != target.hidden:
        problems.append(f"features {features} wide, the target's are {target.hidden}")
    if isinstance(vocab, int) and not _same_vocabulary(variant, vocab, target.vocab):
        problems.append(f"a vocabulary of {vocab}, the target's is {target.vocab}")
    if problems:
        likely = next((m for k, m in KNOWN_TARGETS.items() if k == (features, vocab)), None)
        hint = f"; those sizes are of {likely}" if likely else ""
        raise CheckpointError(
            f"head '{checkpoint.source}' ({variant}) is for another target: it has "
            f"{' and '.join(problems)}{hint}"
        )
    if variant == "eagle3" and hidden != features and "embed_tokens.weight" not in shapes:
        raise CheckpointError(
            f"{checkpoint.source}: its layer is {hidden} wide and its target's {features}, so it "
            "needs an embedding of its own: tensor embed_tokens.weight is missing"
        )


def _same_vocabulary(variant: str, ours: int, theirs: int) -> bool:
    """MSD was trained without the rows that the Hugging Face layout adds; they are the target's."""
    if variant == "msd" and ours < theirs:
        return theirs - ours <= MSD_PADDING
    return ours == theirs
