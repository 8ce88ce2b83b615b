"""Every error this project raises on purpose, in one tree.

    RestnetError
      BundleError          a bundle is damaged, hostile, newer than this reader, or inconsistent
        SignatureError       a bundle that nobody trusted has signed as it is
      KeyFileError         a key to sign with, or to check signatures with, that cannot be used
      UpdateError          a bundle that cannot take the place of another, on disk or in a server
        BusyError            ... now: another one is under way
      CompileError         a route could not be compiled or loaded on this device
        NotLoadedError       the route was asked to run, and is not loaded (any more)
        RoomError            ... for want of memory or of disk
          KilledError      the process that compiled it was killed, most likely because memory ran out
          StoppedError     compiling has been stopped, and nothing is wrong with the route
      UnitError            a quantity or a budget could not be read
      ExpiredError         a request was not run, because its deadline had passed
      InfeasibleError      no route fits the budget, and the operator chose to refuse rather than overrun
      TraceError           a trace that cannot be read or made
      ModelError           a model that there is not, or a name that two have
      AddressError         the address to serve on cannot be had
      AccessError          a token, host name or origin that the server cannot be set to
      ClosedError          a runtime was used after it was closed
      RequestError         what a client sent cannot be used
        ImageError           an image that cannot be decoded
        InputError           an array of the wrong shape, type or value
        TooLongError         a body that is longer than is allowed
      ExportError          the exporter cannot go on
        SpecError            an anchor or data specification that cannot be read or loaded
        CutError             an anchor that cannot be cut as asked
        RuleError            a stitching rule that does not apply to these anchors
        ParityError          a segment or a route that does not compute what torch computes

A message names the offender, its value and what is allowed.
"""


class RestnetError(Exception):
    """Base of all errors raised on purpose by `restnet_runtime` and `restnet_export`."""


class BundleError(RestnetError):
    """A bundle that must not be used. The message names the file and the reason."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class SignatureError(BundleError):
    """A bundle that no required key has signed as it is."""


class KeyFileError(RestnetError):
    """A file of a key that cannot be read, made or used, or no means to use it."""


class UpdateError(RestnetError):
    """A bundle that cannot take the place of another."""


class BusyError(UpdateError):
    """Another bundle is about to take its place."""


class CompileError(RestnetError):
    """A route that ONNX Runtime could not compile or load here."""


class NotLoadedError(CompileError):
    """A route that is not loaded: never was, or was released since it was chosen."""


class RoomError(CompileError):
    """There is not the memory or the disk to compile a route: what does without a compiled route would take more still."""


class KilledError(RoomError):
    """The process that compiled a route was killed."""


class StoppedError(RoomError):
    """A route that is not compiled any more, because whoever wanted it ends."""


class UnitError(RestnetError):
    """A quantity or a budget that cannot be read."""


class InfeasibleError(RestnetError):
    """No route fits the budget, and running one anyway was ruled out."""


class ExpiredError(RestnetError):
    """A request that was not run, because its deadline had passed."""


class TraceError(RestnetError):
    """A trace that cannot be read, or that nobody knows how to make."""


class ModelError(RestnetError):
    """A model of a name that there is not, or names that cannot be given."""


class AddressError(RestnetError):
    """An address that cannot be listened on."""


class ClosedError(RestnetError):
    """A runtime that was used before it was open, or after it was closed."""


class AccessError(RestnetError):
    """A token, a host name or an origin that access cannot be ruled by."""


class RequestError(RestnetError):
    """A request that cannot be answered because of what it carries."""


class ImageError(RequestError):
    """An image that cannot be decoded."""


class InputError(RequestError):
    """An input array of the wrong shape, type or value."""


class TooLongError(RequestError):
    """A body that is longer than is allowed, once it is decompressed."""


class ExportError(RestnetError):
    """The exporter cannot go on."""


class SpecError(ExportError):
    """An anchor or data specification that cannot be read or loaded."""


class CutError(ExportError):
    """An anchor that cannot be cut as asked."""


class RuleError(ExportError):
    """A stitching rule that does not apply to the anchors it was given."""


class ParityError(ExportError):
    """A segment or a route whose output differs from torch's by more than is allowed."""
