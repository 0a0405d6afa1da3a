from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from almoner_dev import processes
from almoner_dev.processes import Child, ProcessError, ProcessId
from almoner_dev.state import Environment, StateError
from tests.support.polling import until

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Child]:
    child = processes.start("sleeper", ["sleep", "600"], log_path=tmp_path / "sleeper.log")
    yield child
    child.kill()


def test_output_goes_to_the_log_and_the_tail_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "talker.log"
    child = processes.start("talker", [sys.executable, "-c", "print('x' * 99999); print('last')"], log_path=log)
    assert child.process.wait(30) == 0
    assert child.tail(1) == "last"
    assert len(child.tail(2)) <= processes.TAIL_LINE_CHARACTERS_MAX + len("\nlast")
    assert "exit code 0" in str(child.failure("no use"))


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProcessError, match="cannot start /no/such/program"):
        processes.start("nobody", ["/no/such/program"], log_path=tmp_path / "log")


def test_who_does_not_end_when_asked_is_killed_with_its_children(tmp_path: Path) -> None:
    child = processes.start("stubborn", [sys.executable, "-c", STUBBORN], log_path=tmp_path / "log")
    grandchild = until(lambda: ProcessId.of(int(child.tail(1))), 30, "the grandchild", retry_on=(ValueError,))
    assert grandchild is not None
    assert child.stop(deadline_s=0.1) == -signal.SIGKILL
    until(lambda: not grandchild.alive(), 30, "the grandchild to be gone")


def test_a_child_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[Child] = []
    thread = threading.Thread(
        target=lambda: started.append(processes.start("t", ["sleep", "600"], log_path=tmp_path / "log"))
    )
    thread.start()
    thread.join()
    (child,) = started
    with pytest.raises(ProcessError, match=r"within 0\.3 s"):
        processes.wait_until(lambda: False, seconds=0.3, children=[child], what="nothing")
    assert child.running()
    assert child.stop() == -signal.SIGTERM


def test_a_process_id_with_another_start_time_is_never_signalled(sleeper: Child) -> None:
    impostor = ProcessId(sleeper.pid, "0/0")
    assert not impostor.alive()
    assert not impostor.send(signal.SIGKILL)
    impostor.stop(deadline_s=0.1)
    assert sleeper.running()


def test_down_stops_what_was_recorded_and_spares_who_has_its_number_now(sleeper: Child, tmp_path: Path) -> None:
    environment = Environment("mine", environ={"XDG_STATE_HOME": str(tmp_path)})
    own = processes.start("own", ["sleep", "600"], log_path=tmp_path / "own.log", detached=True)
    environment.record(own)
    recycled = Child("recycled", (), tmp_path / "log", sleeper.process, ProcessId(sleeper.pid, "0/0"))
    environment.record(recycled)
    assert [each.running() for each in environment.processes()] == [True, False]
    with pytest.raises(StateError, match="still runs own"):
        environment.remove()
    assert environment.stop() == ["own"]
    assert own.process.wait(30) == -signal.SIGTERM
    assert sleeper.running()
    environment.remove()
    assert not environment.directory.exists()


@pytest.mark.parametrize("name", ["", "..", "a/b", "Caps", "-dash", "x" * 41])
def test_a_name_that_would_leave_the_state_folder_is_refused(name: str) -> None:
    with pytest.raises(StateError, match="environment's name"):
        Environment(name)


def test_two_commands_do_not_work_on_one_environment_at_once(tmp_path: Path) -> None:
    environ = {"XDG_STATE_HOME": str(tmp_path)}
    with (
        Environment(environ=environ).exclusive(),
        pytest.raises(StateError, match="another command is at work"),
        Environment(environ=environ).exclusive(),
    ):
        pytest.fail("both got in")


def test_free_ports_differ_and_can_be_bound() -> None:
    ports = [processes.free_port() for _ in range(50)]
    assert len(set(ports)) == 50
    for port in ports:
        with socket.socket() as server:
            server.bind(("127.0.0.1", port))


def test_scratch_folders_of_the_dead_are_cleared_and_those_of_the_living_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine = processes.scratch_directory("almoner-test-")
    dead = processes.scratch_directory("almoner-test-")
    (dead / processes.OWNER_FILE).write_text('{"pid": 1, "started": "long ago"}')
    foreign = tmp_path / "almoner-test-foreign"
    foreign.mkdir()
    assert processes.scratch_directory("almoner-test-").is_dir()
    assert (mine.exists(), dead.exists(), foreign.exists()) == (True, False, True)
