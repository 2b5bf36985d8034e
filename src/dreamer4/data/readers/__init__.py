"""Data sets read in place, window by window: nothing of them is loaded whole, so their size does not matter."""

from dreamer4.data.readers.base import AbstractReader as AbstractReader
from dreamer4.data.readers.base import Window as Window
from dreamer4.data.readers.latent import LatentReader as LatentReader
from dreamer4.data.readers.own import OwnReader as OwnReader
from dreamer4.data.readers.video import VideoReader as VideoReader
