"""What to type on which platform. Where each comes from is in docs/jetson.md."""

from __future__ import annotations

from typing import Literal

from edgespec_runtime.environment.facts import Facts
from edgespec_runtime.environment.jetson import Jetson

Platform = Literal["jetpack6", "jetpack7", "gpu", "cpu"]

CUDA_PYTHON = {"jetpack6": "cuda-python>=12.6,<13", "jetpack7": "cuda-python>=13,<14"}
VENV = "python3 -m venv --system-site-packages .venv && . .venv/bin/activate"
SWAP_FILE = (
    "sudo fallocate -l 16G /swapfile && sudo chmod 600 /swapfile && sudo mkswap /swapfile",
    "sudo swapon /swapfile && echo '/swapfile none swap sw 0 0' | sudo tee -a /etc/fstab",
)
NO_ZRAM = "sudo systemctl disable --now nvzramconfig"
NO_DESKTOP = "sudo systemctl isolate multi-user.target"
GUIDE = "see docs/jetson.md"


def platform_of(facts: Facts) -> Platform:
    """A Jetson by its JetPack, else whether there is an NVIDIA GPU."""
    if facts.jetson:
        return "jetpack6" if facts.jetson.generation == 6 else "jetpack7"
    return "gpu" if facts.gpu else "cpu"


def engine(facts: Facts) -> tuple[str, ...]:
    """What gives this machine its fastest engine."""
    if facts.jetson:
        return (*tensorrt(facts), cuda_python(facts))
    return ("pip install 'edgespec[ort-gpu]'" if facts.gpu else "pip install 'edgespec[ort]'",)


def one_onnxruntime(facts: Facts) -> tuple[str, ...]:
    """Instead of several builds, the one for this machine. A Jetson's GPU runs through TensorRT;
    no build of onnxruntime-gpu on the public index has machine code for it."""
    extra = "ort-gpu" if platform_of(facts) == "gpu" else "ort"
    return (
        f"pip uninstall -y {' '.join(facts.onnxruntime.builds)}",
        f"pip install --force-reinstall 'edgespec[{extra}]'",
    )


def tensorrt(facts: Facts) -> tuple[str, ...]:
    """TensorRT with a Python module that this Python sees."""
    install = () if facts.tensorrt.elsewhere else ("sudo apt-get install python3-libnvinfer",)
    return install if facts.python.sees_system and install else (*install, VENV)


def cuda_python(facts: Facts) -> str:
    """The bindings for the CUDA of this machine."""
    fitting = (
        CUDA_PYTHON.get(platform_of(facts))
        or CUDA_PYTHON["jetpack6" if facts.cuda.runtime.startswith("12") else "jetpack7"]
    )
    return f"pip install '{fitting}'"


def cuda_libraries(facts: Facts) -> tuple[str, ...]:
    """What onnxruntime's CUDA provider is linked with."""
    if facts.jetson:
        return ("sudo apt-get install nvidia-jetpack",)
    return ("pip install 'onnxruntime-gpu[cuda,cudnn]'",)


def power_mode(jetson: Jetson) -> str:
    """The mode with the highest clocks; the board may ask for a restart."""
    return f"sudo nvpmodel -m {jetson.fastest_mode}"
