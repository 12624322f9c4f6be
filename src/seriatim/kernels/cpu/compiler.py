"""The compiler's process: `python -m seriatim.kernels.cpu.compiler OP OUTPUT` writes the machine code of source/OP.py.

numba makes LLVM's form of each kernel without optimising it; LLVM then optimises the whole for this processor, with
vectors as wide as it has (numba alone would use half of a 512-bit machine). The caller's process never imports numba.
"""

import importlib
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

__all__ = ["compile_source", "main"]

# numba counts references to arrays. Views of memory that the caller holds have none to count.
_REFERENCE_COUNTS = re.compile(
    r"(?<=^define linkonce_odr void @NRT_)((?:incref|decref)\(.*?\)[^{]*?)\{.*?^\}", re.M | re.S
)


def compile_source(name: str) -> tuple[dict[str, Any], bytes]:
    """The kernels of source/<name>.py: their argument types, and the object file that holds their code."""
    os.environ["NUMBA_OPT"] = "0"  # before numba is imported: LLVM's passes run below, once, on everything together
    import llvmlite.binding as llvm

    from seriatim.kernels.cpu.source import language

    source = importlib.import_module(f"seriatim.kernels.cpu.source.{name}")
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module, symbols = llvm.parse_assembly(""), {}
    module.triple = llvm.get_process_triple()
    for python in [value for value in vars(source).values() if getattr(value, "is_kernel", False)]:
        compiled = language.entry(python)
        part = llvm.parse_assembly(_REFERENCE_COUNTS.sub(r"\1{ ret void }", compiled.inspect_llvm()))
        symbol = f"seriatim_{name}_{python.__name__}"
        _keep_only(part, compiled.native_name, symbol)
        module.link_in(part)
        kinds = list(python.__annotations__.values())[2:]
        symbols[python.__name__] = {"symbol": symbol, "arguments": [_letter(kind) for kind in kinds]}
    return symbols, _optimised(llvm, module)


def _keep_only(part: Any, native: str, symbol: str) -> None:
    """Makes everything private but the function `native`, which becomes `symbol`: what nobody calls then goes away."""
    for function in part.functions:
        if function.name == native:
            function.name = symbol
        elif not function.is_declaration:
            function.linkage = "internal"
    for variable in part.global_variables:
        if not variable.is_declaration:
            variable.linkage = "internal"


def _letter(kind: Any) -> str:
    """How a launch packs an argument: the letter of its dtype, then its dimensions."""
    dtype = getattr(kind, "dtype", kind)
    letter = {"float32": "f", "int64": "i", "bool": "b"}[str(dtype)]
    return letter + (str(kind.ndim) if hasattr(kind, "ndim") else "")


def _optimised(llvm: Any, module: Any) -> bytes:
    """The machine code, for the processor this runs on."""
    # LLVM prefers half-width vectors on 512-bit machines, for the sake of code that uses few of them. This is not such.
    features = llvm.get_host_cpu_features().flatten() + ("" if "x86" not in module.triple else ",-prefer-256-bit")
    target = llvm.Target.from_triple(module.triple)
    machine = target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=3, reloc="pic", codemodel="default"
    )
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = tuning.loop_interleaving = True
    builder = llvm.create_pass_builder(machine, tuning)
    passes = builder.getModulePassManager()
    passes.run(module, builder)
    if os.environ.get("SERIATIM_KERNEL_IR"):
        Path(os.environ["SERIATIM_KERNEL_IR"]).write_text(str(module) + machine.emit_assembly(module))
    return machine.emit_object(module)


def main() -> None:
    """Writes the length of the table of kernels, the table as JSON, and the object file."""
    name, output = sys.argv[1:]
    symbols, code = compile_source(name)
    table = json.dumps(symbols).encode()
    Path(output).write_bytes(struct.pack("<q", len(table)) + table + code)


if __name__ == "__main__":
    main()
