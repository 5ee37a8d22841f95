"""PTX text to a Module: kernels, device functions, module variables. Nothing is interpreted here."""

from . import syntax
from .errors import PtxSyntaxError
from .lexer import Token, tokenise
from .program import Kernel
from .ptx_types import TYPES, parse_literal, type_of

LINKAGE = {".visible", ".extern", ".weak", ".common"}
SPACES = {".global": "global", ".const": "const", ".shared": "shared", ".local": "local", ".param": "param"}


def parse(text: str) -> syntax.Module:
    """Read PTX text; ``parse(text)["kernel"]`` is what ``GPU.launch`` takes.

    Raises PtxSyntaxError, with the line, for text that is not PTX as nvcc or Triton write it. Instructions are not
    looked at before a kernel is launched, so a module may hold kernels with instructions that are not supported.
    """
    return _Parser(text).module()


class _Parser:
    """Recursive descent over the token list; ``self.at`` is the next token."""

    def __init__(self, text: str):
        self.tokens, self.text = tokenise(text)
        self.tokens.append(Token("end", "", len(self.text), self.text.count("\n") + 1))
        self.at = 0
        self.result = syntax.Module()

    # ---- tokens -----------------------------------------------------------------------------------------------

    @property
    def next(self) -> Token:
        return self.tokens[self.at]

    def take(self, expected: str | None = None) -> str:
        token = self.tokens[self.at]
        if expected is not None and token.text != expected:
            raise PtxSyntaxError(f"line {token.line}: expected {expected!r}, found {token.text!r}")
        self.at += 1
        return token.text

    def accept(self, text: str) -> bool:
        if self.next.text == text:
            self.at += 1
            return True
        return False

    def skip_past(self, *ends: str) -> None:
        while self.take() not in ends:
            if self.next.kind == "end":
                raise PtxSyntaxError(f"line {self.next.line}: the text ends inside a statement")

    def integer(self) -> int:
        negative = self.accept("-")
        value = int(self.take().rstrip("U"), 0)
        return -value if negative else value

    # ---- module -----------------------------------------------------------------------------------------------

    def module(self) -> syntax.Module:
        while self.next.kind != "end":
            word = self.next.text
            if word in LINKAGE:
                self.take()
            elif word in (".version", ".address_size"):
                self.at += 2
            elif word == ".target":
                self._target()
            elif word in (".entry", ".func"):
                self._function(is_kernel=word == ".entry")
            elif word in SPACES:
                for variable in self._variables():
                    self.result.variables[variable.name] = variable
            elif word in (".pragma", ".alias"):
                self.skip_past(";")
            else:
                raise PtxSyntaxError(f"line {self.next.line}: {word!r} at module level")
        for function in self.result.functions.values():
            if function.is_kernel:
                self.result[function.name] = Kernel(self.result, function)
        return self.result

    def _target(self) -> None:
        self.take()
        self.result.target = self.take()
        while self.accept(","):
            self.take()

    def _function(self, is_kernel: bool) -> None:
        self.take()
        while self.next.text in (".noreturn", ".unique"):
            self.take()
        returns = self._parameters() if self.next.text == "(" else []
        name = self.take()
        params = self._parameters() if self.next.text == "(" else []
        function = syntax.Function(name, is_kernel, params, returns)
        while self.next.text not in ("{", ";"):
            self._tuning(function)
        if self.accept(";"):
            self.result.functions.setdefault(name, function)
            return
        _Body(self, function).parse()
        self.result.functions[name] = function

    def _tuning(self, function: syntax.Function) -> None:
        """.maxntid and its like stand between the parameters and the body; only the block size matters here."""
        directive, sizes = self.take(), []
        while self.next.kind == "number":
            sizes.append(self.integer())
            self.accept(",")
        if directive in (".maxntid", ".reqntid"):
            function.max_threads = 1
            for size in sizes:
                function.max_threads *= size

    def _parameters(self) -> list[syntax.Parameter]:
        self.take("(")
        found = []
        while not self.accept(")"):
            found.append(self._parameter())
            self.accept(",")
        return found

    def _parameter(self) -> syntax.Parameter:
        in_register = self.take() == ".reg"
        align = kind = None
        while self.next.text.startswith("."):
            word = self.take()
            if word == ".align" and align is None:
                align = self.integer()
            elif word == ".align":
                self.integer()
            elif word == ".ptr":
                align = align or type_of(kind).bytes  # the .align that follows .ptr is the pointee's
            elif word[1:] in TYPES:
                kind = word[1:]
        name = self.take()
        count = self._array_size()
        size = type_of(kind).bytes * (1 if count is None else count)
        return syntax.Parameter(name, kind, align or type_of(kind).bytes, size, count is not None, in_register)

    def _array_size(self) -> int | None:
        """The number of elements in any ``[n]`` that follow a name; 0 for ``[]``; None where there are none."""
        count = None
        while self.accept("["):
            size = 0 if self.next.text == "]" else self.integer()
            self.take("]")
            count = size if count is None else count * size
        return count

    def _variables(self) -> list[syntax.Variable]:
        space, align, kind, vector, found = SPACES[self.take()], None, None, 1, []
        while self.next.text.startswith("."):
            word = self.take()
            if word == ".align":
                align = self.integer()
            elif word in (".v2", ".v4"):
                vector = int(word[2:])
            elif word[1:] in TYPES:
                kind = type_of(word[1:])
        while True:
            name, unsized = self.take(), self.next.text == "[" and self.tokens[self.at + 1].text == "]"
            count = self._array_size()
            initial = self._initialiser(kind) if self.accept("=") else None
            if unsized and initial is not None:
                count = len(initial)
            size = None if unsized and initial is None else kind.bytes * vector * (1 if count is None else count)
            found.append(syntax.Variable(name, space, kind.name, align or kind.bytes * vector, size, initial))
            if not self.accept(","):
                self.take(";")
                return found

    def _initialiser(self, kind) -> list:
        """The elements of an initialiser, each the bytes of a number or a Symbol."""
        if self.accept("{"):
            items = []
            while not self.accept("}"):
                items += self._initialiser(kind)
                self.accept(",")
            return items
        if self.next.kind == "number" or self.next.text == "-":
            sign = "-" if self.accept("-") else ""
            return [parse_literal(sign + self.take(), kind).tobytes()]
        name, offset = self.take(), 0
        if name == "generic":
            self.take("(")
            name = self.take()
            self.take(")")
        if self.accept("+"):
            offset = self.integer()
        return [syntax.Symbol(name, offset)]


