"""The static card against the built-in checkpoints, and what is read of a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import safe_open

from edgespec.bundle import Bundle, read_bundle
from edgespec.latency import Card, Device, GraphCard, card_of, measure_ceiling, this_device
from edgespec_export.family import checkpoint_path


@pytest.fixture(scope="module")
def bundle(builtin_bundle: Path) -> Bundle:
    return read_bundle(builtin_bundle)


@pytest.fixture(scope="module")
def card(bundle: Bundle) -> Card:
    return card_of(bundle, 10.0, 100.0, measured=True)


def in_layers(name: str) -> int:
    """Parameters of the matrices in a built-in model's decoder layers."""
    with safe_open(checkpoint_path(name) / "model.safetensors", "np") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    layers = (s for key, s in shapes.items() if key.startswith("language_model.model.layers."))
    return sum(shape[0] * shape[1] for shape in layers if len(shape) == 2)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_flops_are_twice_the_weights_that_a_row_meets(
    card: Card, bundle: Bundle, role: str
) -> None:
    graph, spec = card.graph(role), bundle.manifest.graph(role)
    assert graph is not None and spec is not None
    logits = next(output for output in spec.outputs if output.name == "logits")
    head = spec.meta["hidden"] * logits.axes[-1]  # the draft's is trimmed to frequent tokens
    multiplied = in_layers(role) + head
    assert graph.head_flops == 2 * head
    assert graph.flops_per_row == pytest.approx(2 * multiplied, rel=5e-3)
    assert graph.weight_bytes == pytest.approx(4 * multiplied, rel=5e-3)


def test_the_cache_grows_by_keys_and_values_of_every_layer(card: Card) -> None:
    target, draft = card.graph("target"), card.graph("draft")
    assert target is not None and draft is not None
    assert target.kv_bytes_per_token == 2 * 12 * 2 * 64 * 4  # layers, heads, head size, float32
    assert draft.kv_bytes_per_token == 2 * 2 * 3 * 64 * 4


def test_a_chain_passes_over_the_weights_of_its_draft_again_and_again(
    card: Card, bundle: Bundle
) -> None:
    draft, chain = card.graph("draft"), card.graph("draft_chain")
    spec = bundle.manifest.graph("draft_chain")
    assert draft is not None and chain is not None and spec is not None
    assert (chain.weight_bytes, chain.flops_per_row) == (draft.weight_bytes, draft.flops_per_row)
    assert chain.steps == spec.meta["steps"] > 1
    assert card.floor_ms("draft_chain", 1) == pytest.approx(chain.steps * card.floor_ms("draft", 1))


def test_a_graph_without_weights_costs_nothing_to_read(card: Card) -> None:
    compressor = card.graph("compressor")
    assert compressor is not None
    assert (compressor.weight_bytes, compressor.flops_per_row) == (0, 0.0)


def test_a_floor_is_the_longer_of_reading_and_computing() -> None:
    graph = GraphCard("target", "fp32", 4_000_000, 1000, 2e6, head_flops=0.5e6)
    card = Card((graph,), bandwidth_gb_s=4.0, gflops=10.0, measured=True)
    assert card.floor_ms("target", 1) == pytest.approx(1.0)  # 4 MB at 4 GB/s
    assert card.floor_ms("target", 1, context=1000) == pytest.approx(1.25)  # and 1 MB of cache
    assert card.floor_ms("target", 20) == pytest.approx(4.0)  # 40 MFLOP at 10 GFLOP/s
    assert card.floor_ms("target", 20, picked=1) == pytest.approx(3.05)  # 19 rows skip the head
    with pytest.raises(KeyError):
        card.floor_ms("draft", 1)


def test_the_ceiling_is_of_a_plausible_size() -> None:
    bandwidth, rate = measure_ceiling()
    assert 0.5 < bandwidth < 5000
    assert 0.5 < rate < 100_000


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def test_this_machine_is_read_without_inventing_anything() -> None:
    here = this_device()
    assert here.name and here.system
    assert here.cores == len(os.sched_getaffinity(0))


def test_where_no_file_says_anything_nothing_is_claimed(tmp_path: Path) -> None:
    here = this_device(tmp_path)
    assert (here.processor, here.accelerator, here.memory_mb, here.power_mode) == ("", "", 0, "")
    assert here.name  # what the kernel calls the architecture


def test_a_jetson_is_recognised_with_its_power_mode(tmp_path: Path) -> None:
    _write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    _write(tmp_path, "proc/device-tree/compatible", "nvidia,p3768-0000\0nvidia,tegra234\0")
    core = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
    _write(tmp_path, "proc/cpuinfo", core.format(0) + core.format(1))
    _write(tmp_path, "proc/meminfo", "MemTotal:        7802624 kB\nMemFree: 1 kB\n")
    _write(tmp_path, "var/lib/nvpmodel/status", "pmode:0001 fmode:quiet")
    modes = "< POWER_MODEL ID=0 NAME=15W >\nGPU MAX_FREQ 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    _write(tmp_path, "etc/nvpmodel.conf", modes)
    here = this_device(tmp_path)
    assert here == Device(
        name="NVIDIA Jetson Orin Nano Developer Kit",
        processor="Cortex-A78AE",
        cores=here.cores,
        accelerator="tegra234",
        memory_mb=7619,
        system=here.system,
        power_mode="25W",
    )
    (tmp_path / "etc/nvpmodel.conf").unlink()
    assert this_device(tmp_path).power_mode == "nvpmodel 1"


def test_a_desktop_is_recognised_with_its_governor_and_card(tmp_path: Path) -> None:
    _write(tmp_path, "proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU @ 3 GHz\n")
    governor = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    _write(tmp_path, governor, "powersave\n")
    card = "proc/driver/nvidia/gpus/0000:01:00.0/information"
    _write(tmp_path, card, "Model: \t\t NVIDIA L4\nIRQ: 1\n")
    here = this_device(tmp_path)
    assert (here.name, here.power_mode) == ("Some CPU @ 3 GHz", "powersave")
    assert here.accelerator == "NVIDIA L4"


def test_an_unknown_arm_core_is_named_by_its_numbers(tmp_path: Path) -> None:
    _write(tmp_path, "proc/cpuinfo", "CPU implementer : 0x41\nCPU part : 0xfff\n")
    assert this_device(tmp_path).processor == "implementer 0x41 part 0xfff"
