"""The benchmark: how it times and compares, what it leaves, what it refuses, and that every row can be built."""

import itertools
import json
import subprocess
import warnings
from types import SimpleNamespace

import pytest
import torch
from command_line import COMMAND, ENVIRONMENT

from seriatim.cli.bench import clock, counts, main_job
from seriatim.cli.bench import measure as measuring
from seriatim.cli.bench.agreement import relative_error
from seriatim.cli.bench.clock import Spread, Timing, alternate, spread
from seriatim.cli.bench.differentiated import Differentiated
from seriatim.cli.bench.limits import Limits, best, measure_limits
from seriatim.cli.bench.measure import Row, measure, missing
from seriatim.cli.bench.work import NotAvailableError, Pair, Peer, Target, Work

LIMITS = Limits(peak=1e9, peak_by="a test", bandwidth=1e9, cache_bandwidth=2e9)


class Hours:
    """A clock that goes on only while something works; `calls` is who worked."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self):
        return self.now

    def work(self, name, *seconds):
        left = itertools.cycle(seconds)

        def run():
            self.calls.append(name)
            self.now += next(left)
            return [torch.ones(1)]

        return run


def pair(ours=lambda: [torch.ones(3)], peer=lambda: [torch.ones(3)], compare=True, **more):
    return Pair(ours=ours, peer=peer, compare=(lambda: (ours(), peer())) if compare else None, **more)


def work(make=pair, name="toil", target=None, packages=(), note=""):
    return Work(name, "T 3", Peer("a rival", packages), make, target, note)


def timed(ratio, seconds=0.5):
    return Timing(Spread(seconds, seconds, seconds), Spread(1.0, 1.0, 1.0), Spread(*ratio), 5)


def test_sides_take_turns_and_the_ratio_is_of_neighbours():
    hours = Hours()
    timing = alternate(hours.work("ours", 1.0), hours.work("peer", 3.0), seconds=0.0, most=25, clock=hours)
    assert timing == Timing(Spread(1.0, 1.0, 1.0), Spread(3.0, 3.0, 3.0), Spread(3.0, 3.0, 3.0), 3)
    order = ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]  # the first two are not counted
    assert hours.calls == order
    hours = Hours()
    drifting = alternate(
        hours.work("ours", 9, 1, 2, 4), hours.work("peer", 9, 2, 4, 8), seconds=0.0, most=25, clock=hours
    )
    assert drifting.ratio.low == drifting.ratio.median == drifting.ratio.high == 2.0
    assert drifting.ours.median == 2.0


def test_measuring_ends_with_the_time_or_the_repeats_and_short_work_is_repeated():
    for seconds, most, pairs in ((40.0, 25, 9), (1000.0, 5, 5), (0.0, 2, 2)):
        hours = Hours()
        assert alternate(hours.work("ours", 1.0), hours.work("peer", 3.0), seconds, most, hours).pairs == pairs
    hours = Hours()
    timing = alternate(hours.work("ours", clock.SAMPLE / 8), hours.work("peer", 1.0), 0.0, 3, hours)
    assert hours.calls.count("ours") == 1 + 3 * 8
    assert hours.calls.count("peer") == 1 + 3
    assert timing.ratio.median == pytest.approx(8 / clock.SAMPLE)


def test_spread_is_median_and_quartiles():
    assert spread([5.0]) == (5.0, 5.0, 5.0)
    assert spread([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)


def test_relative_error_sees_every_tensor_and_every_part():
    ones, turned = torch.ones(4), torch.complex(torch.ones(2), torch.zeros(2))
    assert relative_error([ones, ones], [ones, ones.clone()]) == 0
    assert relative_error([ones, 1.5 * ones], [ones, ones]) == pytest.approx(0.5)
    assert relative_error([turned + 0.5j], [turned]) == pytest.approx(0.5)
    assert relative_error([ones], [torch.tensor([1.0, 1.0, 1.0, float("nan")])]) == float("inf")
    assert relative_error([ones], [0 * ones]) == float("inf")
    with pytest.raises(ValueError, match="shapes"):
        relative_error([ones], [torch.ones(5)])
    with pytest.raises(ValueError, match="shapes"):
        relative_error([ones], [ones, ones])


def test_a_call_is_differentiated_with_respect_to_all_it_reads():
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    x, cotangent = torch.tensor([5.0, 7.0]), torch.tensor([1.0, 10.0])
    both = Differentiated(lambda x: weight * x, [x], cotangent=cotangent, parameters=[weight])
    out, d_x, d_weight = both()
    assert [z.tolist() for z in (out, d_x, d_weight)] == [[10.0, 21.0], [2.0, 30.0], [5.0, 70.0]]
    assert both.bytes(out) == 3 * 16 + 2 * 8
    forward = Differentiated(lambda x: 2 * x, [x], backward=False)
    assert len(forward()) == 1
    assert not forward()[0].requires_grad
    assert forward.bytes(x) == 8 + 8


def test_operations_are_counted():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))
    assert counts.linear(layers, tokens=7) == 2 * 7 * (12 + 20)
    assert counts.training(10.0) == 30.0
    # One token, one head: S = a S, S + k v^T, S^T q, of K V each, two operations where numbers are added up.
    assert counts.matrix(1, 1, 2, 3, decays=True) == (1 + 2 + 2) * 6
    assert counts.delta(1, 1, 2, 3, decays=True) == (1 + 2 + 2 + 2) * 6
    # A chunk: half of C^2 scores of K, half of C^2 of V, two products of C K V.
    size = counts.CHUNK
    assert counts.chunked_matrix(size, 1, 2, 3) == size * size * (2 + 3) + 2 * size * 2 * 2 * 3


def test_a_missing_peer_is_said_in_a_line():
    row = measure(work(packages=("no-such-package", "torch")), 1.0, 3)
    assert (row.status, row.reason.count("\n")) == ("left out", 0)
    assert "no-such-package not installed (pip install 'seriatim[bench]')" in row.reason
    assert missing(work(packages=("torch",))) == []


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NotAvailableError("no such op"), "not available", "no such op"),
        (ImportError("libcuda.so\nmore"), "left out", "a rival cannot be imported: ImportError: libcuda.so"),
        (AttributeError("'x' has no 'y'\nmore"), "failed", "AttributeError: 'x' has no 'y'"),
    ],
)
def test_what_goes_wrong_is_a_line_and_no_traceback(error, status, reason):
    def make():
        raise error

    row = measure(work(make), 1.0, 3)
    assert (row.status, row.reason) == (status, reason)
    assert ("Traceback" in row.details) == (status == "failed")


def test_sides_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.setattr(measuring, "alternate", lambda *_: pytest.fail("timed"))
    wrong = measure(work(lambda: pair(peer=lambda: [torch.full((3,), 1.01)])), 1.0, 3)
    assert wrong.status == "disagrees"
    assert wrong.error == pytest.approx(0.01 / 1.01, rel=1e-3)
    assert wrong.timing is None
    assert measure(work(lambda: pair(peer=lambda: [torch.full((3,), float("nan"))])), 1.0, 3).status == "disagrees"


def test_what_our_side_warns_of_is_kept_and_shown(seriatim, toys):
    def ours():
        warnings.warn("the kernels are asleep", stacklevel=1)
        return [torch.ones(3)]

    toys[0] = work(lambda: pair(ours=ours), "warning toil")
    result = seriatim("bench", "ops", "--only", "warning", "--repeats", 2)
    assert "#1  UserWarning: the kernels are asleep" in result.out
    assert result.err.count("the kernels are asleep") == 1


def test_sides_that_agree_or_compute_different_things_are_timed():
    near = measure(work(lambda: pair(peer=lambda: [torch.full((3,), 1.0001)])), 0.0, 3)
    assert (near.status, near.timing.pairs) == ("measured", 3)
    other = measure(work(lambda: pair(peer=lambda: None, compare=False)), 0.0, 3)
    assert (other.status, other.error) == ("measured", None)


def test_a_target_is_held_by_the_median_or_by_the_share_of_the_peak():
    def row(target, ratio=(1.0, 2.0, 9.0), flops=3e8):
        return Row(work(target=target), "measured", timing=timed(ratio), pair=pair(flops=flops))

    assert row(Target(2.0)).holds(LIMITS) is True
    assert row(Target(2.1)).holds(LIMITS) is False
    assert row(Target(0.6, "peak")).holds(LIMITS) is True  # 3e8 operations in half a second
    assert row(Target(0.61, "peak")).holds(LIMITS) is False
    assert row(None).holds(LIMITS) is None
    assert Row(work(target=Target(2.0)), "failed").holds(LIMITS) is None
    plain = row(Target(2.1)).plain(LIMITS, judged=False)
    assert (plain["gflops"], plain["share_of_peak"], plain["holds"]) == (0.6, 0.6, None)


def test_limits_are_the_best_that_was_seen():
    first, second = Limits(5.0, "a", 1.0, 9.0), Limits(4.0, "b", 2.0, 8.0)
    assert best(first, second) == Limits(5.0, "a", 2.0, 9.0)


def test_limits_are_measured(monkeypatch):
    monkeypatch.setattr("seriatim.cli.bench.limits.LARGE", 1 << 24)
    monkeypatch.setattr("seriatim.cli.bench.limits._micro_kernel", lambda: (1.0, "too slow"))
    limits = measure_limits()
    assert limits.peak_by == "PyTorch's product"
    assert limits.peak > 1e8
    assert min(limits.bandwidth, limits.cache_bandwidth) > 1e7


@pytest.fixture
def toys(monkeypatch, tmp_path):
    """Four rows in place of the real ones, and no time spent on the machine's limits; works in an empty folder."""
    rows = [
        work(lambda: pair(flops=1e3, bytes=1e2, least_flops=5e2, parameters=(7, 9)), "quick toil", Target(1e-9)),
        work(lambda: pair(compare=False, flops=1e3, bytes=1e3), "slow toil", Target(1e9), note="a short one"),
        work(name="lost toil", packages=("no-such-package",)),
        work(lambda: pair(flops=2e3, bytes=5e1), "dense toil", Target(500, "peak")),
    ]
    monkeypatch.setattr(main_job, "KINDS", {"ops": [SimpleNamespace(works=lambda quick: rows)]})
    monkeypatch.setattr(main_job, "measure_limits", lambda: LIMITS)
    monkeypatch.setattr(clock, "SAMPLE", 1e-4)
    monkeypatch.setattr(clock.gc, "collect", lambda: 0)  # of all that other tests have left
    monkeypatch.chdir(tmp_path)
    return rows


