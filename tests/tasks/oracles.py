"""What the answers must be, worked out from the tokens alone by other means than the generators use."""

from itertools import permutations

from seriatim.tasks.base import IGNORED

__all__ = ["ORACLES", "asked"]


def asked(row):
    """Position to answer."""
    return {place: answer for place, answer in enumerate(row.targets) if answer != IGNORED}


def mqar(task, tokens):
    """The first token that ever follows a key is its value; a key that comes again asks."""
    values, answers = {}, {}
    for place, token in enumerate(tokens):
        if token in values:
            answers[place] = values[token]
        elif 1 <= token <= task.keys and place + 1 < len(tokens) and place % 2 == 0 and not answers:
            values[token] = tokens[place + 1]
    return answers


def copying(task, tokens):
    questions = [place for place, token in enumerate(tokens) if token == task.symbols + 1]
    symbols = [token for token in tokens if 1 <= token <= task.symbols]
    return dict(zip(questions, symbols, strict=True))


def induction_heads(task, tokens):
    return {len(tokens) - 1: tokens[tokens.index(0) + 1]}


def modular_counting(task, tokens):
    return {place: tokens[: place + 1].count(1) % task.vocab_size for place in range(len(tokens))}


def modular_arithmetic(task, tokens):
    symbols = [*map(str, range(task.modulus)), *"+-*()="]
    written = "".join(symbols[token] for token in tokens)
    return {len(tokens) - 1: eval(written.removesuffix("=")) % task.modulus}


def group_words(task, tokens):
    """Follows every point through the letters, one after another."""
    points = range(int(task.group[1]))
    elements = sorted(permutations(points))
    if task.group[0] == "A":
        elements = [e for e in elements if sum(e[i] > e[j] for i in points for j in range(i, len(points))) % 2 == 0]
    answers = {}
    for place in range(len(tokens)):
        images = []
        for start in points:
            point = start
            for letter in tokens[: place + 1]:
                point = elements[letter][point]
            images.append(point)
        answers[place] = elements.index(tuple(images))
    return answers


def set_disjointness(task, tokens):
    first, second = tokens[1 : tokens.index(1)], tokens[tokens.index(1) + 1 : -1]
    (shared,) = set(first) & set(second)
    return {len(tokens) - 1: shared}


def passkey(task, tokens):
    at, question = tokens.index(10), tokens.index(11)
    return {question + i: tokens[at + 1 + i] for i in range(task.digits)}


def needle(task, tokens):
    question = tokens.index(1)
    at = tokens.index(tokens[question + 1])
    return {question + 1 + i: tokens[at + 1 + i] for i in range(task.values)}


def phone_book(task, tokens):
    question = tokens.index(10)
    at = tokens.index(tokens[question + 1])
    return {question + 1 + i: tokens[at + 1 + i] for i in range(task.digits)}


def dyck(task, tokens):
    """Erases pairs that stand beside each other until nothing more can be erased."""
    answers = {}
    for place in range(len(tokens)):
        rest, before = tokens[: place + 1], None
        while rest != before:
            before = rest
            pairs = [i for i in range(len(rest) - 1) if rest[i] <= task.kinds and rest[i + 1] == rest[i] + task.kinds]
            rest = rest[: pairs[0]] + rest[pairs[0] + 2 :] if pairs else rest
        assert all(token <= task.kinds for token in rest), "not nested"
        answers[place] = rest[-1] + task.kinds if rest else 0
    return answers


def listops(task, tokens):
    """Rewritten as Python and evaluated."""
    names = {10: "min([", 11: "max([", 12: "middle([", 13: "total([", 14: "]),", 15: ""}
    written = "".join(names[token] if token > 9 else f"{token}," for token in tokens).removesuffix(",")

    def middle(values):
        ordered, half = sorted(values), len(values) // 2
        return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) // 2

    return {len(tokens) - 1: eval(written, {"middle": middle, "total": lambda v: sum(v) % 10, "min": min, "max": max})}


ORACLES = {
    "mqar": mqar,
    "copying": copying,
    "selective_copying": copying,
    "induction_heads": induction_heads,
    "parity": modular_counting,
    "modular_counting": modular_counting,
    "modular_arithmetic": modular_arithmetic,
    "group_words": group_words,
    "set_disjointness": set_disjointness,
    "passkey": passkey,
    "needle": needle,
    "phone_book": phone_book,
    "dyck": dyck,
    "listops": listops,
}
