"""Energy used: measured where the machine has a meter, else estimated from a stated assumption and marked so."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

WATTS_PER_BUSY_CORE = 6.0
"""Assumed where nothing measures: a server processor's rated 350 W over its 56 cores, rounded down."""

ASSUMPTION = f"estimated as {WATTS_PER_BUSY_CORE:g} W for each busy core"
RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Energy:
    """Joules, whether a meter gave them, and which one or what assumption."""

    joules: float
    measured: bool
    how: str


class Meter:
    """Counts energy from its making on: the processor's packages through RAPL and the accelerators through NVML.

    RAPL and NVML count the whole package or board, other programs' share included. Without RAPL the processor's part is
    this process's and its children's busy time, times an assumed wattage.
    """

    def __init__(self) -> None:
        self._zones = _rapl_zones()
        self._boards = _boards()
        self._rapl_last = {zone: _read(zone / "energy_uj") for zone in self._zones}
        self._rapl_joules = 0.0
        self._board_start = [_millijoules(board) for board in self._boards]
        self._busy_start = _busy_seconds()

    def read(self) -> Energy:
        """The energy since the meter was made."""
        boards = sum(_millijoules(board) - start for board, start in zip(self._boards, self._board_start, strict=True)) / 1e3
        names = ["NVML"] if self._boards else []
        if self._zones:
            return Energy(self._rapl() + boards, True, " and ".join(["RAPL", *names]))
        processor = max(0.0, _busy_seconds() - self._busy_start) * WATTS_PER_BUSY_CORE
        how = f"accelerators by NVML, processor {ASSUMPTION}" if self._boards else ASSUMPTION
        return Energy(processor + boards, bool(self._boards), how)

    def _rapl(self) -> float:
        """Joules so far; the counters wrap every few minutes to hours, so the difference is taken from the last reading."""
        for zone in self._zones:
            now, last = _read(zone / "energy_uj"), self._rapl_last[zone]
            self._rapl_joules += (now - last if now >= last else now + _read(zone / "max_energy_range_uj") - last) / 1e6
            self._rapl_last[zone] = now
        return self._rapl_joules


def _rapl_zones() -> list[Path]:
    """The top-level package zones this user may read (many systems keep them for root)."""
    return [zone for zone in sorted(RAPL.glob("intel-rapl:[0-9]*")) if zone.name.count(":") == 1 and os.access(zone / "energy_uj", os.R_OK)]


def _read(path: Path) -> int:
    return int(path.read_text())


def _busy_seconds() -> float:
    """Processor seconds of this process, its finished children and its living ones."""
    me = psutil.Process()
    times = me.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in me.children(recursive=True):
        try:
            times = child.cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue  # it ended meanwhile, and its time comes with the finished children's
    return total


def _boards() -> list[tuple[ctypes.CDLL, ctypes.c_void_p]]:
    """Handles of the accelerators this process may use that count their energy."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.isdigit()]
    found = []
    for index in [int(part) for part in visible] or range(count.value):
        handle = ctypes.c_void_p()
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0 and _millijoules((library, handle)):
            found.append((library, handle))
    return found


def _millijoules(board: tuple[ctypes.CDLL, ctypes.c_void_p]) -> int:
    value = ctypes.c_ulonglong()
    board[0].nvmlDeviceGetTotalEnergyConsumption(board[1], ctypes.byref(value))
    return value.value


def timed(meter: Meter, start: float) -> dict[str, object]:
    """Seconds since `start` (of time.perf_counter) and the energy so far, as manifests and metrics record them."""
    energy = meter.read()
    return {"seconds": round(time.perf_counter() - start, 3), "joules": round(energy.joules, 1), "measured": energy.measured, "how": energy.how}
