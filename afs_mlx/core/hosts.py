"""Which machines train together: MLX's own hosts file, read and checked. Starts nothing.

Three forms, as `mlx.launch`, `mlx.distributed_config` and the ring backend write and read them:

    [["192.168.1.2:32323"], ["192.168.1.3:32323"]]
    [{"ssh": "mac1", "ips": ["192.168.1.2"]}, {"ssh": "mac2", "ips": ["192.168.1.3"]}]
    {"backend": "jaccl", "envs": ["MLX_METAL_FAST_SYNCH=1"], "hosts": [{"ssh": …, "ips": …, "rdma": …}, …]}
"""

import ipaddress
import json
import re
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from afs_mlx.core.config import StrictModel, validate
from afs_mlx.core.errors import AfsError, UsageError, problems

type Backend = Literal["ring", "jaccl", "jaccl-ring", "mpi"]
type Devices = tuple[str | tuple[str, ...] | None, ...]

MAX_LOCAL_RANKS = 64
_FORMS = 'write [["IP:PORT"], …] or [{"ssh": "HOST", "ips": ["IP"]}, …], as mlx.launch reads it'


class HostEntry(StrictModel):
    """A machine as MLX's hosts file names it; `rdma` has one device (or None) for each rank."""

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: Devices = ()


class HostsFile(StrictModel):
    """The long form of MLX's hosts file."""

    backend: Literal["", "ring", "jaccl", "jaccl-ring", "mpi"] = ""
    envs: tuple[str, ...] = ()
    hosts: tuple[HostEntry, ...]


class _Ring(StrictModel):
    hosts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Host:
    """Where one rank runs. `addresses` are `IP:PORT`, or `IP` where the launcher is to choose the port."""

    name: str
    local: bool
    addresses: tuple[str, ...]
    rdma: Devices = ()


@dataclass(frozen=True)
class Cluster:
    """The ranks in order; rank 0 is on this machine."""

    hosts: tuple[Host, ...]
    backend: Backend = "ring"
    envs: tuple[tuple[str, str], ...] = ()


def read_hosts(text: str) -> Cluster:
    """What `--hosts` names: a number of ranks on this machine, or a hosts file.

    Raises UsageError for a number below two, AfsError with every problem of the file.
    """
    if re.fullmatch(r"-?\d+", text.strip()):
        count = int(text)
        if not 2 <= count <= MAX_LOCAL_RANKS:
            raise UsageError(
                f"{count} ranks cannot train together on this machine",
                f"--hosts {text}",
                f"name 2 to {MAX_LOCAL_RANKS} ranks or a hosts file; leave --hosts out to train with one process",
            )
        return Cluster(tuple(Host("localhost", True, ("127.0.0.1",)) for _ in range(count)))
    path = Path(text)
    value = _load(path)
    if isinstance(value, list) and value and all(isinstance(entry, list) for entry in value):
        cluster = _ring_cluster(validate(_Ring, {"hosts": value}, str(path)))
    elif isinstance(value, list | dict):
        file = validate(HostsFile, value if isinstance(value, dict) else {"hosts": value}, str(path))
        cluster = _cluster(file)
    else:
        raise AfsError("the hosts file is neither a list nor an object", str(path), _FORMS)
    found = list(_problems(cluster))
    if found:
        raise problems(found, "the hosts file cannot be used", str(path), "mend these; " + _FORMS)
    return cluster


def is_local(name: str) -> bool:
    """Whether a host name or IP is this machine. Asks no name server."""
    here = socket.gethostname()
    if name in {"localhost", here, here.partition(".")[0], here.partition(".")[0] + ".local"}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((name, 0))
        except OSError:
            return False
    return True


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise AfsError("there is no such hosts file", str(path), "check the path, or name a number of ranks") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, too deep
        raise AfsError(f"the hosts file is not valid JSON: {error}", str(path), _FORMS) from error
    except OSError as error:
        raise AfsError(f"cannot read: {error.strerror}", str(path), "check the path and its rights") from error


