"""Data sets of Hugging Face: saved on disk, directories that `datasets` can read, or fetched from the hub."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restnet_runtime.errors import SpecError

from .images import UNLABELLED, Images


def split_hub_name(text: str) -> tuple[str, str | None]:
    """(name or path, split) of `NAME_OR_PATH[:SPLIT]`; a path that exists may hold colons."""
    name, colon, split = text.rpartition(":")
    return (text, None) if not colon or Path(text).exists() else (name, split)


def read_hub(text: str) -> Images:
    """The images of `NAME_OR_PATH[:SPLIT]`: its column of images, and its column of class labels if it has one.

    Encoded images stay encoded, so that the device's own decoder reads them. Raises `SpecError`.
    """
    try:
        import datasets
    except ImportError as error:
        raise SpecError(f"data hf:{text} needs the package datasets: pip install 'restnet-runtime[hf]'") from error
    name, split = split_hub_name(text)
    table = _table(datasets, text, name, split)
    if not len(table):
        raise SpecError(f"data hf:{text} has no images: it is empty")
    column = _image_column(datasets, text, table.features)
    labels, classes = _labels(datasets, text, table)
    rows = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return Images(f"hf:{Path(name).name}{f':{split}' if split else ''}", labels, classes, _source(rows, column), encoded=True)


def _table(datasets: Any, text: str, name: str, split: str | None) -> Any:
    """The table of one split. `datasets` raises whatever it and its readers trip over."""
    path = Path(name)
    try:
        if any((path / marker).is_file() for marker in ("dataset_info.json", "state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(name)
        elif path.is_file():
            found = datasets.load_dataset(path.suffix.lstrip("."), data_files=name)
        else:
            found = datasets.load_dataset(name)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SpecError(f"data hf:{text} cannot be read: {reason}") from error
    if not isinstance(found, dict):  # a single split, saved by itself
        if split not in (None, str(found.split or "")):
            raise SpecError(f"data hf:{text} has no split {split!r}: it is a single one, leave the name out")
        return found
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split not in found:
        asked = f"no split {split!r}" if split else "several splits"
        raise SpecError(f"data hf:{text} has {asked}: give one as hf:{name}:SPLIT, of {', '.join(found)}")
    return found[split]


def _image_column(datasets: Any, text: str, features: Any) -> str:
    images: list[str] = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if len(images) != 1:
        raise SpecError(f"data hf:{text} needs one column of images; of its columns {', '.join(features)} {len(images)} are")
    return images[0]


def _labels(datasets: Any, text: str, table: Any) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """(labels, class names): of the one column of class labels, or of integers called `label` or `labels`; else `UNLABELLED`."""
    columns = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name in ("label", "labels") if name in table.features]
    column = next(iter(plain or columns), None)
    if column is None:
        return np.full(len(table), UNLABELLED, np.int64), None
    if not plain and len(columns) > 1:
        raise SpecError(f"data hf:{text} has several columns of labels ({', '.join(columns)}): rename the one that is meant to 'label'")
    values = np.array(table[column])
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise SpecError(f"data hf:{text} has labels of {values.dtype} in its column {column!r}; they must be one integer each")
    unknown = int((values < 0).sum())
    if unknown == len(values):  # so the hub marks labels that are kept secret
        return np.full(len(table), UNLABELLED, np.int64), None
    if unknown:
        raise SpecError(f"data hf:{text} has no label for {unknown} of its {len(values)} images")
    names = table.features[column].names if column in columns else None
    return values.astype(np.int64), tuple(names) if names else None


def _source(rows: Any, column: str) -> Callable[[int], Path | bytes | np.ndarray]:
    def source(index: int) -> Path | bytes | np.ndarray:
        try:
            item = rows[index][column] or {}
        except Exception as error:  # of pyarrow
            raise OSError(str(error)) from error
        data: bytes | None = item.get("bytes")
        return data if data is not None else Path(item["path"]) if item.get("path") else b""

    return source
