"""Episodes: how they are gathered, kept and drawn.

An `Episode` is whole, its last frame included, and lives on the host. `collect` makes episodes from a policy and an
environment, `import_folder` from a user's files; `write_dataset` and `read_episodes` keep them in a folder that
describes and checks itself; a source turns them into batches.

A batch is a pure function of a key. There is no loader with a position: a resumed run goes on as if never stopped,
and two runs with one seed see the same data. A set that the device can hold is drawn inside the jitted step; a larger
one stays on disk, and a reader of its format gives windows of it. No window crosses an episode: what a model learns to
follow a frame did follow it.
"""

from dreamer4.data.collect import UnfinishedError as UnfinishedError
from dreamer4.data.collect import collect as collect
from dreamer4.data.episode import Episode as Episode
from dreamer4.data.episode import as_task as as_task
from dreamer4.data.episode import find_problems as find_problems
from dreamer4.data.episode import flag_best as flag_best
from dreamer4.data.episode import flag_relevant as flag_relevant
from dreamer4.data.episode import least_returns as least_returns
from dreamer4.data.episode import of_task as of_task
from dreamer4.data.episode import return_of_best as return_of_best
from dreamer4.data.format import SUMMARY as SUMMARY
from dreamer4.data.format import check as check
from dreamer4.data.format import held_out_episodes as held_out_episodes
from dreamer4.data.format import write_dataset as write_dataset
from dreamer4.data.imports import import_folder as import_folder
from dreamer4.data.info import Behaviour as Behaviour
from dreamer4.data.info import DatasetInfo as DatasetInfo
from dreamer4.data.info import Shard as Shard
from dreamer4.data.latents import LatentStore as LatentStore
from dreamer4.data.merge import merge_datasets as merge_datasets
from dreamer4.data.policy import AbstractPolicy as AbstractPolicy
from dreamer4.data.policy import EpsilonPolicy as EpsilonPolicy
from dreamer4.data.policy import RandomPolicy as RandomPolicy
from dreamer4.data.policy import random_action as random_action
from dreamer4.data.policy import random_policy as random_policy
from dreamer4.data.prompts import by_prompt as by_prompt
from dreamer4.data.prompts import cut_by_prompt as cut_by_prompt
from dreamer4.data.readers import AbstractReader as AbstractReader
from dreamer4.data.readers import OwnReader as OwnReader
from dreamer4.data.readers import VideoReader as VideoReader
from dreamer4.data.readers import VptReader as VptReader
from dreamer4.data.readers import Window as Window
from dreamer4.data.readers import format_of as format_of
from dreamer4.data.readers import is_dataset as is_dataset
from dreamer4.data.readers import open_reader as open_reader
from dreamer4.data.reading import label_facts as label_facts
from dreamer4.data.reading import read_episodes as read_episodes
from dreamer4.data.reading import read_info as read_info
from dreamer4.data.reading import read_through as read_through
from dreamer4.data.replay import Place as Place
from dreamer4.data.replay import replay as replay
from dreamer4.data.source import AbstractDataSource as AbstractDataSource
from dreamer4.data.source import AbstractEpisodeSource as AbstractEpisodeSource
from dreamer4.data.source import BalancedSource as BalancedSource
from dreamer4.data.source import DeviceSource as DeviceSource
from dreamer4.data.source import EndsSource as EndsSource
from dreamer4.data.source import StreamSource as StreamSource
from dreamer4.data.source import feed as feed
