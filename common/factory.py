"""The factory that a study names: how it is called, and which networks it may not give.

A factory is the user's own code, so whatever it raises is told in one line; and a network that no study can use is
refused here, where the first command that looks at the study meets it.

>>> load_factory("equipoise.common.models:mlp", {"features": 6})(torch.zeros(2, 6)).shape
torch.Size([2])

Design notes:

* Batch normalisation makes one patient's output depend on the other patients of the batch: per-patient gradients, which
  clipping and accounting need, do not exist then, and the running statistics leave the site outside every guarantee.
* A site lets in what a pattern of `caps.models` names. So a module must not lend its name to what it merely imports,
  and this package's own modules lend theirs to nothing but `FACTORIES`: others of their functions return networks, too,
  and `load_factory` itself would import whatever its arguments say.
* A parameter that goes by two names is one for training and two for whatever goes by names: weights files, masks,
  sensitivities, released sums. safetensors refuses to write it, or writes it under one name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from equipoise.common import group_norm
from equipoise.common.errors import ModelError
from equipoise.common.study import Scalar


def load_factory(factory: str, arguments: Mapping[str, Scalar]) -> nn.Module:
    """The module that `module:function` makes; the code is imported from what is installed, never received.

    Raises:
        ModelError: the module or the function does not exist, is not defined there, fails, or does not declare that it
            returns a `torch.nn.Module` (it is then not called), the arguments do not fit, or the network mixes patients
            or cannot be kept in a file of weights.
    """
    place, _, name = factory.partition(":")
    function = getattr(_imported(factory, place), name, None)
    if not callable(function):
        raise ModelError(f"model.factory={factory}: {place} has no function {name!r}")
    if not _returns_network(function):
        # A study or a run folder may come from someone else: `os:system` must not even be called.
        raise ModelError(
            f"model.factory={factory}: is no model factory; expected a subclass of torch.nn.Module, or a function "
            "annotated to return one"
        )
    home = getattr(function, "__module__", None)
    if home != place:
        raise ModelError(f"model.factory={factory}: {name} is defined in {home}; write {home}:{name}")
    if not is_offered(factory):
        raise ModelError(f"model.factory={factory}: is no factory of equipoise; docs/study-file.md lists them")
    model = _called(factory, function, arguments)
    refuse_mixing(model)
    refuse_unsaveable(model)
    group_norm.guard(model)
    return model


def is_offered(factory: str) -> bool:
    """Whether a factory is somebody else's, or one that its module of this package offers in `FACTORIES`.

    >>> [is_offered(f"equipoise.common.models:{name}") for name in ("mlp", "build", "load_factory")]
    [True, False, False]
    """
    place, _, name = factory.partition(":")
    if place.partition(".")[0] != __name__.partition(".")[0]:
        return True
    try:
        return name in [function.__name__ for function in getattr(_imported(factory, place), "FACTORIES", ())]
    except ModelError:
        return False


def _imported(factory: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = error.name or place
        raise ModelError(
            f"model.factory={factory}: no module {missing!r} is installed; install it on this machine, put the folder "
            "that holds it on PYTHONPATH (PYTHONPATH=. for the working folder), or correct the name"
        ) from None
    except (Exception, SystemExit) as error:  # the user's own code may raise anything, and may end the process
        raise ModelError(f"model.factory={factory}: importing {place} fails ({_reason(error)}); correct it") from error


def _called(factory: str, function: Callable[..., Any], arguments: Mapping[str, Scalar]) -> nn.Module:
    try:
        inspect.signature(function).bind(**arguments)
    except (TypeError, ValueError) as error:  # ValueError: a builtin that declares no signature
        raise ModelError(f"model.arguments={dict(arguments)} do not fit {factory}: {error}") from None
    try:
        model = function(**arguments)
    except ModelError:  # of a factory that knows better
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"model.factory={factory}: with model.arguments={dict(arguments)} it fails ({_reason(error)}); correct the "
            "arguments or the factory"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model.factory={factory}: returns {type(model).__name__}, expected a torch.nn.Module; correct the factory"
        )
    return model


def _reason(error: BaseException) -> str:
    """Kind and first line of an error that somebody else's code raised.

    >>> _reason(ValueError("boom", 3)), _reason(SystemExit())
    ("ValueError: ('boom', 3)", 'SystemExit')
    """
    first = str(error).strip().split("\n", maxsplit=1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _returns_network(function: Callable[..., Any]) -> bool:
    """Whether a callable declares that it makes a network."""
    made: object = function
    if not isinstance(function, type):
        try:
            made = get_type_hints(function).get("return")
        except Exception:  # an annotation may be any expression
            return False
    return isinstance(made, type) and issubclass(made, nn.Module)


def refuse_mixing(model: nn.Module) -> None:
    """Refuse a model that computes one patient's output from other patients' inputs.

    Raises:
        ModelError: a batch normalisation, or an instance normalisation with running statistics.
    """
    for name, module in model.named_modules():
        mixes = isinstance(module, nn.modules.batchnorm._BatchNorm) or (
            isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats
        )
        if mixes:
            raise ModelError(
                f"model layer {name!r} is a {type(module).__name__}: its batch statistics mix patients, so no "
                "patient's contribution can be bounded; replace it by GroupNorm "
                "(opacus.validators.ModuleValidator.fix) and train the model again"
            )


def refuse_unsaveable(model: nn.Module) -> None:
    """Refuse a model whose tensors cannot be kept by name, each with values of its own.

    Raises:
        ModelError: a tensor without shape or values, or not in the order of its axes, or two that share memory.
    """
    state = model.state_dict()
    for name, tensor in state.items():
        _check_kept(name, tensor)
    names, end, owner = list(state), 0, ""
    for start, size, name in sorted((t.data_ptr(), t.nbytes, name) for name, t in state.items() if t.numel()):
        if start < end:
            first, second = sorted((owner, name), key=names.index)
            raise ModelError(f"model tensors {first} and {second} are one; untie them: give each its own values")
        end, owner = start + size, name


def _check_kept(name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise ModelError(f"model state {name} is a {type(tensor).__name__}, expected tensors alone; leave it out")
    if is_lazy(tensor):
        raise ModelError(f"model tensor {name} has no shape before the first batch; give its layer the width")
    if tensor.is_meta:
        raise ModelError(f"model tensor {name} lies on the device meta and has no values; make it on the cpu")
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ModelError(f"model tensor {name} is not contiguous, as weights files need; call .contiguous() on it")
