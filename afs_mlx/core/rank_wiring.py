"""What each rank is told so that MLX's backends find each other: hosts files, ports, variables. Starts nothing."""

import contextlib
import itertools
import json
import os
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from afs_mlx.core.errors import AfsError, MissingError
from afs_mlx.core.hosts import Cluster, Host

FIRST_PORT = 32323  # mlx.launch's
_PASSED_ON = ("AFS_MLX_HOME", "AFS_MLX_DEBUG")


@dataclass(frozen=True)
class Wiring:
    """For each rank its host, its variables, and the files (by variable) that a machine has to be given.

    `folder` holds these files for ranks on this machine. `prefix` goes before the command; `watched` says whether the
    ranks are our own processes.
    """

    folder: Path
    ranks: list[tuple[Host, dict[str, str], dict[str, str]]]
    prefix: tuple[str, ...] = ()
    watched: bool = True


@contextmanager
def wired(cluster: Cluster) -> Iterator[Wiring]:
    """The files of the ranks on this machine exist, and their free ports are held, until this ends."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | dict(cluster.envs)
    with tempfile.TemporaryDirectory(prefix="afs-mlx-ranks-") as name, contextlib.ExitStack() as held:
        folder = Path(name)
        if cluster.backend == "mpi":
            yield _mpi(cluster, folder)
            return
        env = dict(passed)
        if cluster.backend == "ring":
            files = {"MLX_HOSTFILE": json.dumps(_ring_addresses(cluster.hosts, held))}
        else:
            files = {"MLX_IBV_DEVICES": json.dumps([host.rdma for host in cluster.hosts])}
            address = cluster.hosts[0].addresses[0]
            env["MLX_JACCL_COORDINATOR"] = address if ":" in address else f"{address}:{FIRST_PORT}"
            if cluster.backend == "jaccl-ring":
                env["MLX_JACCL_RING"] = "1"
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        ranks = [(host, {**env, "MLX_RANK": str(rank)}, files) for rank, host in enumerate(cluster.hosts)]
        yield Wiring(folder, ranks)


def _mpi(cluster: Cluster, folder: Path) -> Wiring:
    """mpirun starts, joins and ends the ranks itself; it is watched as one process, as `mlx.launch` calls it."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        raise MissingError("mpirun is not on the PATH", "hosts file, backend mpi", "install Open MPI, or use the ring")
    file = folder / "hosts"
    slots = Counter(host.name for host in cluster.hosts)
    file.write_text("".join(f"{name} slots={count}\n" for name, count in slots.items()), encoding="utf-8")
    exported = [word for name, value in cluster.envs for word in ("-x", f"{name}={value}")]
    command = (mpirun, "--output", ":raw", "--hostfile", str(file), *exported, "--")
    return Wiring(folder, [(Host("mpirun", True, ()), {}, {})], command, watched=False)


def _ring_addresses(hosts: Sequence[Host], held: contextlib.ExitStack) -> list[list[str]]:
    """`IP:PORT` for each connection: named ports as they are, free ones where all is on this machine, else MLX's."""
    here = all(host.local for host in hosts)
    mlx_ports = itertools.count(FIRST_PORT)

    def with_port(address: str) -> str:
        if ":" in address:
            return address
        return f"{address}:{_free_port(address, held) if here else next(mlx_ports)}"

    return [[with_port(address) for address in host.addresses] for host in hosts]


def _free_port(ip: str, held: contextlib.ExitStack) -> int:
    """A port that nobody else gets while `held` is open: MLX's ring, which sets SO_REUSEPORT, may listen on it."""
    reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((ip, 0))
    except OSError as error:
        reserved.close()
        raise AfsError(f"no port can be opened: {error.strerror}", ip, "name an address of this machine") from error
    port = int(reserved.getsockname()[1])
    if sys.platform == "linux":
        held.enter_context(reserved)
    else:
        reserved.close()  # BSD hands connections to any socket bound there
    return port
