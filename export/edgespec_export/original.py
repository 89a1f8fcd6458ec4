"""A checkpoint as transformers runs it: what exported graphs are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgespec.tree import TokenTree
from edgespec_export.comparing import Floats, floats, parity_libraries, rows_to
from edgespec_export.geometry import LlavaGeometry

if TYPE_CHECKING:
    from edgespec_export.plan import Model


class Original:
    """One checkpoint in torch, float32."""

    def __init__(self, model: Model) -> None:
        self.torch, self.transformers = parity_libraries()
        loader = getattr(self.transformers, model.architecture)
        self._model = loader.from_pretrained(model.checkpoint.path, dtype=self.torch.float32).eval()
        self._core = getattr(self._model, "model", self._model)
        self._geometry = model.geometry

    @property
    def against(self) -> str:
        return f"torch {self.torch.__version__}, transformers {self.transformers.__version__}"

    def features(self, pixels: Floats) -> Floats:
        """[N, P, F] of [N, 3, h, w], of a LLaVA."""
        assert isinstance(self._geometry, LlavaGeometry)
        with self.torch.no_grad():
            states = self._core.vision_tower(
                self.torch.from_numpy(pixels), output_hidden_states=True
            ).hidden_states
        chosen = [states[i] for i in self._geometry.feature_layers]
        joined = self.torch.cat(chosen, dim=-1)[:, int(self._geometry.drop_class_token) :]
        return floats(joined)

    def project(self, features: Floats) -> Floats:
        with self.torch.no_grad():
            return floats(self._core.multi_modal_projector(self.torch.from_numpy(features)))

    def forward(
        self, ids: list[int], pixels: Floats | None, features: Sequence[int] = ()
    ) -> tuple[Floats, Floats]:
        """([len(ids), V] logits, [len(ids), F] hidden states) of a plain forward."""
        image = {} if pixels is None else {"pixel_values": self.torch.from_numpy(pixels)}
        with self.torch.no_grad():
            output = self._model(
                input_ids=self.torch.tensor([ids]),
                **image,
                use_cache=False,
                output_hidden_states=bool(features),
            )
        states = [floats(output.hidden_states[k][0]) for k in features]
        hidden = np.concatenate(states, -1) if states else np.empty((len(ids), 0), np.float32)
        return floats(output.logits[0]), hidden

    def nodes(
        self, prompt: list[int], tree: TokenTree, pixels: Floats | None, features: Sequence[int]
    ) -> tuple[Floats, Floats]:
        """``forward`` of the prompt's last row and every node, each over its own path."""
        rows, before = len(tree) + 1, len(prompt) - 1
        text = self._geometry.text
        logits = np.empty((rows, text.vocab), dtype=np.float32)
        hidden = np.empty((rows, text.hidden * len(features)), dtype=np.float32)
        for leaf in set(range(rows)) - set(tree.parents):
            path = rows_to(tree, leaf)
            plain, states = self.forward([*prompt, *tree.path(leaf)], pixels, features)
            logits[path] = plain[before : before + len(path)]
            hidden[path] = states[before : before + len(path)]
        return logits, hidden
