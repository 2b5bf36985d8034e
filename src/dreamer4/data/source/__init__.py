"""Batches as pure functions of a key.

A key draws the windows of a batch, a few integers a row, by one law for every source (`base`). They are then read where
the data lies: on the device (`device`) or, when that cannot hold it, on disk (`stream`). So both give the same batches
bit by bit, each of several processes can read its own rows of one batch, and a run that resumes needs no loader state,
only the key of the step.
"""

from dreamer4.data.source.base import AbstractDataSource as AbstractDataSource
from dreamer4.data.source.base import AbstractEpisodeSource as AbstractEpisodeSource
from dreamer4.data.source.base import BalancedSource as BalancedSource
from dreamer4.data.source.base import Rows as Rows
from dreamer4.data.source.device import DeviceSource as DeviceSource
from dreamer4.data.source.ends import EndsSource as EndsSource
from dreamer4.data.source.stream import StreamSource as StreamSource
from dreamer4.data.source.stream import feed as feed
