"""The engines of a process that serves several bundles, by the name of each: opened, started and stopped together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from restnet_runtime.engine import Engine
from restnet_runtime.errors import ModelError


class Engines(Mapping[str, Engine]):
    """In the order in which they were given. Use it as a context manager, or call `start` and `stop`."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = dict(engines)

    @classmethod
    def open(cls, given: Sequence[tuple[str | None, Path]], open_one: Callable[[str | None, Path], Engine]) -> "Engines":
        """Open each bundle, under the name that was given for it, else that which it has.

        Raises `ModelError` where two have the same name, and what `open_one` raises; then none stays open.
        """
        opened: dict[str, Engine] = {}
        try:
            for name, path in given:
                engine = open_one(name, path)
                bundle = engine.executor.bundle
                name = name or bundle.manifest.name
                if name in opened:
                    engine.stop()
                    raise ModelError(
                        f"two models are called {name!r}: {opened[name].executor.bundle.path} and {bundle.path}; give one of them another "
                        f"name, as in {name}2={path}"
                    )
                opened[name] = engine
        except BaseException:
            cls(opened).stop()
            raise
        return cls(opened)

    def start(self) -> None:
        for engine in self._engines.values():
            engine.start()

    def stop(self) -> None:
        """Stop all. None begins anything more meanwhile, so that none is waited for longer than for what it does now."""
        for engine in self._engines.values():
            engine.halt()
        for engine in self._engines.values():
            engine.stop()

    def put(self, name: str, engine: Engine) -> Engine:
        """Let a started engine be stopped with the others in place of that which a model had, which is returned."""
        before, self._engines[name] = self._engines[name], engine
        return before

    def __getitem__(self, name: str) -> Engine:
        return self._engines[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    def __enter__(self) -> "Engines":
        try:
            self.start()
        except BaseException:  # a signal, say
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
