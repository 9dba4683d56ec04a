"""Worlds of many tables, handed to compiled rules as one pointer: `w.request[r].state` costs two loads and no argument list.

A tuple of twenty arrays is some 150 machine words to every call that numba makes, and minutes of compiling. Here a world is
an array of base addresses. Plain rules get a plain object with lists; the source of a rule is the same.
"""

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from market.rule import COMPILED


class World:
    """Tables by name: arrays (compiled) or lists (plain), kept alive together.

    tables   name -> records (market.rule.records) or a one-dimensional array of int64 or float64, C-contiguous
    """

    def __init__(self, **tables: Any) -> None:
        self.__dict__.update(tables)
        self.names = tuple(tables)
        if COMPILED:
            for name, table in tables.items():
                assert table.ndim == 1 and table.flags.c_contiguous, name
            self.addresses = np.array([table.ctypes.data for table in tables.values()], np.uint64)
            self.address = int(self.addresses.ctypes.data)
            self.numba_type = WorldType(tuple((name, table.dtype) for name, table in tables.items()))

    def __reduce__(self) -> tuple[object, ...]:
        """Refuse to be copied or pickled: rules would reach the tables of the original by its addresses."""
        raise TypeError("World: cannot be copied; copy what owns it, which knows how to fill another")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


if COMPILED:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.typing.templates import AbstractTemplate, AttributeTemplate, infer_global, signature
    from numba.extending import (
        NativeValue,
        infer_getattr,
        lower_builtin,
        lower_getattr_generic,
        models,
        register_model,
        typeof_impl,
        unbox,
    )
    from numba.np.numpy_support import from_dtype

    class TableType(types.Type):
        """A bare pointer to items that lie one after another."""

        def __init__(self, item: types.Type) -> None:
            self.item = item
            super().__init__(f"Table[{item}]")

        @property
        def mangling_args(self) -> tuple[str, tuple[int]]:
            """Stand in symbols by number, as numba's records do: the whole name is some kilobytes."""
            return "Table", (self._code,)

    class WorldType(types.Type):
        """A pointer to the base addresses of tables."""

        def __init__(self, fields: tuple[tuple[str, np.dtype], ...]) -> None:
            self.fields = {name: TableType(from_dtype(dtype)) for name, dtype in fields}
            self.order = {name: place for place, (name, _) in enumerate(fields)}
            super().__init__(f"World[{', '.join(f'{name}: {table}' for name, table in self.fields.items())}]")

        @property
        def mangling_args(self) -> tuple[str, tuple[int]]:
            """See TableType."""
            return "World", (self._code,)

    @register_model(TableType)
    @register_model(WorldType)
    class _PointerModel(models.PrimitiveModel):
        def __init__(self, manager: Any, kind: types.Type) -> None:
            super().__init__(manager, kind, ir.IntType(8).as_pointer())

    @typeof_impl.register(World)
    def _typeof_world(value: World, _context: Any) -> WorldType:
        return value.numba_type

    @unbox(WorldType)
    def _unbox_world(_kind: WorldType, value: Any, c: Any) -> NativeValue:
        number = c.pyapi.object_getattr_string(value, "address")
        address = c.pyapi.long_as_ulonglong(number)
        c.pyapi.decref(number)
        failed = cgutils.is_not_null(c.builder, c.pyapi.err_occurred())
        return NativeValue(c.builder.inttoptr(address, ir.IntType(8).as_pointer()), is_error=failed)

    @infer_getattr
    class _WorldAttribute(AttributeTemplate):
        key = WorldType

        def generic_resolve(self, world: WorldType, name: str) -> types.Type | None:
            return world.fields.get(name)

    @lower_getattr_generic(WorldType)
    def _lower_table(_context: Any, builder: Any, kind: WorldType, value: Any, name: str) -> Any:
        pointers = builder.bitcast(value, ir.IntType(8).as_pointer().as_pointer())
        load = builder.load(builder.gep(pointers, [ir.Constant(ir.IntType(64), kind.order[name])]))
        load.set_metadata("invariant.load", builder.module.add_metadata([]))
        return load

    @infer_global(operator.getitem)
    class _TableGet(AbstractTemplate):
        def generic(self, args: Any, _kws: Any) -> Any:
            if isinstance(args[0], TableType) and isinstance(args[1], types.Integer):
                return signature(args[0].item, args[0], types.intp)
            return None

    @infer_global(operator.setitem)
    class _TableSet(AbstractTemplate):
        def generic(self, args: Any, _kws: Any) -> Any:
            if isinstance(args[0], TableType) and isinstance(args[1], types.Integer):
                return signature(types.none, args[0], types.intp, args[0].item)
            return None

    def _item_pointer(context: Any, builder: Any, kind: TableType, table: Any, index: Any) -> Any:
        data = context.get_data_type(kind.item)
        size = kind.item.size if isinstance(kind.item, types.Record) else context.get_abi_sizeof(data)
        place = builder.gep(table, [builder.mul(index, ir.Constant(ir.IntType(64), size))])
        return builder.bitcast(place, data.as_pointer())

    @lower_builtin(operator.getitem, TableType, types.Integer)
    def _lower_get(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.unpack_value(builder, sig.return_type, _item_pointer(context, builder, sig.args[0], *args))

    @lower_builtin(operator.setitem, TableType, types.Integer, types.Any)
    def _lower_set(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        context.pack_value(builder, sig.args[0].item, args[2], _item_pointer(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()
