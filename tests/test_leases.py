"""One process at a time makes a shard, and a dead one's place is taken."""

import json
import os
import platform
import subprocess
import sys
import threading

import pytest

from ditbench.runner import leases
from ditbench.runner.leases import claim, owner_of


def dead_pid():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def leave(place, number=0, age=0.0, **owner):
    """A lease as a process leaves it that was killed."""
    path = place.with_name(f"{place.name}.lease-{number}")
    path.write_text(json.dumps({"host": platform.node(), "pid": os.getpid()} | owner))
    if age:
        moment = path.stat().st_mtime - age
        os.utime(path, (moment, moment))
    return path


def test_a_lease_is_one_processes_until_it_gives_it_back(tmp_path):
    place = tmp_path / "cell" / "00003"
    first = claim(place, "a")
    assert first and claim(place, "b") is None
    assert owner_of(place) == {"host": platform.node(), "pid": os.getpid(), "session": "a"}
    assert claim(place.with_name("00004"), "b")
    first.release()
    assert not owner_of(place)
    with claim(place, "b") as second:
        assert second.path.name == "00003.lease-0"


def test_the_place_of_a_dead_process_is_taken_by_one_alone(tmp_path):
    place = tmp_path / "00003"
    leave(place, pid=dead_pid())
    taken, threads = [], []
    for name in "abcdefgh":
        threads.append(threading.Thread(target=lambda name=name: taken.append(claim(place, name))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (lease,) = filter(None, taken)
    assert lease.path.name == "00003.lease-1"
    lease.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_ended_and_was_not_waited_for_is_dead(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()  # to its end
    leave(tmp_path / "00001", pid=ended.pid)
    for _ in range(500):
        if lease := claim(tmp_path / "00001", "b"):
            break
        threading.Event().wait(0.02)
    assert lease.path.name == "00001.lease-1"
    lease.release()
    ended.wait()


@pytest.mark.parametrize(
    ("owner", "age", "free"),
    [
        ({}, 0, False),
        ({}, leases.EXPIRED_S + 1, True),
        ({"host": "elsewhere", "pid": 1}, 0, False),
        ({"host": "elsewhere", "pid": 1}, leases.EXPIRED_S + 1, True),
        ({"pid": None}, 0, False),
    ],
)
def test_a_lease_ends_with_its_owner_or_when_it_is_not_touched(tmp_path, owner, age, free):
    leave(tmp_path / "00001", age=age, **owner)
    assert bool(claim(tmp_path / "00001", "b")) == free


def test_a_lease_that_was_only_just_made_is_respected(tmp_path):
    (tmp_path / "00001.lease-0").touch()
    assert claim(tmp_path / "00001", "b") is None and owner_of(tmp_path / "00001") == {}


def test_a_living_lease_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.01)
    lease = claim(tmp_path / "00001", "a")
    os.utime(lease.path, (1, 1))
    touched = threading.Event()
    for _ in range(500):
        if lease.path.stat().st_mtime > 1:
            touched.set()
            break
        touched.wait(0.02)
    assert touched.is_set()
    lease.release()


def test_what_is_no_lease_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "00001.lease-0")
    assert owner_of(tmp_path / "00001") == {} and claim(tmp_path / "00001", "a") is None
    leave(tmp_path / "00002", pid=10**25)
    with claim(tmp_path / "00002", "a") as lease:
        assert lease.path.name == "00002.lease-1"
