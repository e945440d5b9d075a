"""What a process started through `watched.py` ends with it, however it ends."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import until

from kd.system import watched

#: Starts a sleeper through watched.py, prints the sleeper's id, and waits.
PARENT = f"""
import subprocess, sys
child = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
watching = [sys.executable, "-P", {watched.__file__!r}, *child]
subprocess.Popen(watching, stdin=subprocess.PIPE).wait()
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_process_takes_what_it_started_with_it():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        sleeper = int(parent.stdout.readline())
        assert psutil.pid_exists(sleeper)
        parent.send_signal(signal.SIGKILL)
    until(lambda: not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == "zombie", "its end", 60)


def test_the_code_of_the_command_is_passed_on():
    command = [sys.executable, "-P", watched.__file__, sys.executable, "-c", "raise SystemExit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait() == 7
