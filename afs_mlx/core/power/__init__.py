"""A laptop under a long job: kept awake, its sleep left out of the time, its battery, swap and disk watched."""

from afs_mlx.core.power.awake import KeptAwake, keep_awake
from afs_mlx.core.power.battery import Battery, read_battery
from afs_mlx.core.power.clock import AwakeClock
from afs_mlx.core.power.watch import MachineWatch, Reading

__all__ = ["AwakeClock", "Battery", "KeptAwake", "MachineWatch", "Reading", "keep_awake", "read_battery"]
