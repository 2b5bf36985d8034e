"""Real environments, as pure functions on the device.

An environment here is two functions of a state and a key, `reset` and `step`, and one promise about time: every frame
of an episode is returned, the last one included, and the step after a last frame opens the next episode. Many libraries
reset inside `step` and so swap the last frame for the first one of the next episode; a world model that learns from
such a stream learns to teleport. With dm_env's timing the stream can be cut into whole episodes afterwards, and
scanning, vmapping and recording need no special case for ends.

What an episode's end means is told apart: `is_terminal` is an end that cuts the return, a limit sets only `is_last`.

`base` is the contract and `gymnax` the adapter to that library; a new outside library is one new file. `cartpole`
and `fourrooms` draw games of gymnax that have no image, or no true one, of their own; `control` has tasks with
continuous actions; `craftax` is a survival game with a ladder of achievements. `host` brings worlds in that live
outside JAX, of which `gymnasium` and `dm_control` each drive a library. `registry` builds any of these by name,
`sticky` makes the actions of any of them stick, and `task` shows one as data of several tasks does. `counter` is a
tiny environment with known answers, for tests and for finding faults; `render` draws frames for people.
"""

from dreamer4.envs.base import AbstractEnvironment as AbstractEnvironment
from dreamer4.envs.base import Pace as Pace
from dreamer4.envs.base import Symbols as Symbols
from dreamer4.envs.base import broken as broken
from dreamer4.envs.base import check_environment as check_environment
from dreamer4.envs.base import is_sound as is_sound
from dreamer4.envs.cartpole import CartPolePixels as CartPolePixels
from dreamer4.envs.control import AbstractControl as AbstractControl
from dreamer4.envs.control import CartPoleSwingup as CartPoleSwingup
from dreamer4.envs.control import PendulumSwingup as PendulumSwingup
from dreamer4.envs.control import PointGoal as PointGoal
from dreamer4.envs.control import Reacher as Reacher
from dreamer4.envs.counter import CounterEnvironment as CounterEnvironment
from dreamer4.envs.craftax import CraftaxPixels as CraftaxPixels
from dreamer4.envs.fourrooms import FourRoomsPixels as FourRoomsPixels
from dreamer4.envs.gymnax import GymnaxEnvironment as GymnaxEnvironment
from dreamer4.envs.host import AbstractSimulator as AbstractSimulator
from dreamer4.envs.host import HostEnvironment as HostEnvironment
from dreamer4.envs.host import seed_of as seed_of
from dreamer4.envs.registry import ENVIRONMENTS as ENVIRONMENTS
from dreamer4.envs.registry import blind as blind
from dreamer4.envs.registry import make as make
from dreamer4.envs.registry import prompted as prompted
from dreamer4.envs.registry import spec_of as spec_of
from dreamer4.envs.registry import task_vector as task_vector
from dreamer4.envs.render import palette as palette
from dreamer4.envs.render import render as render
from dreamer4.envs.sticky import StickyActions as StickyActions
from dreamer4.envs.task import TaskEnvironment as TaskEnvironment
from dreamer4.envs.task import fitted as fitted
