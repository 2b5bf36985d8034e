"""What a page and its session say to each other over one socket.

The page asks in JSON text, and asks again only when it was answered, so that no more than one frame is ever on its way.
An answer is binary: four bytes of length (little endian), a JSON header of that length, then the bytes of the arrays
that the header lists, end to end.
"""

import dataclasses
import json
import struct
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dreamer4.errors import InputError
from dreamer4.serving.play.moment import Moment
from dreamer4.serving.play.stage import Stage


MAX_MESSAGE = 64 * 1024  # bytes
MAX_SEED = 2**31 - 1
FASTEST = 60  # frames per second


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Start(_Request):
    """Begin anew; see `Session.start`."""

    type: Literal["start"]
    mode: Literal["game", "dream", "both"]
    episode: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    passed: Annotated[int, Field(ge=1, le=MAX_SEED)] = 1
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0


class Step(_Request):
    """Advance by one frame; see `Session.step`."""

    type: Literal["step"]
    by: Literal["player", "policy", "prior"] = "player"
    discrete: Annotated[list[Annotated[int, Field(ge=0, le=MAX_SEED)]], Field(max_length=1024)] = []
    continuous: Annotated[list[float], Field(max_length=1024)] = []
    num_steps: Annotated[int, Field(ge=1, le=MAX_SEED)]
    twice: bool = False


class Look(_Request):
    """Show another mode; see `Session.look`."""

    type: Literal["look"]
    mode: Literal["game", "dream", "both"]


class Record(_Request):
    """Begin or end a recording; see `Session.record`."""

    type: Literal["record"]
    on: bool


class Choose(_Request):
    """Play another task from now on; the answer is that of a session that begins."""

    type: Literal["choose"]
    task: Annotated[int, Field(ge=0, le=MAX_SEED)]


class Fetch(_Request):
    """Send a file: what was recorded last as a film of `fps` frames per second, or the session as data sets."""

    type: Literal["fetch"]
    what: Literal["gif", "mp4", "episode"]
    fps: Annotated[float, Field(ge=1, le=FASTEST)] = 10.0


Asked = Start | Step | Look | Record | Fetch  # of the session there is
Request = Asked | Choose
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


def parse(text: str) -> Request:
    """Returns the request that a message is.

    Raises:
        InputError: if it is none.
    """
    try:
        return _REQUEST.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{place or 'message'}: {first['msg']}") from None


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, body: bytes = b"") -> bytes:
    """Returns an answer: a header that lists the arrays with their shapes, the arrays (uint8), and a last body."""
    arrays = arrays or {}
    listed = [{"name": name, "shape": list(array.shape)} for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": listed}, allow_nan=False).encode()
    parts = [np.ascontiguousarray(array, np.uint8).tobytes() for array in arrays.values()]
    return b"".join([struct.pack("<I", len(text)), text, *parts, body])


def unpack(answer: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray], bytes]:
    """Returns header, arrays and body of an answer: what the page does in its own language."""
    (size,) = struct.unpack("<I", answer[:4])
    header, position, arrays = json.loads(answer[4 : 4 + size]), 4 + size, {}
    for listed in header.pop("arrays"):
        end = position + int(np.prod(listed["shape"]))
        arrays[listed["name"]] = np.frombuffer(answer[position:end], np.uint8).reshape(listed["shape"])
        position = end
    return header, arrays, answer[position:]


def pack_moment(moment: Moment) -> bytes:
    """Returns a moment as an answer."""
    header = {f.name: getattr(moment, f.name) for f in dataclasses.fields(moment) if f.name != "images"}
    return pack({"type": "moment", **header}, moment.images)


def pack_hello(stage: Stage, *, formats: tuple[str, ...], idle: float, total: float) -> bytes:
    """Returns the first answer, unasked, and that to another task: what can be played here, and how."""
    controls = dataclasses.asdict(stage.controls)
    starts = [
        {"frames": episode.length, "return": round(episode.total, 4), "terminal": episode.is_terminal}
        for episode in stage.episodes
    ]
    return pack(
        {
            "type": "hello",
            "name": stage.name,
            "task": stage.task,
            "tasks": list(stage.tasks),
            "phase": stage.phase,
            "frame_shape": list(stage.spec.frame_shape),
            "controls": controls,
            "passes": list(stage.passes),
            "own_passes": stage.own_passes,
            "policies": list(stage.policies),
            "heads": list(stage.heads),
            "game": stage.env is not None,
            "absent": stage.absent,
            "starts": starts,
            "formats": list(formats),
            "idle": idle,
            "total": total,
            "fastest": FASTEST,
        }
    )