def _ring_cluster(ring: _Ring) -> Cluster:
    hosts = []
    for addresses in ring.hosts:
        name = addresses[0].rpartition(":")[0] if addresses else ""
        hosts.append(Host("localhost" if is_local(name) else name, is_local(name), addresses))
    return Cluster(tuple(hosts))


def _cluster(file: HostsFile) -> Cluster:
    hosts = []
    for entry in file.hosts:
        local = is_local(entry.ssh) or any(is_local(ip) for ip in entry.ips if not _is_loopback(ip))
        hosts.append(Host(entry.ssh, local, entry.ips, entry.rdma))
    if all(host.local and not host.addresses for host in hosts):
        hosts = [Host(host.name, True, ("127.0.0.1",), host.rdma) for host in hosts]
    envs = tuple((key, value) for key, _, value in (text.partition("=") for text in file.envs))
    return Cluster(tuple(hosts), file.backend or "ring", envs)


def _problems(cluster: Cluster) -> Iterator[str]:
    hosts = cluster.hosts
    if len(hosts) < 2:
        yield f"{len(hosts)} host{'s' if len(hosts) != 1 else ''}: at least two are needed"
    for rank, host in enumerate(hosts):
        if not re.fullmatch(r"[^\s\-][^\s]*", host.name) and host.addresses:
            yield f"rank {rank}: {host.name!r} is no host name"
        for address in host.addresses:
            if problem := _address_problem(address):
                yield f"rank {rank}: {address!r} {problem}"
    if hosts and not hosts[0].local:
        yield f"rank 0 ({hosts[0].name}) is another machine: list this one first, the run is saved by rank 0"
    for name, value in cluster.envs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
            yield f"envs: {name!r} is no variable's name; write NAME=value"
    if cluster.backend == "ring":
        yield from _ring_problems(hosts)
    elif cluster.backend.startswith("jaccl"):
        yield from _rdma_problems(hosts, ring=cluster.backend == "jaccl-ring")


def _ring_problems(hosts: Sequence[Host]) -> Iterator[str]:
    for rank, host in enumerate(hosts):
        if not host.addresses:
            yield f"rank {rank} ({host.name}): no ips, which the ring needs"
    counts = Counter(address for host in hosts for address in host.addresses if ":" in address)
    for address in (address for address, count in counts.items() if count > 1):
        ranks = [str(rank) for rank, host in enumerate(hosts) if address in host.addresses]
        yield f"{address} stands more than once (rank {', '.join(ranks)}): every rank needs a port of its own"
    if len({len(host.addresses) for host in hosts}) > 1:
        yield "every rank needs as many addresses as the others"
    if not all(host.local for host in hosts):
        for rank, host in enumerate(hosts):
            if any(_is_loopback(address.rpartition(":")[0] or address) for address in host.addresses):
                yield f"rank {rank} ({host.name}): other machines cannot reach a loopback address"


def _rdma_problems(hosts: Sequence[Host], ring: bool) -> Iterator[str]:
    """The conditions of `mlx.launch` for JACCL."""
    size = len(hosts)
    if not hosts or not hosts[0].addresses:
        yield "rank 0: no ips; it needs one that the others reach"
    short = [rank for rank, host in enumerate(hosts) if len(host.rdma) != size]
    for rank in short:
        yield f"rank {rank}: rdma has {len(hosts[rank].rdma)} entries for {size} ranks"
    if short:
        return
    for rank, host in enumerate(hosts):
        if host.rdma[rank] is not None:
            yield f"rank {rank}: its rdma device to itself must be null"
        for other in ((rank - 1) % size, (rank + 1) % size) if ring else range(size):
            if other != rank and host.rdma[other] is None:
                yield f"rank {rank}: no rdma device to rank {other}"


def _address_problem(address: str) -> str:
    ip, colon, port = address.rpartition(":")
    if address.count(":") > 1:
        return "is an IPv6 address, which MLX's ring cannot read"
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return "has no port between 1 and 65535"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.\-]*", ip if colon else address):
        return "is no address"
    return ""


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"
