"""MLX's hosts files: the three forms, and what can be wrong with them."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from afs_mlx.core.errors import AfsError, UsageError
from afs_mlx.core.hosts import Cluster, Host, is_local, read_hosts


def written(folder: Path, value: Any) -> str:
    path = folder / "hosts.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def refused(folder: Path, value: Any) -> str:
    with pytest.raises(AfsError) as caught:
        read_hosts(written(folder, value))
    assert caught.value.where.endswith("hosts.json")
    assert caught.value.fix
    return str(caught.value)


def test_a_number_is_so_many_ranks_here() -> None:
    assert read_hosts("3") == Cluster((Host("localhost", True, ("127.0.0.1",)),) * 3, "ring")


@pytest.mark.parametrize("text", ["1", "0", "-2", "65"])
def test_a_number_that_makes_no_sense(text: str) -> None:
    with pytest.raises(UsageError, match="cannot train together"):
        read_hosts(text)


def test_the_rings_own_form(tmp_path: Path) -> None:
    cluster = read_hosts(written(tmp_path, [["127.0.0.1:5601"], ["127.0.0.1:5602"]]))
    assert cluster.hosts == (
        Host("localhost", True, ("127.0.0.1:5601",)),
        Host("localhost", True, ("127.0.0.1:5602",)),
    )


def test_hosts_by_ssh(tmp_path: Path) -> None:
    value = [{"ssh": socket.gethostname(), "ips": ["10.255.255.1"]}, {"ssh": "mac2", "ips": ["10.255.255.2"]}]
    cluster = read_hosts(written(tmp_path, value))
    assert [(host.name, host.local) for host in cluster.hosts] == [(socket.gethostname(), True), ("mac2", False)]
    assert cluster.hosts[1].addresses == ("10.255.255.2",)


def test_local_hosts_need_no_ips(tmp_path: Path) -> None:
    cluster = read_hosts(written(tmp_path, [{"ssh": "localhost"}, {"ssh": "127.0.0.1"}]))
    assert all(host.local and host.addresses == ("127.0.0.1",) for host in cluster.hosts)


def test_the_long_form_with_jaccl(tmp_path: Path) -> None:
    value = {
        "backend": "jaccl",
        "envs": ["MLX_METAL_FAST_SYNCH=1"],
        "hosts": [
            {"ssh": "localhost", "ips": ["10.255.255.1"], "rdma": [None, "rdma_en2"]},
            {"ssh": "mac2", "ips": [], "rdma": [["rdma_en2", "rdma_en3"], None]},
        ],
    }
    cluster = read_hosts(written(tmp_path, value))
    assert cluster.backend == "jaccl"
    assert cluster.envs == (("MLX_METAL_FAST_SYNCH", "1"),)
    assert cluster.hosts[1].rdma == (("rdma_en2", "rdma_en3"), None)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(AfsError, match="no such hosts file") as caught:
        read_hosts(str(tmp_path / "none.json"))
    assert "number of ranks" in caught.value.fix


@pytest.mark.parametrize("text", ["not json", "[", "", "[[1"])
def test_not_json(tmp_path: Path, text: str) -> None:
    assert "not valid JSON" in refused(tmp_path, text)


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_bytes(b"\xff\xfe[]")
    with pytest.raises(AfsError, match="not valid JSON"):
        read_hosts(str(path))


@pytest.mark.parametrize("value", [[], {"hosts": []}])
def test_empty(tmp_path: Path, value: Any) -> None:
    assert "0 hosts: at least two are needed" in refused(tmp_path, value)


@pytest.mark.parametrize("value", ["3.5", '"mac1"', "null"])
def test_neither_list_nor_object(tmp_path: Path, value: str) -> None:
    assert "neither a list nor an object" in refused(tmp_path, value)


@pytest.mark.parametrize(
    "value",
    [
        [["127.0.0.1:1"], {"ssh": "a"}],
        [["127.0.0.1:1"], [2]],
        {"host": []},
        [{"ip": "10.0.0.1"}],
        {"hosts": [], "x": 1},
    ],
)
def test_mixed_or_unknown_keys(tmp_path: Path, value: Any) -> None:
    assert "bad configuration" in refused(tmp_path, value)


def test_duplicate_addresses_are_named_with_their_ranks(tmp_path: Path) -> None:
    message = refused(tmp_path, [["127.0.0.1:5601"], ["127.0.0.1:5602"], ["127.0.0.1:5601"]])
    assert "127.0.0.1:5601 stands more than once (rank 0, 2)" in message


def test_all_problems_are_listed_together(tmp_path: Path) -> None:
    value = [
        {"ssh": "mac1", "ips": ["10.255.255.1"]},
        {"ssh": "-oProxyCommand=x", "ips": ["fe80::1", "10.255.255.3:99999"]},
        {"ssh": "mac3"},
    ]
    message = refused(tmp_path, value)
    for expected in (
        "rank 0 (mac1) is another machine",
        "'-oProxyCommand=x' is no host name",
        "'fe80::1' is an IPv6 address",
        "'10.255.255.3:99999' has no port between 1 and 65535",
        "rank 2 (mac3): no ips",
        "as many addresses as the others",
    ):
        assert expected in message


def test_loopback_is_of_no_use_to_another_machine(tmp_path: Path) -> None:
    value = [{"ssh": "localhost", "ips": ["127.0.0.1"]}, {"ssh": "mac2", "ips": ["10.255.255.2"]}]
    assert "other machines cannot reach a loopback address" in refused(tmp_path, value)


def test_jaccl_wants_a_whole_matrix(tmp_path: Path) -> None:
    def hosts(*rdma: list[str | None]) -> dict[str, Any]:
        entries = [{"ssh": "localhost", "ips": ["10.255.255.1"], "rdma": row} for row in rdma]
        return {"backend": "jaccl", "hosts": entries}

    assert "rank 1: rdma has 1 entries for 2 ranks" in refused(tmp_path, hosts([None, "a"], ["a"]))
    assert "rank 1: its rdma device to itself" in refused(tmp_path, hosts([None, "a"], ["a", "b"]))
    assert "rank 0: no rdma device to rank 1" in refused(tmp_path, hosts([None, None], ["a", None]))


def test_jaccl_ring_wants_neighbours_only(tmp_path: Path) -> None:
    size = 4
    rdma = [[f"en{b}" if (a - b) % size in (1, size - 1) else None for b in range(size)] for a in range(size)]
    entries = [{"ssh": "localhost", "ips": ["10.255.255.1"], "rdma": row} for row in rdma]
    assert read_hosts(written(tmp_path, {"backend": "jaccl-ring", "hosts": entries})).backend == "jaccl-ring"
    assert "no rdma device to rank 2" in refused(tmp_path, {"backend": "jaccl", "hosts": entries})


@pytest.mark.parametrize("env", ["A B=1", "=1", "1A=2"])
def test_variables_have_names(tmp_path: Path, env: str) -> None:
    value = {"envs": [env], "hosts": [{"ssh": "localhost"}, {"ssh": "localhost"}]}
    assert "is no variable's name" in refused(tmp_path, value)


def test_what_is_local() -> None:
    assert is_local("localhost")
    assert is_local("127.0.0.1")
    assert is_local(socket.gethostname())
    assert not is_local("10.255.255.254")
    assert not is_local("a-name-of-nobody")
