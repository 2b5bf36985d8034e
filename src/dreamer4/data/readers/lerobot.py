"""Windows of LeRobot data sets, versions 2.0, 2.1 and 3.0: tables of Parquet, and films or pictures of cameras."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from dreamer4.data.readers.base import AbstractReader, Window
from dreamer4.data.readers.indexed import IndexedFilm
from dreamer4.data.readers.pictures import decode, shrink
from dreamer4.data.readers.steps import ActionScale
from dreamer4.errors import InputError, nearest
from dreamer4.files import read_bytes
from dreamer4.types import DataSpec


_MAX_TEXT = 2**30  # bytes of a description
_LABELS = ("action", "next.reward", "next.success", "task_index", "episode_index", "frame_index")


class _Place(NamedTuple):
    """Where an episode lies: its table, and its film with the number of its first frame there."""

    number: int
    length: int
    table: Path
    film: Path
    first: int


def is_lerobot(path: Path) -> bool:
    """Whether a path is the folder of a LeRobot data set."""
    return (path / "meta" / "info.json").is_file()


class LeRobotReader(AbstractReader):
    """Reads each episode's camera, actions and, where there are any, rewards.

    Frames are found by their number, not by seconds, which drift where episodes lie end to end in one film. Actions
    were taken at the frame of their row; those of the last row led to a frame that is not there. An episode with
    `next.success` ended by termination.

    Attributes:
        tasks: text of each task.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        camera: str | None = None,
        size: Sequence[int] | None = None,
        quantiles: bool = False,
    ):
        """Reads the tables and lists the frames of the films.

        Args:
            path: the folder.
            camera: the feature that is the frame; may be left out where there is one camera.
            size: height and width to which frames are averaged; None: as they are.
            quantiles: whether continuous actions range from their 1st to their 99th percentile, beyond which they are
                clipped, and not from the least to the greatest.

        Raises:
            InputError: if the data cannot be read, or there are several cameras and none is chosen.
        """
        self._path, self._size = Path(path), None if size is None else (int(size[0]), int(size[1]))
        with _telling(self._path / "meta"):
            info = _json(self._path / "meta" / "info.json")
            features, version = info["features"], str(info["codebase_version"])
            cameras = {k: f["dtype"] for k, f in features.items() if f["dtype"] in ("video", "image") and "/" not in k}
            self._camera = _chosen(self._path, camera, list(cameras))
            self._filmed = cameras[self._camera] == "video"
            modern = version.startswith("v3")
            if not (modern or version.startswith("v2")):
                raise InputError(f"{path}: LeRobot {version}, expected v2.0, v2.1 or v3.0. Convert it with LeRobot.")
            self._places = list((self._modern if modern else self._older)(info))
            self.tasks = tuple(self._read_tasks(modern))
        if not self._places:
            raise InputError(f"{path} holds no episodes.")
        columns, self._rows = self._read_labels()
        with _telling(self._path / "meta"):
            self._scale = self._read_scale(
                features["action"], np.concatenate([c["action"] for c in columns]), quantiles
            )
        self._films = self._open_films() if self._filmed else {}
        shape = self._frames(0, 0, 1).shape
        self.spec = DataSpec((shape[1], shape[2], shape[3]), self._scale.spec, max(len(self.tasks), 1))
        self.lengths = np.array([place.length for place in self._places])
        self._steps = [
            self._scale.steps(c["action"], c.get("next.reward"), int(n))
            for c, n in zip(columns, self.lengths, strict=True)
        ]
        self.is_terminal = np.array([bool(np.any(c.get("next.success", 0))) for c in columns])
        self.task = np.array([int(c["task_index"][0]) if "task_index" in c else 0 for c in columns], np.int32)
        if np.any((self.task < 0) | (self.task >= self.spec.num_tasks)):
            raise InputError(
                f"{path}: an episode has the task {self.task.max()}, but there are {len(self.tasks)} tasks."
            )
        self.relevant = np.ones(len(columns), bool)
        digest = hashlib.sha256(repr((self._camera, self._size, quantiles, self.lengths.tolist())).encode())
        for column, steps in zip(columns, self._steps, strict=True):
            for values in (column["action"], steps.reward):
                digest.update(np.ascontiguousarray(values).tobytes())
        for file in sorted({p.film if self._filmed else p.table for p in self._places}):
            digest.update(str(file.stat().st_size).encode())
        self.fingerprint = digest.hexdigest()
        clipped = sum(self._scale.outside(c["action"]) for c in columns)
        self.findings = (
            f"camera {self._camera}, of {', '.join(cameras)}",
            *(f"task {number}: {text}" for number, text in enumerate(self.tasks)),
            *([f"{clipped} x number of an action clipped to its range"] if clipped else []),
        )

    def window(self, episode: int, start: int, length: int, *, frames: bool = True) -> Window:
        return self._steps[episode].window(start, length, self._frames(episode, start, length) if frames else None)

    def _frames(self, episode: int, start: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
        place = self._places[episode]
        if self._filmed:
            frames = self._films[place.film].frames(place.first + start, length)
        else:
            frames = _pictures(place.table, self._camera, self._rows[episode] + start, length)
        return shrink(frames, self._size)

    def _older(self, info: dict[str, Any]) -> Iterator[_Place]:
        """Yields the episodes of version 2: a table and a film each."""
        for entry in _json_lines(self._path / "meta" / "episodes.jsonl"):
            number = int(entry["episode_index"])
            chunk, name = f"chunk-{number // int(info['chunks_size']):03d}", f"episode_{number:06d}"
            film = self._path / "videos" / chunk / self._camera / f"{name}.mp4"
            yield _Place(number, int(entry["length"]), self._path / "data" / chunk / f"{name}.parquet", film, 0)

    def _modern(self, info: dict[str, Any]) -> Iterator[_Place]:
        """Yields the episodes of version 3: many to a table and to a film."""
        for file in sorted((self._path / "meta" / "episodes").glob("*/*.parquet")):
            names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
            at = [f"videos/{self._camera}/{name}" for name in ("chunk_index", "file_index", "from_timestamp")]
            for entry in _parquet(file, names + (at if self._filmed else [])).to_pylist():
                table, film, first = _file(entry, "data/"), Path(), 0
                if self._filmed:
                    film = self._path / "videos" / self._camera / f"{_file(entry, f'videos/{self._camera}/')}.mp4"
                    first = round(entry[at[2]] * info["fps"])
                yield _Place(
                    int(entry["episode_index"]),
                    int(entry["length"]),
                    self._path / "data" / f"{table}.parquet",
                    film,
                    first,
                )

    def _read_tasks(self, modern: bool) -> list[str]:
        if not modern:
            entries = _json_lines(self._path / "meta" / "tasks.jsonl")
        else:
            table = _parquet(self._path / "meta" / "tasks.parquet")
            # The text is the index of a table of pandas, which gives it one of these names.
            text = next(n for n in ("task", "__index_level_0__", *table.column_names) if n in table.column_names)
            entries = [{"task_index": e["task_index"], "task": e[text]} for e in table.to_pylist()]
        return [str(entry["task"]) for entry in sorted(entries, key=lambda entry: entry["task_index"])]

    def _read_labels(self) -> tuple[list[dict[str, np.ndarray]], list[int]]:
        """Returns the columns of each episode, and the row of its table at which it begins."""
        tables: dict[Path, dict[str, np.ndarray]] = {}
        columns, rows = [], []
        for place in self._places:
            with _telling(place.table):
                if place.table not in tables:
                    tables.clear()  # episodes of one table follow each other
                    tables[place.table] = _columns(place.table)
                table = tables[place.table]
                at = np.flatnonzero(table["episode_index"][:, 0] == place.number)
                found = {name: values[at] for name, values in table.items()}
                if not len(at) or not np.array_equal(found["frame_index"][:, 0], np.arange(place.length)):
                    raise InputError(
                        f"{place.table}: holds {len(at)} rows of episode {place.number}, expected frames 0 to "
                        f"{place.length - 1} in their order."
                    )
                if not np.all(np.isfinite(found["action"])):
                    raise InputError(f"{place.table}: an action of episode {place.number} is no finite number.")
            columns.append({k: v if k == "action" else v[:, 0] for k, v in found.items()})
            rows.append(int(at[0]))
        return columns, rows

    def _read_scale(self, feature: dict[str, Any], actions: np.ndarray, quantiles: bool) -> ActionScale:
        if str(feature["dtype"]).startswith(("int", "uint", "bool")) and actions.shape[1] == 1 and actions.min() >= 0:
            return ActionScale((max(int(actions.max()) + 1, 2),), np.zeros(0), np.zeros(0))
        low, high = ("q01", "q99") if quantiles else ("min", "max")
        whole, parts = self._path / "meta" / "stats.json", self._path / "meta" / "episodes_stats.jsonl"
        stats = [_json(whole)] if whole.is_file() else [entry["stats"] for entry in _json_lines(parts)]
        if any(low not in entry["action"] for entry in stats):
            raise InputError(f"{self._path}: its statistics tell no {low} of actions. Open it with quantiles=False.")
        found = [np.array([np.ravel(entry["action"][name]) for entry in stats], float) for name in (low, high)]
        return ActionScale.between(found[0].min(axis=0), found[1].max(axis=0))

    def _open_films(self) -> dict[Path, IndexedFilm]:
        """Opens every film, and holds its frames against the episodes in it."""
        films = {}
        for place in self._places:
            if place.film not in films:
                if not place.film.is_file():
                    raise InputError(f"{place.film} does not exist, but episode {place.number} is filmed there.")
                films[place.film] = IndexedFilm(place.film)
            if place.first + place.length > len(films[place.film]):
                raise InputError(
                    f"{place.film}: has {len(films[place.film])} frames, but episode {place.number} is frames "
                    f"{place.first} to {place.first + place.length - 1}. Copy the data set again."
                )
        return films


def _chosen(path: Path, camera: str | None, cameras: list[str]) -> str:
    if camera is None and len(cameras) == 1:
        return cameras[0]
    if camera not in cameras:
        told = f"has the cameras {', '.join(cameras)}. Choose one by the option camera" if cameras else "has no camera"
        raise InputError(f"{path} {told}. {nearest(camera, cameras) if camera and cameras else ''}".rstrip())
    return camera


@contextmanager
def _telling(where: Path) -> Iterator[None]:
    """Tells in words what is wrong with a description or a table."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError, StopIteration) as error:
        what = f"has no entry {error}" if isinstance(error, KeyError) else f"cannot be read: {error}"
        raise InputError(f"{where}: {what}. Copy the LeRobot data set again.") from error


def _json(path: Path) -> Any:
    return json.loads(read_bytes(path, limit=_MAX_TEXT))


def _json_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in read_bytes(path, limit=_MAX_TEXT).splitlines() if line.strip()]


def _file(entry: dict[str, Any], prefix: str) -> str:
    return f"chunk-{entry[prefix + 'chunk_index']:03d}/file-{entry[prefix + 'file_index']:03d}"


def _parquet(path: Path, columns: list[str] | None = None) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError("LeRobot data needs pyarrow. Run: pip install 'dreamer4-eqx[formats]'.") from None
    return pq.ParquetFile(path).read(columns=columns)


def _columns(path: Path) -> dict[str, Float[np.ndarray, "N dims"]]:
    """Returns the labels in a table, with two axes each."""
    import pyarrow.parquet as pq

    there = set(pq.ParquetFile(path).schema_arrow.names)
    table, columns = _parquet(path, [name for name in _LABELS if name in there]), {}
    for name in table.column_names:
        values = table[name].combine_chunks()
        while hasattr(values, "flatten") and "list" in str(values.type):
            values = values.flatten()
        columns[name] = values.to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return columns


def _pictures(path: Path, camera: str, row: int, length: int) -> UInt8[np.ndarray, "T H W C"]:
    """Decodes the pictures in some rows of a table."""
    import pyarrow.parquet as pq

    with _telling(path):
        file = pq.ParquetFile(path)
        ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
        groups = range(
            int(np.searchsorted(ends, row, "right")), int(np.searchsorted(ends, row + length - 1, "right")) + 1
        )
        begin = int(ends[groups.start - 1]) if groups.start else 0
        cells = file.read_row_groups(list(groups), columns=[camera])[camera].slice(row - begin, length).to_pylist()
        return np.stack([decode(cell["bytes"]) for cell in cells])
