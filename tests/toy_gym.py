"""A world of Gymnasium's without any package: a light that walks along a bar. Registered when imported."""

import os

import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """The light starts at 1 to 4 of 0 to 9; class 1 of -1 moves it left, 0 right; 0 terminates with reward 1.

    A step pays the place it leads to, in tenths, so that a reward out of place is seen. `fails` names the step that
    raises, `dies` the one that ends the process.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None, fails=0, dies=0, draws=True):
        self.render_mode, self.fails, self.dies, self.draws = render_mode, fails, dies, draws
        self.action_space = gymnasium.spaces.Discrete(2, start=-1)
        self.observation_space = gymnasium.spaces.Discrete(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = int(self.np_random.integers(1, 5)), 0
        return self.place, {}

    def step(self, action):
        assert action in self.action_space
        self.time += 1
        if self.time == self.fails:
            raise OSError("the motor is stuck")
        if self.time == self.dies:
            os._exit(1)
        self.place = int(np.clip(self.place + (1 if action == 0 else -1), 0, 9))
        return self.place, 1.0 if self.place == 0 else self.place / 10, self.place == 0, False, {}

    def render(self):
        picture = np.zeros((8, 40, 3), np.uint8)
        picture[:, 4 * self.place : 4 * self.place + 4] = 255, 128, self.time
        return picture if self.draws else None


class Push(gymnasium.Env):
    """A point pushed by two forces of unequal bounds; each is paid as it is carried out, the first threefold."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.action_space = gymnasium.spaces.Box(np.array([-2.0, 0.0], "f"), np.array([2.0, 10.0], "f"))
        self.observation_space = gymnasium.spaces.Discrete(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, float(3 * action[0] + action[1]), False, False, {}

    def render(self):
        return np.full((4, 4, 3), 7, np.uint8)


def place(simulator, like):
    """What a script sees: where the light is, in pixels of its own picture."""
    if like[0] < 0:
        raise OSError("too dark")
    return np.full_like(like, simulator.picture().sum((0, 2)).argmax())


gymnasium.register("toy/Walk-v0", entry_point="toy_gym:Walk", max_episode_steps=12)
gymnasium.register("toy/Push-v0", entry_point="toy_gym:Push")