def test_a_run_leaves_a_table_figures_and_pictures(seriatim, toys, tmp_path):
    result = seriatim("bench", "ops", "--repeats", 4)
    assert result.status == 0, result.err
    folder = tmp_path / "runs/bench-ops"
    for line in (
        "quick toil",
        "T 3; 7e-06 and 9e-06 M parameters",
        "holds",
        "DOES NOT HOLD",
    ):
        assert line in result.out
    assert "#3  left out: no-such-package not installed (pip install 'seriatim[bench]')" in result.out
    assert "#2  a rival: a short one" in result.out
    assert "1 of 3 targets hold." in result.out
    assert (folder / "table.txt").read_text() in result.out
    figures = json.loads((folder / "bench.json").read_text())
    assert [row["status"] for row in figures["rows"]] == ["measured", "measured", "left out", "measured"]
    first = figures["rows"][0]
    assert first["our_seconds"]["low"] <= first["our_seconds"]["median"] <= first["our_seconds"]["high"]
    assert first["gflops"] == pytest.approx(1e3 / first["our_seconds"]["median"] / 1e9)
    assert first["recurrence_share_of_peak"] == pytest.approx(first["share_of_peak"] / 2)
    assert [row["holds"] for row in figures["rows"][:3]] == [True, False, None]
    assert figures["machine"]["threads"] == 1
    for picture in ("ratios.png", "roofline.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert len(result.err.splitlines()) == 4


def test_nothing_is_overwritten_unasked(seriatim, refused, toys, tmp_path):
    only = ["bench", "ops", "--only", "QUICK", "--repeats", 2]
    for _ in range(2):
        assert seriatim(*only).status == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["bench-ops", "bench-ops-2"]
    first = tmp_path / "runs/bench-ops"
    refused("which is not empty", *only, "--out", first)
    before = (first / "bench.json").stat().st_mtime_ns
    assert seriatim(*only, "--out", first, "--overwrite").status == 0
    assert (first / "bench.json").stat().st_mtime_ns > before
    (first / "notes").write_text("mine")
    refused("does not hold a benchmark", *only, "--out", first, "--overwrite")
    refused("is a file", *only, "--out", first / "notes")
    assert (first / "notes").read_text() == "mine"


def test_options_choose_rows_and_wrong_ones_are_named_before_any_work(seriatim, refused, toys, tmp_path):
    listed = seriatim("bench", "ops", "--list")
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == ["quick", "slow", "lost", "dense"]
    assert "no-such-package not installed" in listed.out
    assert "50000% of peak" in listed.out
    refused("WHAT is not given", "bench")
    refused("it must be one of ops", "bench", "oops")
    refused("no regular expression", "bench", "ops", "--only", "(")
    refused("finds no row", "bench", "ops", "--only", "nothing like it")
    refused("threads is 0", "bench", "ops", "--threads", 0)
    refused("threads is 9999", "bench", "ops", "--threads", 9999)
    refused("repeats is 0", "bench", "ops", "--repeats", 0)
    refused("budget is -1", "bench", "ops", "--budget", -1)
    assert not list(tmp_path.iterdir())


def test_quick_runs_judge_nothing(seriatim, toys):
    result = seriatim("bench", "ops", "--quick", "--repeats", 2)
    assert result.status == 0
    assert "nothing is judged" in result.out
    assert "hold." not in result.out


def test_a_disagreement_is_the_rows_result_and_the_status(seriatim, toys):
    toys.append(work(lambda: pair(peer=lambda: [torch.zeros(3)]), "wrong toil"))
    result = seriatim("bench", "ops", "--only", "toil", "--repeats", 2)
    assert result.status == 1
    assert "DISAGREES" in result.out
    assert "#5  disagrees: relative error inf, more than 0.001: not timed" in result.out


def test_without_time_rows_are_skipped_and_said(seriatim, toys):
    ticking = Hours()
    toys.insert(0, work(lambda: pair(ours=ticking.work("x", 1.0), compare=False), "first toil"))
    result = seriatim("bench", "ops", "--budget", 1e-9)
    assert result.status == 0
    assert "skipped: no time was left; give a larger --budget" in result.out


def test_ctrl_c_keeps_what_was_measured(seriatim, toys, tmp_path):
    def stop():
        raise KeyboardInterrupt

    toys.insert(1, work(stop, "endless toil"))
    result = seriatim("bench", "ops", "--repeats", 2)
    assert result.status == 130
    assert "what was measured until then is in runs/bench-ops" in result.err
    figures = json.loads((tmp_path / "runs/bench-ops/bench.json").read_text())
    assert [row["work"] for row in figures["rows"]] == ["quick toil"]


def test_threads_are_those_asked_for_and_given_back(seriatim, toys, monkeypatch):
    monkeypatch.setattr(main_job, "cores", lambda: 4)
    seen = []
    toys[0] = work(lambda: pair(ours=lambda: seen.append(torch.get_num_threads()), compare=False), "counting toil")
    before = torch.get_num_threads()
    assert seriatim("bench", "ops", "--only", "counting", "--threads", 3, "--repeats", 2).status == 0
    assert set(seen) == {3}
    assert torch.get_num_threads() == before


REAL = {str(w): w for modules in main_job.KINDS.values() for module in modules for w in module.works(True)}


ALONE = [name for name, row in REAL.items() if not row.peer.packages]


@pytest.mark.parametrize("name", ALONE, ids=str)
def test_rows_that_need_no_package_agree_and_run(name):
    row = measure(REAL[name], 0.0, 1)
    assert row.status == "measured", f"{row.reason}\n{row.details}"
    assert row.warnings == []
    assert row.error <= 1e-4
    assert row.pair.flops > 0


def test_every_row_is_there_once_in_both_sizes():
    for quick in (False, True):
        rows = [str(w) for modules in main_job.KINDS.values() for module in modules for w in module.works(quick)]
        assert len(rows) == len(set(rows)) > 40
    full = [w for modules in main_job.KINDS.values() for module in modules for w in module.works(False)]
    wanted = {"10x", "300x", "4x", "1.5x", "2x", "25x", "50x", "3x", "40% of peak", "8x", "1x", "5x"}
    assert {str(w.target) for w in full if w.target} == wanted


def test_peers_that_are_installed_agree():
    chosen = [row for row in REAL.values() if row.peer.packages and "scan" in row.name and not missing(row)]
    if not chosen:
        pytest.skip("none of the peers is installed")
    found = [measure(row, 0.0, 1) for row in chosen]
    assert [row.reason for row in found if row.status != "measured"] == []


def test_help_does_not_wait_for_torch():
    command = [COMMAND[0], "-X", "importtime", *COMMAND[1:], "bench", "--help"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "seriatim.cli" in imported
    assert not imported & {"torch", "numpy", "numba", "rich"}
