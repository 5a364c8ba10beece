"""A machine for the few pickle opcodes that a dictionary of tensors needs; it imports, calls and executes nothing.

A name the pickle asks for is looked up in a table. Opcodes after Python 3.14's pickletools, torch's names after
torch 2.13's serialization.py.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

MAX_DIMENSIONS = 8
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}


class UnsafePickleError(ValueError):
    """The pickle asks for something that a dictionary of tensors does not need."""


@dataclass(frozen=True)
class _Name:
    """A global the pickle names; it stands for itself and can do nothing."""

    module: str
    name: str


@dataclass(frozen=True)
class Storage:
    dtype: str
    key: str
    size: int


class _Ordered(dict[Any, Any]):
    """Stands for an OrderedDict."""


@dataclass(frozen=True)
class View:
    """A tensor: a shape laid over a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()


def unpickle(pickle: bytes) -> object:
    """What a pickle builds, of inert values alone. Raises UnsafePickleError, ValueError for one that is damaged."""
    return _Machine(pickle).run()


def _rebuild_tensor(*args: object) -> View:
    if len(args) < 4 or not isinstance(args[0], Storage) or type(args[1]) is not int:
        raise UnsafePickleError("a tensor is built from something else than a storage")
    shape, stride = _sides(args[2]), _sides(args[3])
    if len(shape) != len(stride):
        raise UnsafePickleError("a tensor's shape and strides differ in length")
    return View(args[0], args[1], shape, stride)


def _sides(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(value) > MAX_DIMENSIONS:
        raise UnsafePickleError("a tensor's shape is not a few whole numbers")
    if any(type(side) is not int or not 0 <= side < 2**40 for side in value):
        raise UnsafePickleError("a tensor's shape is not a few whole numbers")
    return value


def _rebuild_parameter(*args: object) -> View:
    if not args or not isinstance(args[0], View):
        raise UnsafePickleError("a parameter is built from something else than a tensor")
    return args[0]


def _ordered(*args: object) -> _Ordered:
    if args and args != ([],):
        raise UnsafePickleError("an OrderedDict with contents given beforehand")
    return _Ordered()


# All that REDUCE may do: these three, which build inert values.
CALLS: dict[_Name, Callable[..., object]] = {
    _Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    _Name("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    _Name("collections", "OrderedDict"): _ordered,
}
NAMES = {*CALLS, *(_Name("torch", storage) for storage in STORAGES)}


class _Machine:
    """The pickle virtual machine without its dangerous half: no import, no call but CALLS, no object's __dict__."""

    def __init__(self, pickle: bytes) -> None:
        self.pickle = pickle
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        """What the pickle builds."""
        for opcode, argument, _ in pickletools.genops(self.pickle):
            if opcode.name in PUSHED:
                self.stack.append(argument)
            elif opcode.name in CONSTANTS:
                self.stack.append(CONSTANTS[opcode.name]())
            elif opcode.name in STEPS:
                STEPS[opcode.name](self, argument)
            elif opcode.name == "STOP":
                return self.pop()
            elif opcode.name not in ("PROTO", "FRAME"):
                _refuse_opcode(opcode.name)
        raise UnsafePickleError("it ends without STOP")

    def pop(self) -> Any:
        """The topmost value."""
        if not self.stack or self.stack[-1] is _MARK:
            raise UnsafePickleError("its stack is empty where it is used")
        return self.stack.pop()

    def marked(self) -> list[Any]:
        """What lies above the last mark, which goes too."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                above = self.stack[index + 1 :]
                del self.stack[index:]
                return above
        raise UnsafePickleError("it uses a mark that it did not set")

    def put(self, key: int | None) -> None:
        """Remember the topmost value."""
        self.memo[len(self.memo) if key is None else key] = self.top(object)

    def get(self, key: int) -> None:
        """Push a remembered value."""
        if key not in self.memo:
            raise UnsafePickleError("it uses a memory that it did not fill")
        self.stack.append(self.memo[key])

    def name(self, module: object, name: object) -> None:
        """Push a global's name, if it is one of the few we know."""
        known = _Name(str(module), str(name))
        if known not in NAMES:
            raise UnsafePickleError(f"it asks for {str(module)[:100]}.{str(name)[:100]}")
        self.stack.append(known)

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the topmost values."""
        self.stack.append(tuple(reversed([self.pop() for _ in range(count)])))

    def call(self) -> None:
        """REDUCE: one of CALLS."""
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, _Name) or called not in CALLS or not isinstance(arguments, tuple):
            raise UnsafePickleError("it calls something that is not a tensor's constructor")
        self.stack.append(CALLS[called](*arguments))

    def storage(self) -> None:
        """BINPERSID: ('storage', type, key, location, size)."""
        match self.pop():
            case ("storage", _Name("torch", kind), str() as key, str(), int() as size) if kind in STORAGES:
                self.stack.append(Storage(STORAGES[kind], key, size))
            case _:
                raise UnsafePickleError("it refers to something outside that is no storage")

    def set_items(self, pairs: list[Any]) -> None:
        """SETITEM, SETITEMS: only text is a key, for hashing a nest of tuples can take years."""
        target = self.top(dict)
        if len(pairs) % 2 or any(type(key) is not str for key in pairs[::2]):
            raise UnsafePickleError("a dictionary's key is not text")
        target.update(zip(pairs[::2], pairs[1::2], strict=True))

    def append(self, values: list[Any]) -> None:
        """APPEND, APPENDS."""
        self.top(list).extend(values)

    def forget_attributes(self) -> None:
        """BUILD: torch notes `_metadata` on its OrderedDict; nothing here needs attributes."""
        self.pop()
        self.top(_Ordered)

    def top(self, kind: type) -> Any:
        """The topmost value, which stays; raises if it is of another kind."""
        value = self.pop()
        self.stack.append(value)
        if not isinstance(value, kind):
            raise UnsafePickleError(f"it fills a {type(value).__name__.strip('_')}")
        return value


def _refuse_opcode(name: str) -> NoReturn:
    """For INST, OBJ, NEWOBJ, EXT and all others that a dictionary of tensors has no need of."""
    raise UnsafePickleError(f"it uses the opcode {name}, which tensors do not need")


PUSHED = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": lambda machine, argument: machine.name(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(*reversed((machine.pop(), machine.pop()))),
    "REDUCE": lambda machine, _: machine.call(),
    "BINPERSID": lambda machine, _: machine.storage(),
    "BUILD": lambda machine, _: machine.forget_attributes(),
    "SETITEM": lambda machine, _: machine.set_items(list(reversed((machine.pop(), machine.pop())))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "BINPUT": lambda machine, argument: machine.put(argument),
    "LONG_BINPUT": lambda machine, argument: machine.put(argument),
    "MEMOIZE": lambda machine, _: machine.put(None),
    "BINGET": lambda machine, argument: machine.get(argument),
    "LONG_BINGET": lambda machine, argument: machine.get(argument),
}
