"""How compiled rules are put together: as one whole for each rule that Python calls, and as parts for those that rules call.

numba compiles every function for itself, together with all that it calls: in a deep tree of calls, the leaves are optimised and
assembled once a layer. Here a part is translated once and goes no further; the whole links all parts and is optimised and
assembled once. That takes a third of the time, and lets LLVM move a rule that has one caller into it.
"""

from collections.abc import Callable
from typing import Any

import numba
from llvmlite.binding import Linkage
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

OPTIONS: dict[str, Any] = {
    "error_model": "numpy",
    "nogil": True,
    "_nrt": False,  # a rule makes no arrays, and counting references to those it is given cost a fifth of the time
}


class _Library(JITCodeLibrary):
    """Code that lists all parts it needs, those of its parts included."""

    def add_linking_library(self, library: Any) -> None:
        super().add_linking_library(library)
        if isinstance(library, _Part):
            self._linking_libraries.extend(library._linking_libraries)


class _Part(_Library):
    """Code of a rule that other rules call: translated, neither linked, nor optimised as a whole, nor assembled."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._linking_libraries = list(dict.fromkeys(self._linking_libraries))
        self._finalized = True


class _Whole(_Library):
    """Code of a rule that Python calls, with all its parts."""

    def _optimize_final_module(self) -> None:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == Linkage.linkonce_odr:
                function.linkage = Linkage.internal  # nobody else will link it: one that has a single caller can move there
        # counts here are small, so that a loop over providers is no faster in vectors, only longer; neighbouring sums are
        passes, builder = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=True)
        passes.run(self._final_module, builder)


class _Lowering(NativeLowering):
    kind: type[_Library]

    def run_pass(self, state: Any) -> bool:
        state.library = self.kind(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


@register_pass(mutates_CFG=True, analysis_only=False)
class _WholeLowering(_Lowering):
    _name = "rule_whole_lowering"  # type: ignore[assignment]  # numba says None where every pass has a name
    kind = _Whole


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(_Lowering):
    _name = "rule_part_lowering"  # type: ignore[assignment]  # likewise
    kind = _Part

    def run_pass(self, state: Any) -> bool:
        state.flags = state.flags.copy()
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]._replace(cfunc=_Name(state.func_id.func_qualname))
        state.targetctx.insert_user_function(lowered.cfunc, lowered.fndesc, [state.library])
        state["cr"] = lowered
        return True


class _Name:
    """Stands where numba keeps a function that Python could call: callers inside find the part's code by it."""

    def __init__(self, text: str) -> None:
        self.text = text


def _pipeline(lowering: type[_Lowering]) -> type[CompilerBase]:
    class Pipeline(CompilerBase):
        def define_pipelines(self) -> list[Any]:
            passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
            place = next(k for k, (kind, _) in enumerate(passes.passes) if kind is NativeLowering)
            passes.passes[place] = (lowering, "rule lowering")
            passes.finalize()
            return [passes]

    return Pipeline


_WHOLE, _PART = _pipeline(_WholeLowering), _pipeline(_PartLowering)


def compiled(function: Callable[..., Any]) -> Any:
    """Make the compiled form of a rule: called by Python it is a whole, cached on disk; called by a rule it is a part."""
    whole = numba.njit(cache=True, pipeline_class=_WHOLE, **OPTIONS)(function)
    part = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_PART, **OPTIONS)(function)
    part.add_overload = lambda found: part.overloads.__setitem__(tuple(found.signature.args), found)
    whole.get_call_template = _widen(part.get_call_template)
    whole.get_overload = part.get_overload
    return whole


def _widen(get_call_template: Any) -> Any:
    """Let calls between rules pass plain 64-bit numbers: one compiled form serves literals, short integers and long ones."""

    def widened(args: Any, kws: Any) -> Any:
        return get_call_template(tuple(map(_wide, args)), {name: _wide(kind) for name, kind in kws.items()})

    return widened


def _wide(kind: Any) -> Any:
    kind = numba.types.unliteral(kind)
    return numba.types.int64 if isinstance(kind, numba.types.Integer) and kind.signed else kind
