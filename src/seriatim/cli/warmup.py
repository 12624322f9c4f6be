"""Compiles the CPU kernels ahead of their first use, so that nothing waits later.

Kernels are compiled for this processor once and kept on disk. Without this command each waits for its first use.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from seriatim.cli.parsing import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """Whether to do what is done already, and the form of the answer."""
    parser.add_argument("--again", action="store_true", help="compile also what is compiled already")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Any) -> int:
    """Compiles several at once, and prints a line for each."""
    from seriatim.kernels.cpu.library import KernelError, cache_folder, compile_now, is_cached, sources

    def one(name: str) -> dict[str, Any]:
        try:
            if is_cached(name) and not options.again:
                return {"kernels": name, "done": "ready already"}
            return {"kernels": name, "done": "compiled", "seconds": round(compile_now(name)[1], 1)}
        except KernelError as error:
            return {"kernels": name, "done": "failed", "reason": str(error)}

    answers = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for answer in pool.map(one, sources()):
            answers.append(answer)
            if not options.json:
                detail = f" in {answer['seconds']} s" if "seconds" in answer else ""
                detail += f": {answer['reason']}" if "reason" in answer else ""
                print(f"{answer['kernels']:<16} {answer['done']}{detail}", flush=True)
    if options.json:
        print(json.dumps({"folder": str(cache_folder()), "kernels": answers}, indent=2))
    else:
        print(f"kept in {cache_folder()}")
    return 1 if any(answer["done"] == "failed" for answer in answers) else 0
