"""Memory planning: what follows from sizes is exact, estimates stay near what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

import edgespec_runtime
from edgespec.bundle import Bundle, read_bundle
from edgespec.cli import main
from edgespec.errors import BundleError, ConfigError
from edgespec.flavour import Flavour
from edgespec.latency import device_files
from edgespec.latency.geometry import TREE_ROWS, Decoder, Geometry, Tower, load_geometry
from edgespec.latency.lookup import sheet_for
from edgespec.planning.by_sizes import of_geometry
from edgespec.planning.demand import Item, Setting, demand, total
from edgespec.planning.exported import of_bundle
from edgespec.planning.inventory import Inventory
from edgespec.planning.plan import plan
from edgespec.planning.room import Device, device_of, largest_context, needed_mb
from edgespec.planning.stored import bytes_of, stored_tensors
from edgespec.planning.weights import ON_CPU, ON_GPU, Weights, float_bytes, matrix_bytes
from edgespec.precisions import Precisions
from edgespec_export.exporter import export_bundle
from edgespec_export.family import export_request
from edgespec_runtime import Model
from edgespec_runtime.kv import BLOCK as CACHE_BLOCK
from edgespec_runtime.kv import KVCache
from edgespec_runtime.prefill import CHUNK as PREFILL_CHUNK

ROOT = Path(__file__).parent.parent
MB = 2**20
CONSTANTS = 512
"""Bytes: more than a graph's small constants take that stay in float32."""
NPY_HEADER = 128
FAMILY = Geometry(
    kind="geometry", name="family", title="the built-in family by its sizes", precision="fp32",
    visual_tokens=64, draft_visual_tokens=16, text_tokens=16, chain_steps=6,
    target=Decoder(12, 256, 640, 4, 2, 64, 1536, 1024), vision=Tower(6, 160, 640),
    draft=Decoder(2, 192, 512, 3, 3, 64, 1536, 1024), draft_vision=Tower(6, 160, 640), sources=(),
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(builtin_bundle: Path) -> Bundle:
    return read_bundle(builtin_bundle)


@pytest.fixture(scope="module")
def inventory(bundle: Bundle) -> Inventory:
    return of_bundle(bundle)


@pytest.fixture(scope="module")
def model(builtin_bundle: Path) -> Model:
    return edgespec_runtime.load(builtin_bundle, threads=1)


def llava() -> Inventory:
    return of_geometry(load_geometry("llava-1.5-7b"))


def device(usable_mb: float = 1e6, *, gpu: bool = True) -> Device:
    return Device("bench", usable_mb, 100.0, ("fp32", "fp16", "int8", "int4"), gpu, gpu)


def item(found: tuple[Item, ...], what: str, role: str) -> Item:
    (only,) = (one for one in found if (one.what, one.role) == (what, role))
    return only


def test_tensors_are_those_that_onnx_reads(bundle: Bundle) -> None:
    for spec in bundle.manifest.graphs:
        proto = onnx.load(bundle.file(spec.file), load_external_data=False)
        wanted = {
            t.name: (t.data_type, tuple(t.dims), external_data_helper.uses_external_data(t))
            for t in proto.graph.initializer
        }
        tensors = stored_tensors(bundle.file(spec.file))
        assert {t.name: (t.kind, t.dims, t.place[1] >= 0) for t in tensors} == wanted


@pytest.mark.parametrize(
    ("kind", "nbytes"),
    [("INT4", 17), ("INT8", 33), ("BFLOAT16", 66), ("FLOAT16", 66), ("FLOAT", 132), ("INT64", 264)],
)
def test_bytes_of_every_type(tmp_path: Path, kind: str, nbytes: int) -> None:
    raw = bytes(nbytes)
    tensor = helper.make_tensor("w", getattr(TensorProto, kind), [3, 11], raw, raw=True)
    graph = helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "g.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    (found,) = stored_tensors(tmp_path / "g.onnx")
    assert (found.name, found.dims, found.nbytes) == ("w", (3, 11), nbytes)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    whole = bundle.file("target.onnx").read_bytes()
    for content in (b"\xff\xff\xff", whole[: len(whole) // 2]):
        (tmp_path / "g.onnx").write_bytes(content)
        with pytest.raises(BundleError, match=r"g\.onnx is no ONNX file"):
            stored_tensors(tmp_path / "g.onnx")
    strange = numpy_helper.from_array(numpy_helper.to_array(helper.make_tensor("w", 1, [1], [0])))
    strange.data_type = 8  # text
    graph = helper.make_graph([], "g", [], [], [strange])
    (tmp_path / "g.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match=r"types \[8\]"):
        stored_tensors(tmp_path / "g.onnx")


def test_weights_of_a_bundle_are_its_files(bundle: Bundle, inventory: Inventory) -> None:
    """Up to what lies inside the graph files, and the gaps that start tensors on pages."""
    assert {g.role for g in inventory.graphs} == {g.role for g in bundle.manifest.graphs}
    for graph in inventory.graphs:
        check_files(bundle, graph.role, graph.stored_bytes("fp32"))
        tensors = stored_tensors(bundle.file(f"{graph.role}.onnx"))
        assert graph.own.nbytes("fp32") == graph.stored_bytes("fp32")
        assert graph.weights.nbytes("fp32") == graph.loaded_bytes("fp32") == bytes_of(tensors)


def check_files(bundle: Bundle, role: str, nbytes: int) -> None:
    """The graph's file of weights is of that size, but for what lies inside the graph, gaps, and
    small constants."""
    entry = bundle.manifest.files.get(f"{role}.bin")
    tensors = stored_tensors(bundle.file(f"{role}.onnx"))
    inside = bytes_of(t for t in tensors if t.place[1] < 0)
    gaps = 4096 * sum(t.place[0] == f"{role}.bin" for t in tensors)
    assert -inside <= (entry.size if entry else 0) - nbytes <= gaps + CONSTANTS


def test_shared_weights_are_stored_once_and_loaded_twice(inventory: Inventory) -> None:
    draft, chain = inventory.graph("draft"), inventory.graph("draft_chain")
    assert draft is not None and chain is not None
    table = 1536 * 192 * 4
    assert table <= chain.stored_bytes("fp32") < table + 8192
    assert chain.loaded_bytes("fp32") > draft.loaded_bytes("fp32") + table


def test_caches_are_what_the_runtime_allocates(model: Model, inventory: Inventory) -> None:
    assert model.draft is not None
    for context, nodes in ((100, 12), (512, 64), (1024, 7)):
        found = demand(inventory, Setting("fp32", context, nodes))
        target = model.steps["target"].open(context + nodes + 1).cache
        assert isinstance(target, KVCache)
        assert item(found, "cache", "target").nbytes == target.rows.nbytes
        seen = context - 64 + 16  # its visual tokens are pooled
        draft = model.draft.sessions(seen + nodes + 1)[0].cache
        assert isinstance(draft, KVCache)
        assert item(found, "cache", "draft").nbytes == draft.rows.nbytes
    assert item(found, "cache", "target").exact


def test_sizes_that_the_runtime_shares(model: Model) -> None:
    """The plan is made where there is no runtime, so it repeats two of its constants."""
    from edgespec.planning import demand as planned

    assert (planned.BLOCK, planned.CHUNK) == (CACHE_BLOCK, PREFILL_CHUNK)


@pytest.mark.parametrize(("words", "tokens"), [(1, 200), (500, 100)])
def test_running_memory_is_near_the_estimate(
    builtin_bundle: Path, inventory: Inventory, words: int, tokens: int
) -> None:
    """Peak resident memory of a fresh process, above the engine's own, within a fifth."""
    code = (
        "import re, edgespec_runtime\n"
        "from pathlib import Path\n"
        "from edgespec_runtime.engines import open_engine\n"
        "from edgespec_export.family import sample_image\n"
        "def peak():\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', status).group(1)) * 1024\n"
        "open_engine(threads=1)\n"
        "base = peak()\n"
        f"model = edgespec_runtime.load({str(builtin_bundle)!r}, threads=1)\n"
        f"prompt = 'describe ' * {words}\n"
        f"said = model.generate(str(sample_image()), prompt, max_new_tokens={tokens},"
        " policy='eagle2:nodes=12,depth=12,top_k=1')\n"
        "print(peak() - base, said.prompt_tokens + len(said.token_ids))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    measured, context = map(int, result.stdout.split())
    estimate = total(demand(inventory, Setting("fp32", context, 12)))
    assert 0.8 * measured < estimate < 1.2 * measured


def test_a_model_by_its_sizes_is_near_its_bundle(inventory: Inventory) -> None:
    """Norms, biases and patch embeddings are left out, which is most in a model this small."""
    by_sizes = of_geometry(FAMILY)
    for precision in ("fp32", "fp16", "int8", "int4"):
        for role in ("target", "draft"):
            known, computed = inventory.graph(role), by_sizes.graph(role)
            assert known is not None and computed is not None
            # A bundle's rotary tables have more spare rows, its draft's head is trimmed.
            extra = (1024 - TREE_ROWS) * 64 - (1536 - 515) * 192 * (role == "draft")
            wanted = known.weights.nbytes(precision) - extra * float_bytes(precision)
            assert computed.weights.nbytes(precision) == pytest.approx(wanted, rel=0.01)
    setting = Setting("fp16", 700)
    caches = [item(demand(i, setting), "cache", "target") for i in (inventory, by_sizes)]
    assert caches[0] == caches[1]


@pytest.fixture(scope="module")
def flavours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inventory]:
    """The built-in family in all precisions together, and in int4 alone."""
    folder = tmp_path_factory.mktemp("flavours")
    asked = {
        "all": ["native:fp16", "portable:int8", "portable:int4"],
        "int4": ["portable:int4"],
    }
    for name, words in asked.items():
        request = export_request("draft", folder / name)
        flavours = tuple(Flavour.parse(word) for word in words)
        export_bundle(replace(request, flavours=flavours))
    return {name: of_bundle(read_bundle(folder / name)) for name in asked}


def test_computed_precisions_are_what_an_export_writes(
    inventory: Inventory, flavours: dict[str, Inventory]
) -> None:
    """From float32 files alone, and from int4 files alone, the others follow."""
    real = flavours["all"]
    assert real.exported == ("fp16", "int8", "int4")
    for known in (inventory, flavours["int4"]):
        for graph in known.graphs:
            wanted = real.graph(graph.role)
            assert wanted is not None and graph.shape == wanted.shape
            for precision in real.exported:
                computed = replace(graph, loaded={}).loaded_bytes(precision)
                off = computed - wanted.loaded_bytes(precision)
                assert abs(off) < CONSTANTS, (graph.role, precision)
    caches = [item(demand(real, Setting(p, 512)), "cache", "target").nbytes for p in real.exported]
    assert 2 * caches[0] == item(demand(inventory, Setting("fp32", 512)), "cache", "target").nbytes
    assert len(set(caches)) == 1


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The built-in family for ONNX Runtime's kernels on a CPU, each precision alone."""
    folder = tmp_path_factory.mktemp("on-cpu")
    for precision, embedding in (("int8", "int8"), ("int4", "fp16")):
        request = replace(
            export_request("draft", folder / precision),
            flavours=(Flavour(ON_CPU, precision),),
            precisions=Precisions(target=precision, embedding=embedding),
        )
        export_bundle(request)
    return {path.name: read_bundle(path) for path in folder.iterdir()}


def test_a_cpus_int8_and_int4_are_what_an_export_writes(
    inventory: Inventory, on_cpu: dict[str, Bundle]
) -> None:
    """Float32 beside them, heads in int8, blocks of 64; from any precision's files alone."""
    counted = {precision: of_bundle(bundle) for precision, bundle in on_cpu.items()}
    for known in (inventory, *counted.values()):
        for graph in known.graphs:
            computed = replace(graph, loaded={}, stored={})
            for precision, real in counted.items():
                wanted = real.graph(graph.role)
                assert wanted is not None and graph.shape == wanted.shape
                check_files(on_cpu[precision], graph.role, computed.stored_bytes(precision, ON_CPU))
                loaded = computed.loaded_bytes(precision, ON_CPU)
                assert abs(loaded - wanted.loaded_bytes(precision)) < CONSTANTS, graph.role
            floats = inventory.graph(graph.role)
            assert floats is not None
            assert abs(computed.loaded_bytes("fp32") - floats.loaded_bytes("fp32")) < CONSTANTS
    for precision, real in counted.items():
        asked = Setting(precision, 512, lowering=ON_CPU)
        for role in ("target", "draft"):
            caches = [item(demand(i, asked), "cache", role) for i in (inventory, real)]
            assert caches[0] == caches[1]


def test_token_tables_weigh_what_their_files_do(bundle: Bundle, on_cpu: dict[str, Bundle]) -> None:
    """In float32, in float16, and in int8 with scales."""
    for known in (bundle, *on_cpu.values()):
        for role, (tokens, row) in of_bundle(known).tables.items():
            files = known.path.glob(f"{role}.embed*.npy")
            assert 0 < sum(file.stat().st_size for file in files) - tokens * row <= 2 * NPY_HEADER


def test_a_plan_counts_what_the_devices_engines_take(inventory: Inventory) -> None:
    """The same precision weighs differently on a CPU and on a GPU."""
    rows = {
        lowering: plan(inventory, device(gpu=gpu), precisions=["int4"]).rows[0]
        for lowering, gpu in ((ON_CPU, False), (ON_GPU, True))
    }
    target = inventory.graph("target")
    assert target is not None
    for lowering, row in rows.items():
        assert item(row.items, "weights", "target").nbytes == target.loaded_bytes("int4", lowering)
    assert rows[ON_CPU].files_mb != rows[ON_GPU].files_mb


def test_flavours_are_told_apart_from_what_is_computed(flavours: dict[str, Inventory]) -> None:
    rows = plan(flavours["all"], device()).rows
    assert [(row.precision, row.exported) for row in rows] == [
        ("fp32", False), ("fp16", True), ("int8", True), ("int4", True),
    ]  # fmt: skip
    on_cpu = plan(flavours["int4"], device(gpu=False)).advice
    assert on_cpu.endswith("export with --precision fp32")


def test_llava_7b_has_seven_billion_parameters() -> None:
    graphs = {graph.role: graph for graph in llava().graphs}
    roles = ("vision", "projector", "target")
    numbers = sum(
        graphs[role].weights.nbytes("fp16") - graphs[role].weights.fixed for role in roles
    )
    table = 32064 * 4096
    assert numbers / 2 + table == pytest.approx(7.06e9, rel=0.005)
    # 32 layers x key and value x 32 heads x 128 x 2 bytes; 2048 tokens and 65 rows in whole blocks
    assert item(demand(llava(), Setting("fp16", 2048)), "cache", "target").nbytes == 524288 * 2176


def test_quantised_matrices() -> None:
    assert matrix_bytes(256, 10, "fp32") == 10240
    assert matrix_bytes(256, 10, "bf16") == matrix_bytes(256, 10, "fp16") == 5120
    assert matrix_bytes(256, 10, "int8") == 2560 + 20  # a scale per column
    assert matrix_bytes(256, 10, "int4") == 1280 + 2 * 10 * 2  # two blocks of 128 a column
    assert matrix_bytes(96, 10, "int4") == 480 + 3 * 10 * 2  # three of 32
    assert matrix_bytes(100, 10, "int4") == matrix_bytes(100, 10, "fp16")
    assert matrix_bytes(256, 10, "int8", ON_CPU) == 2560 + 40
    assert matrix_bytes(256, 10, "int4", ON_CPU) == 1280 + 4 * 10 * 4  # blocks of 64
    assert matrix_bytes(100, 10, "int4", ON_CPU) == matrix_bytes(100, 10, "int8", ON_CPU)
    weights = Weights(((256, 10),), ((8, 4),), floats=7, fixed=3)
    assert weights.nbytes("int8") == 2580 + 64 + 14 + 3
    assert weights.nbytes("int4", ON_CPU) == 1440 + 32 + 16 + 28 + 3
    assert (weights.largest_bytes("int4"), weights.largest_bytes("fp16")) == (5120, 0)
    assert weights.largest_bytes("int4", ON_CPU) == 0  # its kernels read it as it is


def test_more_of_anything_takes_more(inventory: Inventory) -> None:
    least = total(demand(inventory, Setting("fp16", 256, 8, 1)))
    for more in (Setting("fp32", 256, 8), Setting("fp16", 512, 8), Setting("fp16", 256, 128)):
        assert total(demand(inventory, more)) > least
    several = demand(inventory, Setting("fp16", 256, 8, 3))
    one = demand(inventory, Setting("fp16", 256, 8))
    for role in ("target", "draft"):
        assert item(several, "cache", role).nbytes == 3 * item(one, "cache", role).nbytes
    rest = sum(i.nbytes for i in several if i.what != "cache")
    assert rest == sum(i.nbytes for i in one if i.what != "cache")


@pytest.mark.parametrize("usable", [6300, 7500, 8400, 9100, 20000])
def test_largest_context_is_the_largest(usable: int) -> None:
    model, here = llava(), device(usable)
    for precision in ("int8", "int4"):
        setting = Setting(precision, 1)
        most = largest_context(model, here, setting)
        if most:
            assert needed_mb(model, here, replace(setting, context=most)) <= usable
        if most < model.max_positions:
            beyond = min(most + 64, model.max_positions)
            assert needed_mb(model, here, replace(setting, context=beyond)) > usable


def test_verdicts() -> None:
    here = device(1000)
    assert [here.verdict(mb) for mb in (900, 901, 1000, 1001)] == ["fits", "tight", "tight", "no"]


def test_recommendation_takes_the_most_exact_that_fits() -> None:
    def recommended(usable: float, gpu: bool = True) -> str:
        return plan(llava(), device(usable, gpu=gpu), context=1024).recommended

    assert recommended(1e6) == "fp16"  # never float32 on a GPU where there is anything else
    assert recommended(1e6, gpu=False) == "fp32"
    assert recommended(14000) == "int8"
    assert recommended(8000) == "int4"
    assert recommended(6200) == "int4"  # tightly
    assert recommended(4000) == ""
    assert plan(llava(), device(), precisions=["fp32"]).recommended == "fp32"


def test_advice_where_nothing_fits() -> None:
    said = plan(llava(), device(4000), context=1024).advice
    assert "nothing fits at a context of 1024" in said
    assert "--part device" in said and "the draft's side alone does in fp16" in said
    assert "up to" not in said
    shorter = plan(llava(), device(6400), context=4096).advice
    assert "int4 does up to" in shorter
    nothing = plan(llava(), device(300)).advice
    assert "smaller model" in nothing


def test_a_target_without_its_draft_may_fit() -> None:
    model = llava()
    here = device(5400)
    said = plan(model, here, context=2048).advice
    alone = largest_context(model.without_draft(), here, Setting("int4", 1))
    assert alone > model.visual_tokens
    assert f"int4 without the draft does up to {alone} tokens" in said


def test_advice_names_the_export_that_is_missing(inventory: Inventory) -> None:
    said = plan(inventory, device()).advice
    assert "take fp16" in said and "export with --lowering native:fp16 (portable:fp16 for" in said
    assert "export with" not in plan(inventory, device(gpu=False)).advice


def test_builds_are_told_of_shared_memory_alone() -> None:
    nano, card = (device_of(sheet_for(name)) for name in ("orin-nano", "nvidia-l4"))
    rows = plan(llava(), nano, context=1024).rows
    target = llava().graph("target")
    assert target is not None
    for row in rows:
        assert row.build_mb is not None
        low, high = row.build_mb
        assert high - low == pytest.approx(target.loaded_bytes(row.precision) / MB)
    assert {row.build for row in rows} == {"no"}
    assert plan(llava(), card).rows[0].build_mb is None
    assert not device_of(sheet_for("generic-cpu")).gpu


def test_every_device_file_can_be_planned_for() -> None:
    for name in device_files():
        found = plan(llava(), device_of(sheet_for(name)))
        assert found.rows and found.advice


def test_device_part(inventory: Inventory) -> None:
    """A draft with a tower of its own needs none of the target's; one that shares it needs that."""
    shared = {graph.role for graph in inventory.device_part().graphs}
    assert shared == {"vision", "draft_projector", "compressor", "draft", "draft_chain"}
    own = {graph.role for graph in llava().device_part().graphs}
    assert own == {"draft_vision", "draft_projector", "draft", "draft_chain"}
    feature = {graph.role for graph in replace(inventory, variant="eagle").device_part().graphs}
    assert {"vision", "projector"} <= feature and "target" not in feature
    assert list(inventory.device_part().tables) == ["draft"]


def test_command(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--bundle", str(bundle.path), "--device", "orin-nano", "--context", "600"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "recommendation: take fp16 with a context of 600" in shown
    assert "KV cache: target" in shown and "building TensorRT engines" in shown
    assert main([*words, "--json", "--precision", "fp32", "--precision", "int4"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["precisions"]) == ["fp32", "int4"]
    assert list(said["precisions"]["int4"]["contexts"]) == ["512", "600", "1024"]
    row = said["precisions"]["fp32"]
    assert row["exported"] and not said["precisions"]["int4"]["exported"]
    held = sum(one["bytes"] for one in row["items"]) / MB + said["base_mb"]
    assert row["needed_mb"] == pytest.approx(held, abs=0.1)
    assert row["verdict"] == "fits" and row["largest_context"] == 1024
    assert said["recommended"] == "int4"  # of those that were asked for, on a GPU


def test_usable_memory_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "llava-1.5-7b", "--device", "orin-nano:15W", "--json"]
    assert main([*words, "--usable-mb", "7600"]) == 0
    assert json.loads(capsys.readouterr().out)["recommended"] == "int4"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "orin-nono", "--model", "llava-1.5-7b"], "jetson-orin-nano"),
        (["--device", "orin-nano:9W", "--model", "llava-1.5-7b"], "no power mode '9W'"),
        (["--device", "orin-nano", "--model", "llava-1.5-7c"], "Did you mean llava-1.5-7b"),
        (["--device", "orin-nano"], "Give --bundle, or --model"),
        (["--device", "orin-nano", "--model", "a", "--bundle", "b"], "not both"),
        (["--device", "orin-nano", "--model", "llava-1.5-7b", "--context", "4097"], "1 to 4096"),
        (["--device", "orin-nano", "--model", "llava-1.5-7b", "--precision", "fp8"], "int8, int4"),
        (["--device", "orin-nano", "--bundle", "nowhere"], "does not exist"),
        (["--device", str(ROOT / "configs/models/llava-1.5-7b.yaml"), "--model", "x"], "no device"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and not shown.out


def test_contexts_are_checked_in_the_library() -> None:
    with pytest.raises(ConfigError, match="from 1 to 4096"):
        plan(llava(), device(), context=0)


def test_plan_needs_neither_exporter_nor_engine(bundle: Bundle) -> None:
    blocked = (
        "torch",
        "transformers",
        "onnx",
        "onnxruntime",
        "edgespec_export",
        "edgespec_runtime",
    )
    code = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in blocked)
    words = ["plan", "--bundle", str(bundle.path), "--device", "jetson-thor", "--json"]
    code += f"from edgespec.cli import main\nsys.exit(main({words!r}))\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and '"recommended": "fp16"' in result.stdout, result.stderr
