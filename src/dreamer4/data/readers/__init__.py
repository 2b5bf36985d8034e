"""Data sets read in place, window by window: nothing of them is loaded whole, so their size does not matter."""

from dreamer4.data.readers.base import AbstractReader as AbstractReader
from dreamer4.data.readers.base import Window as Window
from dreamer4.data.readers.flat import FlatReader as FlatReader
from dreamer4.data.readers.latent import LatentReader as LatentReader
from dreamer4.data.readers.lerobot import LeRobotReader as LeRobotReader
from dreamer4.data.readers.minari import MinariReader as MinariReader
from dreamer4.data.readers.opening import format_of as format_of
from dreamer4.data.readers.opening import is_dataset as is_dataset
from dreamer4.data.readers.opening import open_reader as open_reader
from dreamer4.data.readers.own import OwnReader as OwnReader
from dreamer4.data.readers.rlds import RLDSReader as RLDSReader
from dreamer4.data.readers.video import VideoReader as VideoReader
from dreamer4.data.readers.vpt import VptReader as VptReader
