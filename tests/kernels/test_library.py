"""Compiling, keeping and loading machine code, and what happens where that cannot be done."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

import seriatim
from seriatim.kernels.cpu import library
from seriatim.kernels.cpu.library import KernelError, cache_folder, is_cached, load, sources


def python(code, **environment):
    """Runs a program in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def test_import_does_not_load_the_compiler():
    done = python(
        """
        import sys, torch, seriatim as sq
        x = torch.randn(2, 9, 16)
        sq.build("gla", dim=16, heads=2)(x)
        sq.ops.backend("cpu")
        print("numba" in sys.modules)
        """
    )
    assert done.stdout.split()[-1] == "False", done.stderr


def test_the_first_use_says_what_it_compiles_and_the_second_says_nothing(tmp_path):
    code = 'from seriatim.kernels.cpu.library import load; print(len(load("probe")))'
    first = python(code, SERIATIM_CACHE=str(tmp_path))
    second = python(code, SERIATIM_CACHE=str(tmp_path))
    assert first.stdout == second.stdout == "5\n"
    assert first.stderr.startswith("seriatim: compiling probe for this processor, once ...")
    assert first.stderr.endswith(" s\n")
    assert first.stderr.count("\n") == 1
    assert second.stderr == ""


def test_a_damaged_entry_is_compiled_again(tmp_path):
    code = 'from seriatim.kernels.cpu.library import load; print(len(load("probe")))'
    python(code, SERIATIM_CACHE=str(tmp_path))
    (entry,) = (tmp_path / "kernels").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    done = python(code, SERIATIM_CACHE=str(tmp_path))
    assert "compiling probe" in done.stderr
    assert done.stdout == "5\n"
    assert python(code, SERIATIM_CACHE=str(tmp_path)).stderr == ""


def test_a_cache_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code = 'from seriatim.kernels.cpu.library import load; print(len(load("probe")))'
    done = python(code, SERIATIM_CACHE=str(tmp_path / "file"))
    assert done.stdout == "5\n"
    assert done.stderr.count("compiled kernels cannot be kept in") == 1


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        ('sys.modules["numba"] = None', "numba cannot be imported"),
        ("library.find_spec = lambda name: None", "numba cannot be imported"),
        ('sys.executable = "/nowhere/python"', "the compiler's process did not start"),
    ],
)
def test_without_the_compiler_pytorch_does_the_work_after_one_warning(tmp_path, break_it, reason):
    done = python(
        f"""
        import sys, warnings
        from seriatim.kernels.cpu import library
        {break_it}
        import torch, seriatim as sq
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = torch.randn(2, 9, 16)
            for name in ("gla", "mamba", "lstm"):
                sq.build(name, dim=16)(x)[0].sum().backward()
            print(len(caught), caught[0].message)
        """,
        SERIATIM_CACHE=str(tmp_path),
    )
    assert done.stdout.startswith("1 no compiled CPU kernels, PyTorch does their work instead:"), done.stderr
    assert reason in done.stdout


def test_a_source_that_does_not_compile_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("SERIATIM_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "_read_by", lambda name: [])
    with pytest.raises(KernelError, match=r"compiling nosuch failed: ModuleNotFoundError: .*nosuch"):
        load("nosuch")


def test_warmup_compiles_everything_that_is_there(capsys):
    from seriatim.cli import main

    assert main(["warmup", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [entry["kernels"] for entry in answer["kernels"]] == sources()
    assert answer["folder"] == str(cache_folder())
    assert all(is_cached(name) for name in sources())


def test_every_source_has_its_operator_beside_it():
    folder = library.SOURCE.parent
    without = {"probe"}  # measures and tests the pieces
    beside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert [name for name in sources() if name not in without and name not in beside] == []


def test_an_unknown_backend_is_refused():
    with pytest.raises(seriatim.core.errors.SeriatimError, match="backend is 'numba'; it must be one of"), \
         seriatim.ops.backend("numba"):  # fmt: skip
        torch.zeros(1)
