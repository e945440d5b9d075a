"""Runs a command only for as long as the process that started this one lives: `python watched.py command ...`.

That process holds the other end of this one's standard input. It closes however the process ends, SIGKILL included, and
then the command and all its children are ended. A script of its own: it must start fast and imports nothing of ours.
"""

import os
import signal
import subprocess
import sys
import threading
import time

GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def main() -> None:
    """Run the command to its end, or until the standard input closes; exits with its code."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # this process ends after its command; unlike SIG_IGN not inherited
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # so that the command's own children can be ended with it; a terminal's Ctrl-C is the caller's
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    sys.exit(process.wait())


def _end_with_input(process: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock would be held at the end of this process
        pass
    if hasattr(os, "killpg") and hasattr(signal, "SIGKILL"):
        os.killpg(os.getpgrp(), signal.SIGTERM)
        time.sleep(GRACE)
        os.killpg(os.getpgrp(), signal.SIGKILL)
    else:  # Windows
        process.terminate()


if __name__ == "__main__":
    main()
