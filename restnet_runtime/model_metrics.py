"""What metrics tell of a model, put together from those who know it."""

from restnet_runtime.intake import Intake
from restnet_runtime.models import Models
from restnet_runtime.settings import ServeSettings
from restnet_runtime.state_metrics import Serving
from restnet_runtime.updates import Updates


def serving_of(models: Models, name: str, intake: Intake, settings: ServeSettings, updates: Updates | None) -> Serving:
    """What metrics tell of a model now."""
    model = models.find(name)
    executor, queue = model.backend.executor, intake.queue()
    profiles = {route.name: executor.profile(route.name) for route in executor.bundle.routes}
    return Serving(
        model=name,
        digest=executor.bundle.digest,
        routes=executor.bundle.routes,
        profiles={route: profile for route, profile in profiles.items() if profile is not None},
        loaded=executor.loaded,
        current=executor.current.name if executor.current else None,
        status=model.backend.controller.status(),
        progress=model.backend.progress(),
        batches=model.backend.batcher.counts(),
        requests=model.in_flight,
        most_requests=settings.max_in_flight,
        receiving_bytes=queue.receiving_bytes if model is models.default else 0,  # of all models: counted once
        loaded_bytes=model.loaded_bytes,
        reserved_bytes=model.reserved_bytes,
        updates={} if updates is None else updates.outcomes(name),
        updating=None if updates is None else updates.running(name) is not None,
    )
