"""Labels that are class numbers of the model: checked, and matched by the names of classes where there are names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitprune.errors import LoadError

SHOWN = 5  # names in a message


def checked(labels: Any, count: int, origin: str) -> NDArray[np.int64]:
    """Labels as int64 [count].

    Nothing is rounded, cut or reshaped: labels of shape [n,1] would be compared with predictions [n] as a table [n,n].

    Args:
        labels: what a file holds. count: number of images. origin: of the data, for messages.

    Raises:
        LoadError: VP624 they are not whole numbers, not one per image, or of another shape.
    """
    array = np.asarray(labels)
    cause = ""
    if array.dtype.kind not in "iu":
        cause = f"labels are {array.dtype}, class numbers are integers"
    elif array.ndim != 1:
        cause = f"labels have shape {array.shape}, one number per image has shape ({count},)"
    elif len(array) != count:
        cause = f"there are {count} images and {len(array)} labels"
    elif array.dtype.kind == "u" and len(array) and int(array.max()) > np.iinfo(np.int64).max:
        cause = f"label {int(array.max())} is no class number"
    if cause:
        raise LoadError(624, f"labels of '{origin}' are not class numbers", cause=cause, next_step="store integer labels [n]")
    return array.astype(np.int64)


def in_range(labels: NDArray[np.int64], classes: int, origin: str, name: Callable[[int], str]) -> None:
    """Refuse labels outside of 0 to classes - 1.

    Raises:
        LoadError: VP624 naming the first.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise LoadError(
            624,
            f"labels of '{origin}' are out of range",
            cause=f"{name(int(wrong[0]))} has label {int(labels[wrong[0]])}, the model has classes 0 to {classes - 1}; {len(wrong)} such labels",
            next_step="set model.args.num_classes to the data's number of classes, or correct the labels",
        )


def by_name(labels: NDArray[np.int64], own: Sequence[str], model: Sequence[str], origin: str) -> NDArray[np.int64]:
    """Labels that count a data set's classes, as numbers of the model's classes.

    Args:
        labels: int64 [n], places in `own`. own: names of the data set's classes. model: names of the model's, in its order.

    Raises:
        LoadError: VP627 a class of the data that the model lacks, or a name that stands for two classes.
    """
    places = {name: number for number, name in enumerate(model)}
    unknown = [name for name in own if name not in places]
    if unknown or len(places) < len(model):
        twice = "" if unknown else next(name for name in model if list(model).count(name) > 1)
        raise LoadError(
            627,
            f"classes of '{origin}' are not those of the model",
            cause=f"'{twice}' names two classes of the model"
            if twice
            else f"the model has no class {_shown(unknown)}; it has {_shown(model)}",
            next_step="name the classes as the model does, or state its names in their order: model.classes in the recipe",
        )
    table = np.asarray([places[name] for name in own], np.int64)
    return table[labels] if len(labels) else labels


def by_order(own: Sequence[str], classes: int, origin: str) -> None:
    """Refuse class folders whose order does not tell the model's class numbers.

    Where the names of the model's classes are not known, folder i in alphabetical order is class i: the convention of torchvision's
    ImageFolder. It holds only when every class has a folder, and is doubtful for numbers ("10" stands before "2").

    Raises:
        LoadError: VP627.
    """
    cause = ""
    if len(own) != classes:
        cause = f"there are {len(own)} class folders and the model has {classes} classes, whose names are not known"
    elif all(name.isdecimal() for name in own):
        turned = next(((one, two) for one, two in pairwise(own) if int(one) > int(two)), None)
        cause = (
            f"folders are numbers and '{turned[0]}' comes before '{turned[1]}' alphabetically; the model's order is not known"
            if turned
            else ""
        )
    if cause:
        raise LoadError(
            627,
            f"which class a folder of '{origin}' stands for is not known",
            cause=cause,
            next_step="state the names in the model's order: model.classes in the recipe; or an .npz with 'images' and 'labels'",
        )


def _shown(names: Sequence[str]) -> str:
    text = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return text if len(names) <= SHOWN else f"{text} and {len(names) - SHOWN} more"
