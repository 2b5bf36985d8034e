"""How good an agent and its world model are, told with uncertainty; what comes out is records, drawn elsewhere.

`play` is returns in the real environment; `dreams` lays the world model beside the truth, with `quality` (how close
frames are), `signals` (warnings without labels) and `head_scores`; `ends` asks whether dreams end
where the game ends; `return_gap` asks whether dreams pay what the world
pays; `statistics` reduces all of it to means and intervals.
"""

from .planning import PlanningPolicy as PlanningPolicy
from .play import DreamerPolicy as DreamerPolicy
from .play import Played as Played
from .play import acting as acting
from .play import begin_episode as begin_episode
from .play import episode_keys as episode_keys
from .play import evaluate as evaluate
from .play import play as play
from .play import play_episode as play_episode
from .quality import exact_frames as exact_frames
from .quality import matching_frames as matching_frames
from .quality import psnr as psnr
from .quality import ssim as ssim
from .statistics import interval as interval
from .statistics import iqm as iqm
from .statistics import mean as mean
from .statistics import over_tasks as over_tasks
from .statistics import paired_difference as paired_difference
from .statistics import rank_correlation as rank_correlation
from .statistics import summarise as summarise
from .statistics import summarise_seeds as summarise_seeds
