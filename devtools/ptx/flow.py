"""The order in which basic blocks are laid out, and with it where diverged threads meet again.

The scheduler always runs the threads with the lowest program counter. They reconverge where the hardware's would if
(a) a block comes after all blocks that branch forward to it, and (b) a loop is contiguous, its exits behind it.
Compilers mostly emit such an order but put cold code at the end; so the blocks are sorted here: topological order
of the strongly connected components, by original position where free, and the same again inside each component
without its header's incoming edges. Where the sorted order breaks a fall-through, a ``goto`` that counts for
nothing repairs it.
"""

import heapq

from .syntax import Instruction, Symbol

ENDS = {"bra", "brx", "ret", "exit", "trap"}


def lay_out(body: list[Instruction], labels: dict[str, int], tables: dict[str, list[str]]):
    """``(instructions, labels)`` in the new order."""
    starts = _leaders(body, labels)
    block_at = {start: number for number, start in enumerate(starts)}
    spans = list(zip(starts, [*starts[1:], len(body)], strict=True))
    follow = [_successors(body, span, labels, tables, block_at) for span in spans]
    targets = [taken + ([fall] if fall is not None else []) for taken, fall in follow]
    order = _order(list(range(len(spans))), targets)
    order += [block for block in range(len(spans)) if block not in set(order)]
    return _emit(body, labels, spans, follow, order, block_at)


def _leaders(body, labels) -> list[int]:
    starts = {0} | {index for index in labels.values() if index < len(body)}
    starts |= {index + 1 for index, ins in enumerate(body) if ins.parts[0] in ENDS and index + 1 < len(body)}
    return sorted(starts)


def _successors(body, span, labels, tables, block_at):
    """``(branch targets, fall-through block or None)`` of one block; the end of the body is block None."""
    last = body[span[1] - 1] if span[1] > span[0] else None
    root = last.parts[0] if last else ""
    names = {"bra": lambda: [last.operands[0].name], "brx": lambda: tables[last.operands[1].name]}
    taken = [block_at[labels[name]] for name in names[root]() if labels[name] in block_at] if root in names else []
    leaves = root in ENDS and last.guard is None
    return taken, None if leaves else block_at.get(span[1])


def _order(nodes: list[int], targets: list[list[int]]) -> list[int]:
    """Blocks in execution-priority order (see the module's docstring)."""
    inside = set(nodes)
    component, members = _components(nodes, targets, inside)
    incoming = dict.fromkeys(members, 0)
    edges = {
        (component[a], component[b]) for a in nodes for b in targets[a] if b in inside and component[a] != component[b]
    }
    for _, b in edges:
        incoming[b] += 1
    ready = [(min(members[number]), number) for number in members if incoming[number] == 0]
    heapq.heapify(ready)
    result = []
    while ready:
        _, number = heapq.heappop(ready)
        result += _loop(members[number], targets, inside, nodes[0])
        for a, b in edges:
            if a == number:
                incoming[b] -= 1
                if incoming[b] == 0:
                    heapq.heappush(ready, (min(members[b]), b))
    return result


def _loop(members: list[int], targets, inside: set[int], entry: int) -> list[int]:
    """One component: a single block, or a loop ordered as its header followed by the rest without back edges."""
    if len(members) == 1:
        return members
    own = set(members)
    entered = [b for a in inside - own for b in targets[a] if b in own] + ([entry] if entry in own else [])
    header = min(entered) if entered else min(members)
    opened = [[b for b in row if b != header] if a in own else row for a, row in enumerate(targets)]
    rest = [block for block in sorted(members) if block != header]
    return _order([header, *rest], opened)


def _components(nodes, targets, inside):
    """Strongly connected components (Tarjan, without recursion): block -> component, component -> blocks."""
    index, low, on_stack, stack = {}, {}, set(), []
    component, members = {}, {}
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(targets[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, successors = work[-1]
            child = next((c for c in successors if c in inside and (c not in index or c in on_stack)), None)
            if child is None:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    number = len(members)
                    members[number] = []
                    while not members[number] or members[number][-1] != node:
                        member = stack.pop()
                        on_stack.discard(member)
                        component[member] = number
                        members[number].append(member)
            elif child not in index:
                index[child] = low[child] = len(index)
                stack.append(child)
                on_stack.add(child)
                work.append((child, iter(targets[child])))
            else:
                low[node] = min(low[node], index[child])
    return component, members


def _emit(body, labels, spans, follow, order, block_at):
    result, where = [], {}
    for position, block in enumerate(order):
        where[block] = len(result)
        result += body[slice(*spans[block])]
        fall = follow[block][1]
        after = order[position + 1] if position + 1 < len(order) else None
        leaves = result and result[-1].parts[0] in ENDS and result[-1].guard is None
        if fall is not None and fall != after:
            result.append(Instruction("goto", [Symbol(f"block {fall}")], text="(layout)"))
        elif fall is None and not leaves and after is not None:
            result.append(Instruction("goto", [Symbol("end")], text="(layout)"))
    placed = {name: where[block_at[index]] for name, index in labels.items() if index in block_at}
    placed |= {name: len(result) for name, index in labels.items() if index not in block_at}
    placed |= {f"block {block}": start for block, start in where.items()}
    return result, placed | {"end": len(result)}