class _Body:
    """One function's body. Braces open scopes: names declared inside get a suffix that makes them unique."""

    def __init__(self, parser: _Parser, function: syntax.Function):
        self.parser, self.function = parser, function
        self.scopes, self.last_scope = [0], 0
        self.names: list[dict[str, str]] = [{}]
        self.prefixes: list[dict[str, str]] = [{}]

    def parse(self) -> None:
        p = self.parser
        p.take("{")
        while True:
            text = p.next.text
            if text == "{":
                p.take()
                self._enter()
            elif text == "}":
                p.take()
                if len(self.scopes) == 1:
                    return
                self._leave()
            elif text == ".reg":
                self._registers()
            elif text in SPACES:
                self._variables()
            elif text in (".pragma", ".callprototype"):
                p.skip_past(";")
            elif p.tokens[p.at + 1].text == ":":
                self._label()
            else:
                self._instruction()

    def _enter(self) -> None:
        self.last_scope += 1
        self.scopes.append(self.last_scope)
        self.names.append({})
        self.prefixes.append({})

    def _leave(self) -> None:
        for stack in (self.scopes, self.names, self.prefixes):
            stack.pop()

    def _suffix(self) -> str:
        return f"@{self.scopes[-1]}" if self.scopes[-1] else ""

    def _registers(self) -> None:
        p = self.parser
        p.take(".reg")
        kind = p.take()[1:]
        if kind not in TYPES:
            raise NotImplementedError(f"line {p.next.line}: registers of type .{kind}")
        while True:
            name = p.take()
            if p.accept("<"):
                self.prefixes[-1][name] = kind
                p.integer()
                p.take(">")
            else:
                self._declare(name, kind)
            if not p.accept(","):
                break
        p.take(";")

    def _declare(self, name: str, kind: str) -> str:
        unique = name + self._suffix()
        self.names[-1][name] = unique
        self.function.registers[unique] = kind
        return unique

    def _variables(self) -> None:
        for variable in self.parser._variables():
            unique = variable.name + self._suffix()
            self.names[-1][variable.name] = unique
            variable.name = unique
            self.function.variables.append(variable)

    def _label(self) -> None:
        p = self.parser
        name = p.take()
        p.take(":")
        if p.next.text == ".branchtargets":
            p.take()
            targets = [p.take()]
            while p.accept(","):
                targets.append(p.take())
            p.take(";")
            self.function.branch_tables[self.scopes[-1], name] = targets
        elif p.next.text == ".callprototype":
            p.skip_past(";")
        else:
            self.function.labels[self.scopes[-1], name] = len(self.function.body)

    def _resolve(self, name: str):
        """The operand a bare word stands for: a declared register or variable, innermost scope first, or a symbol."""
        stem = name.rstrip("0123456789")
        for depth in range(len(self.scopes) - 1, -1, -1):
            if name in self.names[depth]:
                unique = self.names[depth][name]
                return syntax.Register(unique) if unique in self.function.registers else syntax.Symbol(unique)
            if stem != name and stem in self.prefixes[depth]:
                unique = name + (f"@{self.scopes[depth]}" if self.scopes[depth] else "")
                self.names[depth][name] = unique
                self.function.registers[unique] = self.prefixes[depth][stem]
                return syntax.Register(unique)
        return syntax.Special(name) if name.startswith("%") else syntax.Symbol(name)

    def _instruction(self) -> None:
        p = self.parser
        start, line, guard, negated = p.next.start, p.next.line, None, False
        if p.accept("@"):
            negated = p.accept("!")
            guard = self._resolve(p.take())
        opcode, operands = p.take(), []
        while p.next.text != ";":
            operands.append(self._operand())
            p.accept(",")
        end = p.next.start
        p.take(";")
        text = " ".join(p.text[start:end].split()) + ";"
        self.function.body.append(syntax.Instruction(opcode, operands, guard, negated, line, text, tuple(self.scopes)))

    def _operand(self):
        p = self.parser
        token = p.next
        if p.accept("{"):
            operand = syntax.Vector(self._list("}"))
        elif p.accept("("):
            operand = syntax.Arguments(self._list(")"))
        elif p.accept("["):
            operand = self._address()
        elif p.accept("!"):
            return syntax.Negated(self._resolve(p.take()))
        elif p.accept("-"):
            return syntax.Immediate("-" + p.take())
        elif token.kind == "number":
            return syntax.Immediate(p.take())
        elif token.kind in ("word", "string"):
            operand = self._resolve(p.take())
            if isinstance(operand, syntax.Symbol) and p.next.text in "+-":
                operand = syntax.Symbol(operand.name, self._offset())
        else:
            raise PtxSyntaxError(f"line {token.line}: operand {token.text!r}")
        return syntax.Pair(operand, self._operand()) if p.accept("|") else operand

    def _list(self, end: str) -> tuple:
        items = []
        while not self.parser.accept(end):
            items.append(self._operand())
            self.parser.accept(",")
        return tuple(items)

    def _offset(self) -> int:
        if self.parser.take() == "-":
            return -self.parser.integer()
        return self.parser.integer()

    def _address(self) -> syntax.Address:
        p, base, offset = self.parser, None, 0
        if p.next.kind == "number" or p.next.text == "-":
            offset = p.integer()
        else:
            base = self._resolve(p.take())
        while p.next.text in ("+", "-"):
            offset += self._offset()
        if p.accept(","):
            raise NotImplementedError(f"line {p.next.line}: addresses of tensors (tensor maps)")
        p.take("]")
        return syntax.Address(base, offset)
