"""Telemetry: every generation's formats, platforms that tell little or nothing, and junk."""

from __future__ import annotations

import math
import os
import shutil
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from edgespec.errors import InputError
from edgespec_runtime.profiling.telemetry.powermode import mode_names, parse_nvpmodel, power_mode
from edgespec_runtime.profiling.telemetry.reading import Reading, total_rails, total_watts
from edgespec_runtime.profiling.telemetry.sampler import Sampler
from edgespec_runtime.profiling.telemetry.summary import summarise
from edgespec_runtime.profiling.telemetry.sysfs import SysfsReader
from edgespec_runtime.profiling.telemetry.tegrastats import parse_tegrastats

NANO = (
    "RAM 1816/3961MB (lfb 5x2MB) SWAP 115/1980MB (cached 31MB) IRAM 0/252kB(lfb 252kB) "
    "CPU [15%@1479,22%@1479,off,100%@1479] EMC_FREQ 17%@1600 GR3D_FREQ 99%@921 APE 25 PLL@19C "
    "CPU@27.5C PMIC@100C GPU@31C AO@34C thermal@29.25C POM_5V_IN 5215/4310 POM_5V_GPU 1402/980 "
    "POM_5V_CPU 1054/911"
)
TX2 = (
    "RAM 1404/7860MB (lfb 236x4MB) SWAP 0/3930MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@346,"
    "0%@345] EMC_FREQ 4%@1866 GR3D_FREQ 37%@1122 APE 150 MTS fg 0% bg 0% PLL@35.5C MCPU@35.5C "
    "PMIC@100C Tboard@30C GPU@32C BCPU@35.5C thermal@34.1C Tdiode@31.5C VDD_SYS_GPU 2370/1153 "
    "VDD_SYS_SOC 762/306 VDD_4V0_WIFI 0/0 VDD_IN 6649/4649 VDD_SYS_CPU 306/306 VDD_SYS_DDR 1173/173"
)
AGX_XAVIER = (
    "RAM 4083/31919MB (lfb 6179x4MB) SWAP 0/15959MB (cached 0MB) CPU [9%@2265,0%@1190,0%@1190,"
    "1%@1190,off,off,off,off] EMC_FREQ 6%@2133 GR3D_FREQ 95%@1377 APE 150 MTS fg 0% bg 0% AO@42C "
    "GPU@45.5C Tdiode@44.75C PMIC@50C AUX@41.5C CPU@43C thermal@43.1C Tboard@41C GPU 9316/5016 "
    "CPU 1310/432 SOC 2931/953 CV 0/0 VDDRQ 1466/488 SYS5V 3522/1559"
)
ORIN_NANO = (
    "10-06-2026 12:00:01 RAM 4493/7620MB (lfb 1x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@1510,"
    "3%@729,0%@729,0%@729,off,off] EMC_FREQ 9%@2133 GR3D_FREQ 87%@[611] NVDEC off NVJPG off "
    "NVJPG1 off VIC off OFA off APE 200 cpu@47.5C soc2@46.1C soc0@46.5C gpu@48.2C tj@48.2C "
    "VDD_IN 5144mW/5144mW VDD_CPU_GPU_CV 1495mW/1400mW VDD_SOC 1286mW/1200mW"
)
AGX_ORIN = (
    "04-24-2026 00:01:24 RAM 9282/62795MB (lfb 152x4MB) SWAP 0/31398MB (cached 0MB) CPU [0%@729,"
    "55%@2201,off,off] EMC_FREQ 0%@3199 GR3D_FREQ 0%@[305,1300] VIC_FREQ 729 APE 174 CV0@-256C "
    "CPU@42.593C Tboard@32C SOC2@39.343C Tdiode@33.25C SOC0@39.375C CV1@-256C GPU@-256C tj@42.593C "
    "SOC1@40.468C CV2@-256C VDD_GPU_SOC 2399mW/2399mW VDD_CPU_CV -398mW/-398mW "
    "VIN_SYS_5V0 4032mW/4032mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
THOR_7_0 = (
    "05-17-2026 10:00:32 RAM 4208/125773MB (lfb 31x4MB) SWAP 0/2048MB (cached 0MB) CPU [1%@972,"
    "0%@972,off,3%@1890] EMC_FREQ 0%@665 GR3D_FREQ @[0,0,0] NVENC0_FREQ @0 VIC off OFA_FREQ @0 "
    "PVA0_FREQ off APE 300 cpu@34.468C tj@34.5C soc012@33.781C soc345@34.5C VDD_GPU 0mW/0mW "
    "VDD_CPU_SOC_MSS 4165mW/4165mW VIN_SYS_5V0 4126mW/4126mW"
)
THOR_7_2 = (
    "08-08-2026 20:58:23 RAM 8353/125749MB (lfb 120x4MB) CPU [90%,5%,off]@2601 EMC_FREQ 34%@4266 "
    "GR3D_FREQ 87%@[1574,1574,1574] FUTURE_TOKEN value cpu@58.25C/61.75C tj@66.625C/66.625C "
    "gpu@56.937C/66.625C VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW "
    "VIN_SYS_5V0 15486mW/7424mW/15486mW VIN 124486mW/36487mW/124486mW"
)


def tree(root: Path, files: Mapping[str, object]) -> Path:
    """A system's files, as recorded."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def program(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable on the path, in front of everything else."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return path


@pytest.fixture(autouse=True)
def no_jetson(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' machine may be one; its own tools must not answer."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    folder = tmp_path_factory.mktemp("path")
    (folder / "sleep").symlink_to(sleep)
    monkeypatch.setenv("PATH", str(folder))


# -- tegrastats -------------------------------------------------------------------------------


def test_jetpack_4_nano_has_bare_milliwatts_and_one_input_rail() -> None:
    reading = parse_tegrastats(NANO, time_s=7.0)
    assert reading.time_s == 7.0 and reading.ram_mb == 1816
    assert reading.watts == {"POM_5V_IN": 5.215, "POM_5V_GPU": 1.402, "POM_5V_CPU": 1.054}
    assert reading.total_w == 5.215
    assert reading.clocks_mhz == {"cpu0": 1479, "cpu1": 1479, "cpu3": 1479, "gpu": 921, "emc": 1600}
    assert reading.gpu_percent == 99
    # The PMIC's constant 100 is no temperature.
    assert reading.celsius == {"PLL": 19, "CPU": 27.5, "GPU": 31, "AO": 34, "thermal": 29.25}


def test_jetpack_4_tx2_total_is_the_module_input() -> None:
    reading = parse_tegrastats(TX2)
    assert reading.total_w == reading.watts["VDD_IN"] == 6.649
    assert len(reading.watts) == 6 and reading.watts["VDD_4V0_WIFI"] == 0
    assert reading.clocks_mhz["gpu"] == 1122 and "cpu1" not in reading.clocks_mhz
    assert reading.celsius["BCPU"] == 35.5 and "PMIC" not in reading.celsius


def test_jetpack_4_agx_xavier_total_is_the_sum_of_its_supplies() -> None:
    reading = parse_tegrastats(AGX_XAVIER)
    assert set(reading.watts) == {"GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"}
    assert reading.total_w == pytest.approx(9.316 + 1.31 + 2.931 + 0 + 1.466 + 3.522)
    assert reading.celsius["GPU"] == 45.5 and reading.watts["GPU"] == 9.316


def test_jetpack_5_agx_orin_leaves_out_absent_sensors_and_nested_memory() -> None:
    reading = parse_tegrastats(AGX_ORIN)
    assert "NC" not in reading.watts and reading.watts["VDDQ_VDD2_1V8AO"] == 0.301
    assert reading.watts["VDD_CPU_CV"] == -0.398  # a sensor's offset, as read
    assert reading.total_w == pytest.approx(2.399 - 0.398 + 4.032)
    assert not {"GPU", "CV0", "CV1", "CV2"} & set(reading.celsius)
    assert reading.celsius["tj"] == 42.593
    assert reading.clocks_mhz["gpu"] == 1300 and reading.gpu_percent == 0


def test_jetpack_6_orin_nano() -> None:
    reading = parse_tegrastats(ORIN_NANO)
    assert reading.watts == {"VDD_IN": 5.144, "VDD_CPU_GPU_CV": 1.495, "VDD_SOC": 1.286}
    assert reading.total_w == 5.144 and reading.gpu_percent == 87
    assert reading.clocks_mhz == {
        "cpu0": 1510, "cpu1": 729, "cpu2": 729, "cpu3": 729, "gpu": 611, "emc": 2133,
    }  # fmt: skip
    assert max(reading.celsius.values()) == reading.celsius["tj"] == 48.2


def test_jetpack_7_0_thor_has_a_gated_gpu_and_no_load() -> None:
    reading = parse_tegrastats(THOR_7_0)
    assert reading.gpu_percent is None and reading.clocks_mhz["gpu"] == 0
    assert reading.total_w == pytest.approx(0 + 4.165 + 4.126)


def test_jetpack_7_2_thor_has_maxima_and_one_clock_for_all_cores() -> None:
    reading = parse_tegrastats(THOR_7_2)
    assert reading.watts["VDD_GPU"] == 37.939 and reading.total_w == 124.486
    assert reading.celsius == {"cpu": 58.25, "tj": 66.625, "gpu": 56.937}
    assert reading.clocks_mhz == {"cpu0": 2601, "cpu1": 2601, "gpu": 1574, "emc": 4266}
    assert reading.gpu_percent == 87


def test_a_line_without_rails_has_no_total() -> None:
    """As an unprivileged user sees it on some releases."""
    reading = parse_tegrastats(
        "RAM 100/200MB CPU [-1%@-1,off] GR3D_FREQ off EMC_FREQ -1%@-1 VIC -1"
    )
    assert reading.watts == {} and reading.total_w is None
    assert reading.clocks_mhz == {} and reading.gpu_percent is None


@pytest.mark.parametrize(
    "line",
    [
        "",
        "tegrastats: permission denied",
        "VDD_IN 5144mW/5144mW",  # the tail of a record
        ORIN_NANO[: ORIN_NANO.index("@729")],  # torn inside the CPU field
        ORIN_NANO + " " + ORIN_NANO,  # two records in one line
        ORIN_NANO.replace("5%@1510", "5%@15MHz"),
    ],
)
def test_junk_is_refused_whole(line: str) -> None:
    with pytest.raises(InputError, match="tegrastats"):
        parse_tegrastats(line)


def test_a_total_is_never_a_part() -> None:
    assert total_watts({"VDD_GPU_SOC": 5.0, "VDD_CPU_CV": 1.0}) is None
    assert total_rails({"VDD_IN": 1, "VDD_GPU": 2, "VDD_CPU_SOC_MSS": 3, "VIN_SYS_5V0": 4}) == (
        "VDD_IN",
    )


# -- the kernel's files -----------------------------------------------------------------------

ORIN_FILES = {
    "sys/class/hwmon/hwmon0/name": "pwmfan",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": 4984,
    "sys/class/hwmon/hwmon1/curr1_input": 1856,
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": 4976,
    "sys/class/hwmon/hwmon1/curr2_input": 304,
    "sys/class/hwmon/hwmon1/in3_label": "NC",
    "sys/class/hwmon/hwmon1/in3_input": 4976,
    "sys/class/hwmon/hwmon1/curr3_input": 8,
    "sys/class/hwmon/hwmon1/curr4_input": 2168,
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon1/in7_input": 8080,
    "sys/class/hwmon/hwmon2/name": "cpu_thermal",
    "sys/class/hwmon/hwmon2/temp1_input": 51187,
    "sys/class/hwmon/hwmon3/name": "soctherm_oc",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": 1,
    "sys/class/hwmon/hwmon3/oc3_event_cnt": 37,
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": 51187,
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone8/type": "tj-thermal",
    "sys/class/thermal/thermal_zone8/temp": 63781,
    "sys/class/thermal/thermal_zone10/type": "PMIC-Die",
    "sys/class/thermal/thermal_zone10/temp": 100000,
    "sys/class/thermal/cooling_device0/type": "gpu-throttle-alert",
    "sys/class/thermal/cooling_device0/cur_state": 1,
    "sys/class/thermal/cooling_device1/type": "pwm-fan",
    "sys/class/thermal/cooling_device1/cur_state": 3,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 1510400,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_max_freq": 1728000,
    "sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "<unknown>",
    "sys/class/devfreq/17000000.gpu/cur_freq": 1020000000,
    "sys/class/devfreq/17000000.gpu/max_freq": 1020000000,
    "sys/class/devfreq/17000000.gpu/device/load": 873,
    "sys/class/devfreq/15340000.vic/cur_freq": 435200000,
    "proc/meminfo": "MemTotal:        7803368 kB\nMemFree: 1 kB\nMemAvailable:    3707368 kB",
}


def test_an_orin_is_read_from_its_files(tmp_path: Path) -> None:
    reader = SysfsReader(tree(tmp_path, ORIN_FILES))
    reading = reader.read()
    assert reading.watts == {
        "VDD_IN": pytest.approx(4.984 * 1.856),
        "VDD_CPU_GPU_CV": pytest.approx(4.976 * 0.304),
    }
    assert reading.total_w == reading.watts["VDD_IN"]
    assert reading.celsius == {"cpu": 51.187, "tj": 63.781}  # the gated GPU's zone has no value
    assert reading.clocks_mhz == {"cpu0": 1510.4, "gpu": 1020}
    assert reader.ceilings_mhz() == {"cpu0": 1728, "gpu": 1020}
    assert reading.gpu_percent == pytest.approx(87.3)
    assert reading.ram_mb == 4000
    assert reading.throttle_counts == {"oc1": 1, "oc3": 37}
    assert reading.alerts == {"gpu-throttle-alert"}
    assert reader.read(rails=False).watts == {}


def test_the_same_chip_below_its_driver_counts_once(tmp_path: Path) -> None:
    chip = {k: v for k, v in ORIN_FILES.items() if "hwmon1/" in k}
    below = {
        k.replace("class/hwmon", "bus/i2c/drivers/ina3221/1-0040/hwmon"): chip[k] for k in chip
    }
    both = SysfsReader(tree(tmp_path / "both", {**chip, **below})).read()
    only = SysfsReader(tree(tmp_path / "only", below)).read()
    assert both.watts == only.watts and set(only.watts) == {"VDD_IN", "VDD_CPU_GPU_CV"}


def test_a_thor_adds_the_boards_own_monitor(tmp_path: Path) -> None:
    """The module's INA3221 has three supplies; the carrier's INA238 states its power."""
    hwmon = "sys/class/hwmon"
    files = {f"{hwmon}/hwmon5/name": "ina238", f"{hwmon}/hwmon5/label": "VIN"}
    files |= {f"{hwmon}/hwmon5/in1_input": "20000", f"{hwmon}/hwmon5/curr1_input": "1427"}
    files |= {f"{hwmon}/hwmon5/power1_input": "28548000", f"{hwmon}/hwmon4/name": "ina3221"}
    for index, rail in enumerate(("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), start=1):
        files[f"{hwmon}/hwmon4/in{index}_label"] = rail
        files[f"{hwmon}/hwmon4/in{index}_input"] = "12000"
        files[f"{hwmon}/hwmon4/curr{index}_input"] = "500"
    reading = SysfsReader(tree(tmp_path, files)).read()
    assert len(reading.watts) == 4 and reading.watts["VDD_GPU"] == 6
    assert reading.total_w == pytest.approx(28.548)


def test_jetpack_4_rails_below_iio(tmp_path: Path) -> None:
    device = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files = {f"{device}/rail_name_0": "POM_5V_IN", f"{device}/in_power0_input": "2875"}
    files |= {f"{device}/rail_name_1": "POM_5V_GPU", f"{device}/in_power1_input": "garbage"}
    files |= {f"{device}/rail_name_2": "POM_5V_CPU"}
    reading = SysfsReader(tree(tmp_path, files)).read()
    assert reading.watts == {"POM_5V_IN": 2.875} and reading.total_w == 2.875


RAPL_FILES = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 262143000000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 262143328850,
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": 5000000,
    "sys/class/powercap/intel-rapl:0:1/name": "dram",
    "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
    "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 1,
    "sys/class/hwmon/hwmon0/name": "coretemp",
    "sys/class/hwmon/hwmon0/temp1_label": "Package id 0",
    "sys/class/hwmon/hwmon0/temp1_input": 55000,
    "sys/class/hwmon/hwmon0/temp2_label": "Core 0",
    "sys/class/hwmon/hwmon0/temp2_input": 54000,
    "sys/class/hwmon/hwmon1/name": "amdgpu",
    "sys/class/hwmon/hwmon1/power1_label": "PPT",
    "sys/class/hwmon/hwmon1/power1_input": 31000000,
    "sys/class/drm/card0/device/gpu_busy_percent": 41,
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": 9,
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "powersave",
}


def test_a_pc_is_read_from_its_counters(tmp_path: Path) -> None:
    reader = SysfsReader(tree(tmp_path, RAPL_FILES))
    reading = reader.read()
    assert reading.joules == {"package-0": pytest.approx(262143), "package-0 core": 5}
    assert reader.energy_ranges == {"package-0": pytest.approx(262143.32885)}
    assert reading.watts == {"amdgpu PPT": 31} and reading.total_w is None
    assert reading.celsius == {"coretemp Package id 0": 55}
    assert reading.gpu_percent == 41 and reading.throttle_counts == {"package throttling": 9}
    assert power_mode(tmp_path) == "governor powersave"


def test_a_counter_that_starts_again_loses_nothing(tmp_path: Path) -> None:
    reader = SysfsReader(tree(tmp_path, RAPL_FILES))
    before = replace(reader.read(), time_s=0.0)
    tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 19671150})
    after = replace(reader.read(), time_s=2.0)
    figures = summarise([before, after], reader.energy_ranges)
    assert figures is not None
    assert figures["joules"] == pytest.approx(20)
    assert figures["watts"]["total"] == {"mean": pytest.approx(10), "max": pytest.approx(10)}
    assert figures["total_is"] == "package-0"


def test_a_raspberry_pi_tells_when_it_is_short_of_volts(tmp_path: Path) -> None:
    path = "sys/devices/platform/soc/soc:firmware/get_throttled"
    reading = SysfsReader(tree(tmp_path, {path: "50005"})).read()  # now, and since boot
    assert reading.alerts == {"undervoltage", "throttled"}


def test_an_empty_system_tells_nothing(tmp_path: Path) -> None:
    reading = SysfsReader(tmp_path).read()
    assert not reading.tells and reading == Reading(time_s=reading.time_s)
    assert power_mode(tmp_path) == ""
    assert summarise([reading]) is None


# -- the power mode ---------------------------------------------------------------------------


def test_nvpmodels_answer_is_read_through_its_warnings() -> None:
    answer = (
        "NVPM WARN: fan mode is not set!\nNV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n"
    )
    assert parse_nvpmodel(answer) == "MODE_15W_6CORE"
    assert parse_nvpmodel("NV Power Mode:\n0\n") == parse_nvpmodel("Error: run as root") == ""


def test_modes_are_named_by_the_configuration_in_either_order() -> None:
    conf = "# < POWER_MODEL ID=9 NAME=NO >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    conf += "  < POWER_MODEL NAME=MAXN_SUPER ID=2 >\n< PM_CONFIG DEFAULT=1 >\n"
    assert mode_names(conf) == {0: "15W", 2: "MAXN_SUPER"}


def test_the_mode_is_asked_for_then_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(tmp_path / "root", {"var/lib/nvpmodel/status": "pmode:0002 fmode:quiet"})
    assert power_mode(root) == "mode 2"
    tree(root, {"etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MAXN_SUPER >"})
    assert power_mode(root) == "MAXN_SUPER"
    program(tmp_path / "bin", "nvpmodel", "echo 'NV Power Mode: 25W'; echo 1\n", monkeypatch)
    assert power_mode(root) == "25W"
    program(tmp_path / "bin", "nvpmodel", "echo 'Error: root needed' >&2; exit 1\n", monkeypatch)
    assert power_mode(root) == "MAXN_SUPER"


# -- figures ----------------------------------------------------------------------------------


def hot(second: int, mhz: float = 2000.0) -> Reading:
    watts = {"VDD_IN": 10.0 + second}
    return Reading(
        time_s=float(second),
        watts=watts,
        total_w=total_watts(watts),
        celsius={"tj": 60.0 + second},
        clocks_mhz={"cpu0": mhz, "cpu1": 100.0},
        power_mode="15W",
        throttle_counts={"oc3": 5 + second},
        alerts=frozenset({"gpu-throttle-alert"} if second == 2 else ()),
    )


def test_figures_of_several_readings() -> None:
    figures = summarise([hot(0), hot(1), hot(2)])
    assert figures == {
        "samples": 3,
        "seconds": 2.0,
        "power_mode": "15W",
        "watts": {"total": {"mean": 11.0, "max": 12.0}, "VDD_IN": {"mean": 11.0, "max": 12.0}},
        "total_is": "VDD_IN",
        "celsius": {"tj": {"mean": 61.0, "max": 62.0}},
        "clocks_mhz": {
            "cpu0": {"mean": 2000.0, "min": 2000.0, "max": 2000.0},
            "cpu1": {"mean": 100.0, "min": 100.0, "max": 100.0},
        },
        "throttling": ["oc3: 2 events", "gpu-throttle-alert: in 1 of 3 samples"],
    }


def test_throttling_shows_in_clocks_and_ceilings() -> None:
    readings = [
        replace(hot(i, 2000 - 50 * i), throttle_counts={}, alerts=frozenset()) for i in range(8)
    ]
    figures = summarise(readings, None, ({"cpu0": 2000, "gpu": 900}, {"cpu0": 1600, "gpu": 900}))
    assert figures is not None
    assert figures["throttling"] == [
        "cpu0: ceiling lowered from 2000 to 1600 MHz",
        "cpu: clock fell from 1975 to 1675 MHz",
    ]
    steady = summarise([replace(r, clocks_mhz={"cpu0": 2000.0}) for r in readings])
    assert steady is not None and steady["throttling"] == []


def test_the_platforms_own_counter_is_the_total_where_there_is_one() -> None:
    first = Reading(time_s=0.0, joules={"package-0": 0.0, "package-0 dram": 0.0, "psys": 0.0})
    last = Reading(time_s=2.0, joules={"package-0": 20.0, "package-0 dram": 4.0, "psys": 60.0})
    figures = summarise([first, last])
    assert figures is not None and figures["total_is"] == "psys" and figures["joules"] == 60
    without = [
        replace(r, joules={k: v for k, v in r.joules.items() if k != "psys"}) for r in (first, last)
    ]
    figures = summarise(without)
    assert figures is not None
    assert figures["total_is"] == "package-0 + package-0 dram" and figures["joules"] == 24
    assert figures["watts"]["total"]["mean"] == 12


# -- the sampler ------------------------------------------------------------------------------


def until(sampler: Sampler, count: int) -> None:
    """Waits for so many readings; a defect shows as an endless wait cut off after a minute."""
    deadline = time.monotonic() + 60
    while len(sampler.readings) < count and time.monotonic() < deadline:
        time.sleep(0.005)


def ends(process: int) -> bool:
    """Whether a killed process is gone, or only waits to be collected, before long."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.005)
    return False


def test_the_sampler_prefers_tegrastats_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in prints junk, then records; it and its child are gone afterwards."""
    note = tmp_path / "pids"
    script = f'sleep 600 & echo "$$ $! $*" > {note}\necho "tegrastats: starting up"\n'
    script += f"while :; do echo '{ORIN_NANO}'; sleep 0.02; done\n"
    program(tmp_path / "bin", "tegrastats", script, monkeypatch)
    program(tmp_path / "bin", "nvpmodel", "echo 'NV Power Mode: 15W'\n", monkeypatch)
    files = {k: v for k, v in ORIN_FILES.items() if "soctherm" in str(v) or "oc3" in k}
    with Sampler(interval_s=0.02, root=tree(tmp_path / "root", files)) as sampler:
        until(sampler, 4)
    figures = sampler.summary()
    assert figures is not None
    assert figures["watts"]["total"] == {"mean": 5.144, "max": 5.144}
    assert figures["power_mode"] == "15W" and figures["celsius"]["tj"]["max"] == 48.2
    assert figures["troubles"] == ["1 line of tegrastats was not understood"]
    assert sampler.readings[1].throttle_counts == {"oc3": 37}  # the files complete the lines
    shell, child, *arguments = note.read_text().split()
    assert arguments == ["--interval", "20"]
    assert ends(int(shell)) and ends(int(child))
    assert not [thread for thread in threading.enumerate() if thread.name == "telemetry"]


def test_where_tegrastats_gives_up_the_files_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last line is cut off in the middle, and is no reading."""
    torn = "echo 'must be root' >&2; printf '%s' 'RAM 9/7620MB (lfb'; exit 1\n"
    program(tmp_path / "bin", "tegrastats", torn, monkeypatch)
    with Sampler(interval_s=0.01, root=tree(tmp_path / "root", ORIN_FILES)) as sampler:
        until(sampler, 4)
    figures = sampler.summary()
    assert figures is not None and figures["total_is"] == "VDD_IN"
    assert {reading.ram_mb for reading in sampler.readings} == {4000}
    assert figures["troubles"] == ["tegrastats ended early; the kernel's files were read instead"]


def test_a_short_block_has_the_energy_between_its_ends(tmp_path: Path) -> None:
    root = tree(tmp_path, {k: v for k, v in RAPL_FILES.items() if "hwmon" not in k})
    with Sampler(interval_s=60, root=root) as sampler:
        tree(root, {"sys/class/powercap/intel-rapl:0:0/energy_uj": 8000000})
        time.sleep(0.06)
    first, last = sampler.readings
    assert last.joules["package-0 core"] - first.joules["package-0 core"] == pytest.approx(3)
    figures = sampler.summary()
    assert figures is not None and math.isfinite(figures["watts"]["package-0 core"]["mean"])


def test_the_sampler_tells_nothing_where_the_platform_does(tmp_path: Path) -> None:
    with Sampler(interval_s=0.01, root=tmp_path) as sampler:
        until(sampler, 3)
    assert sampler.summary() is None and sampler.troubles == ()


def test_the_sampler_never_raises_into_the_block(tmp_path: Path) -> None:
    root = tree(tmp_path, ORIN_FILES)
    with Sampler(interval_s=0.01, root=root) as sampler:
        until(sampler, 2)
        shutil.rmtree(root / "sys")  # the sensors are gone, while it reads them
        until(sampler, 4)
    assert sampler.summary() is not None
    with pytest.raises(KeyError, match="own"), Sampler(root=root):
        raise KeyError("own")


def test_a_program_that_cannot_run_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program(tmp_path / "bin", "tegrastats", "", monkeypatch)
    path.write_text("#!/nonexistent/interpreter\n")
    with Sampler(interval_s=0.01, root=tree(tmp_path / "root", ORIN_FILES)) as sampler:
        until(sampler, 3)
    assert len(sampler.troubles) == 1 and "starting tegrastats failed" in sampler.troubles[0]
    assert sampler.summary() is not None
