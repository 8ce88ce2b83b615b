"""Images as the networks see them: prepared by the very code that the device runs, ahead of use and in several threads."""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restnet_runtime.errors import RequestError, SpecError
from restnet_runtime.manifest import Preprocessing
from restnet_runtime.preprocess import Preprocessor

from .devices import CPU, on_device
from .images import Images

_AHEAD = 1
"""So many batches are prepared while one is used: each is as large as its images in float32."""

BATCH = 32
"""Images that least squares, probes and scores see at a time: what anchors compute of them is held at once."""

_Begun = tuple[list[int], "list[Future[np.ndarray]]"]
"""The images of a batch, and the parts of it that are being prepared."""


class Samples:
    """Prepared images one by one: `samples[i]` is (x float32 (C, H, W), label); what tuning draws from.

    workers: threads that decode ahead; decoders work without Python's lock. 0: the caller's own. What comes, and in which order,
    does not depend on them.
    device:  where batches go when they are prepared.
    """

    def __init__(
        self,
        images: Images,
        preprocessing: Preprocessing,
        input_shape: tuple[int, int, int],
        workers: int = 0,
        device: torch.device = CPU,
    ) -> None:
        self.images, self.device = images, device
        self._preprocessor = Preprocessor(preprocessing, input_shape)
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._begun: _Begun | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.prepared(index)), int(self.images.labels[index])

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
        """(x float32 (B, C, H, W), y int64 (B,)) in order; the last batch may be smaller. Raises `SpecError` for a bad image."""
        return self.drawn(range(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def drawn(self, draws: Iterable[Sequence[int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch (x, y) of the images at each of `draws`, in that order. `draws` is read ahead of what is used."""
        if not self._workers:
            yield from (self._batch(indices, [self._stack(indices)]) for indices in draws)
            return
        waiting: deque[_Begun] = deque()
        with ThreadPoolExecutor(self._workers, "prepare") as pool:
            try:
                for indices in draws:
                    waiting.append(self._submit(pool, indices))
                    if len(waiting) > _AHEAD:
                        yield self._finished(*waiting.popleft())
                while waiting:
                    yield self._finished(*waiting.popleft())
            finally:  # the caller stopped early, or an image is bad
                pool.shutdown(wait=False, cancel_futures=True)

    def drawn_with_next(self, indices: Sequence[int], following: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The batch (x, y) of the images at `indices`, while those at `following`, likely to be asked for next, are begun."""
        if not self._workers:
            return self._batch(indices, [self._stack(indices)])
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, "prepare")
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        begun = self._begun
        if begun is None or begun[0] != list(indices):
            begun = self._submit(self._pool, indices)
        else:
            self._begun = None
        if following:
            self._begun = self._submit(self._pool, following)
        return self._finished(*begun)

    def prepared(self, index: int) -> np.ndarray:
        """Image `index` as float32 (C, H, W). Raises `SpecError` naming it if it cannot be read."""
        try:
            item = self.images.source(index)
            if isinstance(item, np.ndarray):
                batch = self._preprocessor.from_pixels(item)
            else:
                batch = self._preprocessor.from_files([item.read_bytes() if isinstance(item, Path) else item])
        except (RequestError, OSError) as error:
            raise SpecError(f"data {self.images.name!r}, {self.images.which(index)}: {error}") from error
        prepared: np.ndarray = batch[0]
        return prepared

    def _submit(self, pool: ThreadPoolExecutor, indices: Sequence[int]) -> "_Begun":
        return list(indices), [pool.submit(self._stack, part) for part in _parts(indices, self._workers)]

    def _stack(self, indices: Sequence[int]) -> np.ndarray:
        return np.stack([self.prepared(index) for index in indices])

    def _finished(self, indices: Sequence[int], parts: list["Future[np.ndarray]"]) -> tuple[Tensor, Tensor]:
        return self._batch(indices, [part.result() for part in parts])

    def _batch(self, indices: Sequence[int], parts: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
        labels = torch.from_numpy(self.images.labels[np.asarray(indices, np.int64)])
        return on_device(torch.from_numpy(pixels), self.device), on_device(labels, self.device)


def _parts(indices: Sequence[int], workers: int) -> list[Sequence[int]]:
    """`indices` in as many runs as there are workers, fewer where there are fewer indices."""
    length = -(-len(indices) // workers)
    return [indices[start : start + length] for start in range(0, len(indices), length)]
