"""Workers do not run the parent's script, and end when they should."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from semisynth import processes

SCRIPT = """
import math
from semisynth import processes
print("ran")
with processes.pool(2) as pool:
    print(sorted(pool.map(math.factorial, range(4))))
print(__file__ != "", __spec__)
"""


def test_a_script_needs_no_guard(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    found = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    assert found.stdout == "ran\n[1, 1, 2, 6]\nTrue None\n" and found.stderr == ""


@pytest.mark.parametrize("patient", [False, True])
def test_what_runs_is_waited_for_only_by_the_patient(patient):
    seconds, began = (0.5, time.perf_counter()) if patient else (60, time.perf_counter())
    with pytest.raises(KeyError), processes.pool(1, patient=patient) as pool:
        assert pool.submit(os.getpid).result() != os.getpid()
        running = pool.submit(time.sleep, seconds)
        while not running.running():
            time.sleep(0.01)
        raise KeyError
    assert time.perf_counter() - began < 40
    assert running.done() and (running.exception() is None) == patient
