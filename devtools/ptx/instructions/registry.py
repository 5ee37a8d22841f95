"""Where the instruction modules enter their builders, by the first part of the opcode."""

STEPS: dict = {}  # root -> build(program, instruction) -> step(batch)
CONTROL: dict = {}  # root -> build(program, instruction, pc) -> run(scheduler, active)


def instruction(*roots: str):
    """Register a builder of steps: what a fragment of threads does without leaving its straight line."""

    def enter(build):
        STEPS.update(dict.fromkeys(roots, build))
        return build

    return enter


def control(*roots: str):
    """Register a builder of control instructions: those that split, move, park or end threads."""

    def enter(build):
        CONTROL.update(dict.fromkeys(roots, build))
        return build

    return enter
