"""The one tree of exceptions; every message says what was asked, what was found, what to do.

EdgespecError               exit code 1: edgespec or the machine failed
├── EngineError             an inference engine refused, fell back or broke
├── RemoteError             no server answers, or all of them refuse
└── InputError              exit code 2: the user's input has to change
    ├── ConfigError         unknown key, wrong type, impossible combination of settings
    ├── CheckpointError     a checkpoint that is incomplete, altered or not understood
    ├── BundleError         a bundle that is missing, altered, of another version or model
    ├── ImageError          a file that is no usable picture
    ├── PromptError         an empty prompt, or one longer than the context
    └── MissingDependencyError   an optional package is not installed
"""

from __future__ import annotations


class EdgespecError(Exception):
    """Base of everything edgespec raises on purpose."""

    exit_code = 1


class EngineError(EdgespecError):
    """An inference engine refused a graph, fell back to another provider, or failed in a run."""


class RemoteError(EdgespecError):
    """No verifying server answers in the time that was given, or all of them refuse."""


class InputError(EdgespecError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is unknown, of the wrong type or out of range."""


class CheckpointError(InputError):
    """A checkpoint is incomplete, altered or of a kind edgespec does not understand."""


class BundleError(InputError):
    """A bundle is missing, altered, of another format version, or of another model."""


class ImageError(InputError):
    """A file or array is not a picture that can be used."""


class PromptError(InputError):
    """A prompt is empty, malformed or longer than the model's context."""


class MissingDependencyError(InputError):
    """An optional package is needed for what was asked and is not installed."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f"run: pip install 'edgespec[{extra}]'"
        )
