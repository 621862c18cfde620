"""What containment looks like. Four of these tests fail on purpose: read what pytest says of them."""

import os
import subprocess

import pytest


@pytest.mark.contained(memory="64M", timeout=30)
def test_a_memory_hog_is_stopped():
    hoard = []
    while True:
        hoard.append(bytearray(1024 * 1024))


@pytest.mark.contained
def test_a_leaked_daemon_is_named_and_killed():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)


@pytest.mark.contained
def test_a_crash_is_a_failure_of_one_test():
    print("about to crash")
    os.abort()


@pytest.mark.contained(timeout=0.5)
def test_a_hang_ends_at_its_deadline():
    subprocess.run(["sleep", "1000"])


@pytest.mark.contained(memory="64M", expect="oom")
def test_that_the_limit_is_hit():
    bytearray(256 * 1024 * 1024)


@pytest.mark.contained(pid_ns=True, net_ns=True, private_tmp=True)
def test_a_world_of_its_own(tmp_path):
    import socket

    assert os.getpid() == 2  # PID 1 is an init that reaps
    with socket.create_server(("127.0.0.1", 80)):  # nobody else is on this network
        assert tmp_path.is_dir()  # kept, though /tmp is fresh and empty


def test_an_unmarked_test_is_left_alone():
    assert True
