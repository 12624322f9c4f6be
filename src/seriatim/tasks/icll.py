"""In-context language learning: a new regular language in every sequence."""

from random import Random
from typing import TypeAlias

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask

__all__ = ["ICLL", "random_automaton"]

FEWEST = 4  # states, and symbols, of an automaton

Automaton: TypeAlias = list[dict[int, int]]  # for each state, the symbols that it allows and where each leads


class ICLL(TokenTask):
    """In-context language learning: strings of a language that is drawn for each sequence; what may come next?

        | a c a b | c a | a c ...     after every token that a symbol follows: a symbol that the language allows there

    The language is that of a random automaton (`random_automaton`); each string follows it from its first state, every
    allowed symbol equally likely. Any allowed symbol is right. The level is how many strings were read before.

    Args:
        states: of an automaton at most; there are at least 4.
        symbols: different symbols; a language uses 4 of them at least.
        edges: that leave a state at most.
        string: symbols of a string at most.

    Source: Akyürek et al., 2024, arXiv:2401.12973, section 3 (there strings of up to 50 symbols, 10 to 20 of them).
    """

    difficulty = "strings before"
    shortest = 2

    def __init__(self, states: int = 12, symbols: int = 18, edges: int = 4, string: int = 16):
        check_size(states=states, symbols=symbols, edges=edges, string=string)
        if states < FEWEST or symbols < FEWEST:
            raise SeriatimError(f"states is {states} and symbols is {symbols}; both must be {FEWEST} or more")
        self.states, self.symbols, self.edges, self.string = states, symbols, edges, string
        self.vocab_size = symbols + 1

    def row(self, length: int, random: Random) -> Row:
        automaton = random_automaton(self.states, self.symbols, self.edges, random)
        separator = self.symbols
        tokens, allowed, levels = list[int](), list[list[int]](), list[int]()
        strings = 0
        while len(tokens) <= length:
            state, left = 0, random.randint(1, self.string)
            tokens.append(separator)
            for _ in range(left):
                allowed.append(sorted(automaton[state]))
                tokens.append(random.choice(allowed[-1]))
                state = automaton[state][tokens[-1]]
            allowed.append([])
            levels += [strings] * (left + 1)
            strings += 1
        targets = [token if token != separator else IGNORED for token in tokens[1 : length + 1]]
        return Row(tokens[:length], targets, levels[:length], allowed[:length])


def random_automaton(states: int, symbols: int, edges: int, random: Random) -> Automaton:
    """An automaton whose states all accept.

    It has 4 to `states` states and 4 to `symbols` of the symbols, evenly drawn. From 1 to `edges` edges (in the
    smallest automata, to as many as there are other states) leave a state, with different symbols, to different states.
    """
    count = random.randint(FEWEST, states)
    alphabet = random.sample(range(symbols), random.randint(FEWEST, symbols))
    most = min(edges, count - 1, len(alphabet))
    automaton: Automaton = []
    for state in range(count):
        leaving = random.randint(1, most)
        others = [other for other in range(count) if other != state]
        automaton.append(dict(zip(random.sample(alphabet, leaving), random.sample(others, leaving), strict=True)))
    return automaton
