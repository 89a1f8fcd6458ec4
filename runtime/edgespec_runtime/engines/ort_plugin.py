"""Execution providers that come as a package of their own, which onnxruntime loads at run time."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from edgespec.errors import EngineError
from edgespec_runtime.engines.ort_step import short

TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
PACKAGES = {TENSORRT_RTX: ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx")}
"""Module and package, by provider."""


def plugin_devices(ort: Any, provider: str) -> list[Any]:
    """The devices that the plug-in of ``provider`` runs on, once it is registered.

    Raises EngineError where its package is missing, where it does not load, and where it finds no
    device.
    """
    module, package = PACKAGES[provider]
    try:
        plugin = import_module(module)
    except ImportError:
        raise EngineError(
            f"{provider} was asked for, and neither this onnxruntime {ort.__version__} nor a "
            f"package has it; run: pip install {package}"
        ) from None
    found = _devices(ort, provider)
    if not found:
        try:
            ort.register_execution_provider_library(provider, plugin.get_library_path())
        except Exception as error:  # onnxruntime's own types share no base class but Exception
            raise EngineError(f"{package} cannot be loaded: {short(error)}") from error
        found = _devices(ort, provider)
    if not found:
        raise EngineError(f"{provider} was asked for and finds no GPU that it runs on")
    return found


def _devices(ort: Any, provider: str) -> list[Any]:
    return [device for device in ort.get_ep_devices() if device.ep_name == provider]
