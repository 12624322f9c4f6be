import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_language import final_weights

from seriatim.train.log import read_log


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has neither fork nor SIGKILL")
def test_killed_ten_times_it_ends_with_the_same_weights(tmp_path):
    server = Path(__file__).with_name("kill_server.py")
    command = [sys.executable, str(server), str(tmp_path), "10", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) >= 5, "most children should die before they end"
    whole, cut = final_weights(tmp_path / "whole"), final_weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    logs = [_figures(tmp_path / name / "log.jsonl") for name in ("whole", "cut")]
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[1]] == list(range(1, 81))
    assert _files(tmp_path / "whole") == _files(tmp_path / "cut")


def _figures(path):
    """The log without what the clock says."""
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_log(path)]


def _files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
