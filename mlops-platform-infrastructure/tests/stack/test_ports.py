from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_stack import ports


def test_a_free_default_is_kept() -> None:
    assert ports.choose({"postgres": 5432}, free=lambda _: True) == {"postgres": 5432}


def test_a_taken_default_gives_way_to_the_first_free_candidate() -> None:
    chosen = ports.choose({"postgres": 5432}, free=lambda port: port == 7003, candidates=[7001, 7002, 7003])
    assert chosen == {"postgres": 7003}


def test_a_port_that_our_own_server_listens_on_is_kept_although_it_is_not_free() -> None:
    chosen = ports.choose(
        {"postgres": 5432, "valkey": 6379}, held={"postgres"}, free=lambda port: port == 6379
    )
    assert chosen == {"postgres": 5432, "valkey": 6379}


def test_ports_of_other_instances_are_avoided_even_while_they_are_down() -> None:
    assert ports.choose({"s3": 8333}, avoid={8333, 7001}, free=lambda _: True, candidates=[7001, 7002]) == {
        "s3": 7002
    }


def test_running_out_of_candidates_is_an_error() -> None:
    with pytest.raises(ports.NoFreePortError, match="s3"):
        ports.choose({"s3": 8333}, free=lambda _: False, candidates=range(7000, 7010))


@given(
    wanted=st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(7000, 7005), max_size=6),
    taken=st.sets(st.integers(7000, 7020), max_size=15),
)
def test_chosen_ports_are_free_and_distinct(wanted: dict[str, int], taken: set[int]) -> None:
    chosen = ports.choose(wanted, free=lambda port: port not in taken, candidates=range(7000, 7100))
    assert list(chosen) == list(wanted)
    assert len(set(chosen.values())) == len(chosen)
    assert not taken & set(chosen.values())
    firsts = {port: name for name, port in reversed(wanted.items())}
    assert all(chosen[name] == port for port, name in firsts.items() if port not in taken and port not in
               [chosen[other] for other in wanted if other != name])  # fmt: skip


def test_a_listening_socket_makes_a_port_taken_and_closing_it_makes_it_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
    assert ports.is_free(port)


def test_a_port_whose_socket_file_another_account_left_is_taken(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "SOCKET_DIR", tmp_path)
    (tmp_path / f"seaweedfs-master-grpc-{free_port}.sock").touch()
    assert ports.is_free(free_port)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert not ports.is_free(free_port)
    assert ports.stale_sockets([free_port]) == []


def test_a_socket_file_is_stale_only_when_no_server_listens_on_its_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ports, "SOCKET_DIR", tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        path = tmp_path / f"seaweedfs-filer-grpc-{port}.sock"
        path.touch()
        assert ports.stale_sockets([port]) == []
    assert ports.stale_sockets([port]) == [path]


def test_ports_are_recorded_and_new_names_get_their_default(tmp_path: Path) -> None:
    ports.save(tmp_path / "ports.json", {"postgres": 15432})
    assert ports.load(tmp_path / "ports.json") == {**ports.DEFAULT_PORTS, "postgres": 15432}


def test_other_instances_ports_are_read_and_our_own_left_out(tmp_path: Path) -> None:
    for name, port in {"stack": 1111, "stack-two": 2222}.items():
        (tmp_path / name).mkdir()
        ports.save(tmp_path / name / "ports.json", {"postgres": port})
    assert ports.recorded_by_others(tmp_path, tmp_path / "stack" / "ports.json") == {2222}
