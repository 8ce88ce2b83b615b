"""Bodies: what HTTP requests look like as JSON, and how they are read."""

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from restnet_runtime.budget import Budget
from restnet_runtime.errors import InputError, RequestError
from restnet_runtime.nesting import check_nesting

BUDGET_EXAMPLE = "200MFLOPs,30ms,150MB"
_SHOWN_CHARACTERS = 60


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


_RequestT = TypeVar("_RequestT", bound=_Request)


class PredictRequest(_Request):
    """JSON body of POST /predict: exactly one of image, images and inputs."""

    image: Annotated[str | None, Field(description="an image file in base64, also as a data URL")] = None
    images: Annotated[list[str] | None, Field(description="a batch of image files in base64")] = None
    inputs: Annotated[
        list[Any] | None,
        Field(description="preprocessed numbers, nested lists of shape (channels, height, width) or (batch, channels, height, width)"),
    ] = None
    top_k: Annotated[int | None, Field(ge=1, description="how many classes to list")] = None
    budget: Annotated[str | None, Field(description="narrows the standing budget for this request only", examples=[BUDGET_EXAMPLE])] = None


class BudgetRequest(_Request):
    """JSON body of PUT /budget: the new standing budget, either as text or limit by limit. What is left out is not limited."""

    budget: Annotated[str | None, Field(description="limits separated by commas, or none", examples=[BUDGET_EXAMPLE])] = None
    macs: Annotated[int | None, Field(description="multiply-accumulates per input", examples=[200_000_000])] = None
    latency_ms: Annotated[float | None, Field(description="milliseconds per request", examples=[30.0])] = None
    memory_bytes: Annotated[int | None, Field(description="memory of the process (PSS)", examples=[150_000_000])] = None

    min_accuracy: Annotated[
        float | None,
        Field(description="the floor, 0..1: requests are refused rather than answered by a lesser route", examples=[0.9]),
    ] = None

    def limits(self) -> Budget:
        """As a `Budget`. Raises `InputError` for an empty or doubled one, `UnitError` for limits that cannot be read."""
        numbers = self.model_fields_set - {"budget"}
        if self.budget is not None:
            if numbers:
                raise InputError(f"both budget and {', '.join(sorted(numbers))} are given: give either the text or the numbers")
            return Budget.parse(self.budget)
        if not numbers:
            raise InputError(
                "the body sets no limit: give budget (none removes every limit), or any of macs, latency_ms, memory_bytes, min_accuracy"
            )
        return Budget(self.macs, self.latency_ms, self.memory_bytes, self.min_accuracy)


class PinRequest(_Request):
    """JSON body of PUT /pin."""

    route: Annotated[str, Field(description="the route that all requests are to run on")]


def read_json(model: type[_RequestT], body: bytes) -> _RequestT:
    """`body` as `model`. Raises `RequestError` when it is not JSON, `InputError` naming what does not fit the model."""
    check_nesting(body)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "json_invalid":
            raise RequestError(f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from error
        if first["type"] == "extra_forbidden":
            raise InputError(f"unknown field {name[:_SHOWN_CHARACTERS]!r}: allowed are {', '.join(model.model_fields)}") from error
        if first["type"] == "missing":
            raise InputError(f"field {name} is missing: allowed are {', '.join(model.model_fields)}") from error
        shown = repr(first["input"])[:_SHOWN_CHARACTERS]
        where = f"field {name}" if name else "the body"
        raise InputError(f"{where} is {shown}: {first['msg']}") from error
