"""The small parts: settings, schedules, groups, generators, devices, the log, what is shown."""

import io
import json
import random
import signal
import subprocess
import sys
from dataclasses import fields
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.train import generators
from seriatim.train.display import Bar, Lines, choose_display
from seriatim.train.hardware import autocast, check_compiler, choose_device, multiplies_bfloat16
from seriatim.train.interrupt import Interrupt
from seriatim.train.log import JsonLines, read_log
from seriatim.train.optimiser import adamw, parameter_groups
from seriatim.train.schedules import SCHEDULES, learning_rate_share
from seriatim.train.settings import TrainSettings

shares = st.floats(0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 0}, "steps and minutes are both 0"),
        ({"warmup": 1.5}, "warmup is 1.5"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"schedule": "cosin"}, "schedule is 'cosin'; it must be one of cosine"),
        ({"precision": "float16"}, "precision is 'float16'"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"patience": 2, "evaluate_every": 0}, "patience is 2 and evaluate_every is 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(SeriatimError, match=message):
        TrainSettings(**options)


def test_every_setting_has_help_and_is_plain():
    assert all(len(field.metadata["help"]) > 10 for field in fields(TrainSettings))
    assert TrainSettings(**json.loads(json.dumps(TrainSettings().plain()))) == TrainSettings()
    assert "minutes" in TrainSettings.free()
    assert "learning_rate" not in TrainSettings.free()


@given(schedule=st.sampled_from(SCHEDULES), progress=shares, warmup=shares, final=shares)
def test_a_learning_rate_stays_in_bounds(schedule, progress, warmup, final):
    share = learning_rate_share(schedule, progress, warmup, final)
    assert 0 <= share <= 1 + 1e-12
    if progress >= warmup:
        assert share >= final - 1e-12


def test_learning_rates_rise_and_fall():
    def at(schedule, *places):
        return [learning_rate_share(schedule, place, 0.2, 0.1) for place in places]

    assert at("cosine", 0.1, 0.2, 0.6, 1.0) == pytest.approx([0.5, 1.0, 0.55, 0.1])
    assert at("cosine", 0.4) == pytest.approx([0.1 + 0.9 * 0.853553])
    assert at("linear", 0.1, 0.2, 0.4, 1.0) == pytest.approx([0.5, 1.0, 0.775, 0.1])
    assert at("constant", 0.1, 0.2, 1.0) == pytest.approx([0.5, 1.0, 1.0])
    assert learning_rate_share("cosine", 7.0, 0.2, 0.1) == pytest.approx(0.1)


def test_only_matrices_decay():
    model = build(
        "language_model", vocab_size=11, dim=8, layers=["mamba", {"mixer": "gla", "heads": 2}], tie_embeddings=False
    )
    model.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
    model.odd = nn.LayerNorm((2, 2))
    decayed, kept = parameter_groups(model, 0.1)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    decayed_names, kept_names = ({name_of[p] for p in group["params"]} for group in (decayed, kept))
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert decayed_names | kept_names == set(name_of.values()) - {"frozen"}
    assert "head.weight" in decayed_names
    assert {"embedding.weight", "out_norm.weight", "odd.weight"} <= kept_names
    assert any(name.endswith("A_log") for name in kept_names)
    gla = "stack.blocks.1.mixer"
    assert {f"{gla}.gate_down.weight", f"{gla}.gate_up.weight", f"{gla}.out_gate.weight"} <= kept_names
    assert {f"{gla}.qkv.weight", "stack.blocks.1.feed_forward.inner.weight"} <= decayed_names
    assert not any(name.endswith(("bias", "A_log")) or "norm" in name for name in decayed_names)


def test_tied_weights_are_updated_once_and_decay_does_what_it_says():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    before = model[0].weight.detach().clone()
    optimiser = adamw(model, TrainSettings(learning_rate=0.5, weight_decay=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    torch.testing.assert_close(model[0].weight, before * 0.95)


def test_the_command_line_can_read_the_settings_without_torch():
    light = "seriatim.train.settings, seriatim.train.run_folder, seriatim.data.corpus, seriatim.data.tokenizer"
    code = f"import sys, {light}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_generators_go_on_where_they_were():
    def draw():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]

    generators.seed(3)
    first = draw()
    kept = generators.capture()
    second = draw()
    generators.restore(kept)
    assert draw() == second
    generators.seed(3)
    assert draw() == first


def test_devices_are_checked():
    assert choose_device("cpu").type == "cpu"
    for name in ("cuda:99", "abacus"):
        with pytest.raises(SeriatimError, match=f"device is '{name}'"):
            choose_device(name)


def test_precision():
    layer, x = nn.Linear(4, 4), torch.ones(1, 4)
    cpu = torch.device("cpu")
    auto = torch.bfloat16 if multiplies_bfloat16(cpu) else torch.float32
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", auto)):
        with autocast(precision, cpu):
            assert layer(x).dtype == dtype


def test_a_log_goes_on_without_double_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    with JsonLines(path) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": step / 3})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    with JsonLines(path, step=2) as log:
        log.write({"step": 3, "loss": 0.5})
        assert [record["step"] for record in read_log(path)] == [1, 2, 3]  # there before it is closed
    assert [record["loss"] for record in read_log(path)] == [1 / 3, 2 / 3, 0.5]


def test_lines_are_shown_in_a_pipe():
    out = io.StringIO()
    record = {"step": 5, "loss": 1.5, "tokens_per_second": 12345.6, "seconds": 10.0, "validation_bits_per_byte": 2.25}
    with Lines(Console(file=out, width=200)) as shown:
        shown.update(0.25, record)
    assert out.getvalue() == "step 5  loss 1.5000  12,346 tokens/s  validation bits per byte 2.2500  0:00:30 left\n"


def test_the_bar_shows_the_same():
    out = io.StringIO()
    record = {"step": 5, "loss": 1.5, "tokens_per_second": 12345.6, "seconds": 10.0}
    with Bar(Console(file=out, width=120, force_terminal=True)) as shown:
        shown.update(0.25, record)
        shown.say("a line [of] text")
    assert "loss 1.5000" in out.getvalue()
    assert "a line [of] text" in out.getvalue()


def test_a_display_is_chosen(capsys):
    with choose_display("silent") as shown:
        shown.say("nothing")
    with choose_display("auto") as shown:
        shown.say("something")
    assert capsys.readouterr().err == "something\n"


def test_the_first_interrupt_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_in_another_thread_is_left_alone():
    entered = []

    def work():
        with Interrupt() as interrupt:
            entered.append(interrupt.requested)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [False]


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SeriatimError, match=r"compile is true.*no no-such-compiler was found"):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))
    monkeypatch.setenv("CXX", sys.executable)
    check_compiler(torch.device("cpu"))
