"""What a training will take, before it starts: peak memory, time, and settings that fit. `probe` and
`reading` know the model, the rest shapes alone.

Each part of the cost (blocks, attention, head, …) is counted from the shapes; a probe of a few steps says how many
seconds and bytes a counted unit really takes here. A setting that was not probed changes the count, not the unit.
"""

from afs_mlx.engine.training.planning.calibration import Calibration, FrozenPass, Measured, Probe, calibrate
from afs_mlx.engine.training.planning.forecast import Forecast, Job, Proposal, Verdict, forecast
from afs_mlx.engine.training.planning.proposals import plan, planned
from afs_mlx.engine.training.planning.room import Room
from afs_mlx.engine.training.planning.sampling import probe_batches
from afs_mlx.engine.training.planning.shapes import BatchShape, ModelShape, Shapes

__all__ = [
    "BatchShape",
    "Calibration",
    "Forecast",
    "FrozenPass",
    "Job",
    "Measured",
    "ModelShape",
    "Probe",
    "Proposal",
    "Room",
    "Shapes",
    "Verdict",
    "calibrate",
    "forecast",
    "plan",
    "planned",
    "probe_batches",
]
