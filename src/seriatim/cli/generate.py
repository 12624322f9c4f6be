"""Writes on from a prompt, or from a saved state without reading its past again. Text is printed as it arrives.

A prompt given by --prompt is printed before what follows it, one from a file is not. Without any a new document begins.
"""

import sys
import time
from dataclasses import fields
from shlex import quote
from typing import TYPE_CHECKING, Any

from seriatim.cli.files import check_writable, read_bytes
from seriatim.cli.parsing import Parser
from seriatim.core.errors import SeriatimError
from seriatim.decoding.sampler import Sampler

if TYPE_CHECKING:
    import torch

    from seriatim.cli.runs import Run
    from seriatim.decoding.generate import Generation
    from seriatim.decoding.session import Session

__all__ = ["add_arguments", "run"]

_SAMPLING = {
    "temperature": "above 1 more varied, below 1 more certain, 0 the most probable token",
    "top_k": "only the k most probable tokens; 0: all",
    "top_p": "only the most probable tokens of this probability together",
    "min_p": "only tokens at least this times as probable as the most probable",
    "repetition_penalty": "above 1: tokens that occurred become less probable",
}


def add_arguments(parser: Parser) -> None:
    """The run, the prompt, how to choose tokens, the state."""
    parser.add_argument("run", metavar="RUN", type=str, help="a run folder that `seriatim train` wrote")
    parser.add_argument("--prompt", type=str, metavar="TEXT", help="the text to go on from")
    parser.add_argument("--prompt-file", type=str, metavar="FILE", help="the same from a file; - reads standard input")
    parser.add_argument("--tokens", type=int, metavar="N", default=200, help="tokens to write at most")
    for field in fields(Sampler):
        default = 0.8 if field.name == "temperature" else field.default
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), metavar="X", default=default, help=_SAMPLING[field.name])
    parser.add_argument("--seed", type=int | None, metavar="N", help="of the random choices; 0, or what --state holds")
    parser.add_argument("--device", type=str, metavar="NAME", default="auto", help="auto is a GPU where there is one")
    parser.add_argument("--state", type=str, metavar="FILE", help="go on from this saved state")
    parser.add_argument("--save-state", type=str, metavar="FILE", help="save the state when done, or when interrupted")


def run(options: Any) -> int:
    """Writes to standard output, and the speed to standard error."""
    if options.tokens < 0:
        raise SeriatimError(f"--tokens is {options.tokens}; it must be 0 or above")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise SeriatimError(f"--seed is {options.seed}; it must be 0 or above, and below 2**63")
    sampler = Sampler(**{field.name: getattr(options, field.name) for field in fields(Sampler)})
    prompt = _prompt(options)
    if options.save_state is not None:
        check_writable("--save-state", options.save_state)

    from seriatim.cli.memory import check_fits
    from seriatim.cli.runs import open_run
    from seriatim.decoding.generate import generate

    run = open_run(options.run, options.device)
    session, generator = _start(options, run)
    ids, boundary = run.tokenizer.encode(prompt), run.tokenizer.boundary
    check_fits(run.model, None if session is None else session.state, len(ids), options.tokens)
    print(options.prompt or "", end="", flush=True)
    began = time.perf_counter()
    generation = generate(
        run.model, [ids] if len(ids) or session is None else None, tokens=options.tokens, sampler=sampler,
        generator=generator, session=session, begin=boundary, stop=boundary,
    )  # fmt: skip
    _note(f"read {len(ids):,} tokens in {time.perf_counter() - began:.2f} s" if len(ids) else "no prompt to read")
    try:
        _stream(generation, run)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {_save(generation, run, options) or 'nothing was saved'}") from None
    _note(_save(generation, run, options))
    return 0


def _prompt(options: Any) -> bytes:
    if options.prompt is not None and options.prompt_file is not None:
        raise SeriatimError("--prompt and --prompt-file are both given; give one of them")
    if options.prompt_file == "-":
        return sys.stdin.buffer.read()
    if options.prompt_file is not None:
        return read_bytes("--prompt-file", options.prompt_file)
    return (options.prompt or "").encode(errors="surrogateescape")


def _start(options: Any, run: "Run") -> "tuple[Session | None, torch.Generator]":
    """The saved session, if any, and the generator of the random choices."""
    import torch

    from seriatim.decoding.session import load_session

    generator = torch.Generator().manual_seed(options.seed or 0)
    if options.state is None:
        return None, generator
    session = load_session(options.state, run.model)
    if len(session.pending) != 1:
        raise SeriatimError(f"state file {options.state} holds {len(session.pending)} rows; the command takes one")
    if options.seed is not None:
        session = session._replace(generator=generator.get_state()[None])
    return session, generator


def _stream(generation: "Generation", run: "Run") -> None:
    """Prints characters as soon as they are complete, then the speed."""
    began, count, decoder = time.perf_counter(), 0, run.tokenizer.decoder()
    try:
        for ids, _ in generation:
            print(decoder.feed(int(ids[0])), end="", flush=True)
            count += 1
    finally:
        print(decoder.flush(), flush=True)
        seconds = time.perf_counter() - began
        ended = "" if bool(generation.session.active[0]) else "; the document ends here"
        _note(f"wrote {count:,} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):,.0f} tokens/s{ended}")


def _save(generation: "Generation", run: "Run", options: Any) -> str:
    """Saves the state where that was asked for, and says how to go on from it."""
    if options.save_state is None:
        return ""
    from seriatim.decoding.session import save_session

    try:
        save_session(generation.session, options.save_state, run.model)
    except OSError as error:
        raise SeriatimError(f"--save-state is {options.save_state!r}, which cannot be written: {error}") from error
    return f"state saved; go on with: seriatim generate {quote(options.run)} --state {quote(options.save_state)}"


def _note(line: str) -> None:
    if line:
        print(line, file=sys.stderr, flush=True)
