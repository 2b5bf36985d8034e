"""Players that know the map and move as people do: by keys, and by a mouse that takes its time."""

from collections.abc import Iterator

import numpy as np
from game import DEGREES, EYE, Game, Input


Play = Iterator[Input]
Spot = tuple[int, int, int]
TREES = ("tree", "jungletree", "pine_tree", "acacia_tree", "aspen_tree")
_PICKS = ("iron_pickaxe", "stone_pickaxe", "wooden_pickaxe")
_SIDES = ((1, 0), (0, 1), (-1, 0), (0, -1))


class Player:
    """What any player can do; each skill is a stream of inputs, one a tick."""

    def __init__(self, game: Game, random: np.random.Generator):
        self.game, self.random = game, random
        self.speed = random.uniform(0.25, 0.45)  # share of a turn that is made in a tick
        self.shake = random.uniform(0.3, 1.5)  # pixels

    def has(self, item: str) -> int:
        return sum(amount for name, amount in self.game.things.values() if name.endswith(item))

    def slot(self, item: str) -> int | None:
        return next((slot for slot, (name, _) in sorted(self.game.things.items()) if name.endswith(item)), None)

    def error(self, point: np.ndarray) -> np.ndarray:
        """Returns how far the view has to turn to the right and down, in degrees."""
        x, y, z = point - self.game.pos - (0, EYE, 0)
        yaw = np.degrees(np.arctan2(-x, z)) - self.game.yaw
        return np.array([-((yaw + 180) % 360 - 180), np.degrees(-np.arctan2(y, np.hypot(x, z))) - self.game.pitch])

    def turn(self, error: np.ndarray, **held) -> Input:
        step = np.clip(error * self.speed, -25, 25) / DEGREES
        if np.abs(error).max() > 1:
            step = step + self.random.normal(0, self.shake, 2)
        dx, dy = np.round(step).astype(int)
        return Input(dx=int(dx), dy=int(dy), **held)

    def wait(self, ticks: int) -> Play:
        for _ in range(ticks):
            yield Input()

    def look(self, point: np.ndarray) -> Play:
        for _ in range(40):
            error = self.error(point)
            if np.abs(error).max() < 1.5:
                return
            yield self.turn(error)

    def hold(self, item: str) -> Play:
        slot = self.slot(item)
        if slot is not None and slot < 9 and slot != self.game.slot:
            yield Input(keys={str(slot + 1)})
            yield from self.wait(2)

    def dig(self, spot: Spot) -> Play:
        """Digs a block, and what stands before it."""
        point, seen, missed = np.array(spot, float), False, 0
        for _ in range(220):
            error = self.error(point)
            steady = np.abs(error).max() < 4
            pointed = self.game.state.get("pointed")
            there = pointed is not None and tuple(pointed[:3]) == tuple(spot)
            seen |= there
            missed = missed + 1 if steady and (pointed is None or (seen and not there)) else 0
            if missed > 5:
                return
            yield self.turn(error, buttons={0} if steady else set())

    def walk(self, target: Spot) -> Play:
        """Walks until a block can be reached, or no step is gained."""
        point, stuck, last = np.array(target, float), 0, self.game.pos
        sprint = self.random.random() < 0.4
        for _ in range(600):
            if np.linalg.norm(point - self.game.pos - (0, EYE, 0)) < 3.3 or stuck > 60:
                return
            error = self.error(point)
            error[1] = np.clip(error[1] + self.game.pitch, -20, 30) - self.game.pitch
            keys = {"w"} if abs(error[0]) < 50 else set()
            stuck = stuck + 1 if np.linalg.norm(self.game.pos - last) < 0.02 and keys else max(stuck - 2, 0)
            last = self.game.pos
            if keys and sprint:
                keys.add("left.control")
            if stuck > 3:
                keys.add("space")
            if stuck > 20:
                keys.add("a" if stuck % 40 < 20 else "d")
            yield self.turn(error, keys=keys, buttons={0} if stuck > 30 else set())

    def step(self, target: Spot) -> Play:
        """Goes one block towards a block, digging a way."""
        x, y, z = np.array(target) - self.game.state["foot"]
        if (x, z) == (0, 0):
            side = (0, 0) if y < 0 else _SIDES[self.random.integers(4)]
        else:
            side = (int(np.sign(x)), 0) if abs(x) >= abs(z) else (0, int(np.sign(z)))
        rise = 0 if -1 <= y <= 2 else int(np.sign(y))
        here, (sx, sz) = tuple(self.game.state["foot"]), side
        cells = {0: [(sx, 1), (sx, 0)], -1: [(sx, 1), (sx, 0), (sx, -1)], 1: [(0, 2), (sx, 2), (sx, 1)]}[rise]
        for cx, cy in [(0, -1)] if side == (0, 0) else cells:
            cz = sz if (cx, cy) != (0, 2) and side != (0, 0) else 0
            if self.game.solid(cx, cy, cz):
                yield from self.arm()
                yield from self.dig((here[0] + cx, here[1] + cy, here[2] + cz))
        goal = np.array([here[0] + sx, here[1] + rise + EYE, here[2] + sz])
        for _ in range(30):
            if np.abs(self.game.pos - goal)[[0, 2]].max() < 0.3:
                break
            error = self.error(goal)
            error[1] = 15 - self.game.pitch
            yield self.turn(error, keys={"w"} | ({"space"} if rise > 0 else set()) if abs(error[0]) < 20 else set())

    def arm(self) -> Play:
        for item in _PICKS:
            if (self.slot(item) or 99) < 9 or self.slot(item) == 0:
                yield from self.hold(item)
                return

    def gather(self, reach: int, nodes: tuple[str, ...], item: str, amount: int, tries: int = 40) -> Play:
        """Finds and digs blocks until there is enough of what they give."""
        for _ in range(tries):
            if self.has(item) >= amount:
                break
            self.game.want(reach, *nodes)
            for _ in range(16):
                yield Input()
                if self.game.target:
                    break
            spot, before = self.game.target, self.has(item)
            if not spot:
                yield from self.roam(60)
                continue
            for turn in range(24):
                far = np.linalg.norm(np.array(spot) - self.game.pos - (0, EYE, 0))
                if far < 3.7:
                    break
                yield from self.walk(spot) if nodes[0] in TREES and turn % 2 == 0 else self.step(spot)
            if nodes[0] not in TREES:
                yield from self.arm()
            yield from self.dig(spot)
            yield from self.wait(4)
            if self.has(item) == before:
                yield from self.roam(30)

    def roam(self, ticks: int) -> Play:
        """Goes somewhere and looks around."""
        heading, pitch = self.game.yaw + self.random.uniform(-120, 120), self.random.uniform(-15, 30)
        still = 0
        for _ in range(ticks):
            if self.random.random() < 0.02:
                heading, pitch = heading + self.random.normal(0, 50), self.random.uniform(-25, 40)
            last = self.game.pos
            turn = self.turn(np.array([self.game.yaw - heading, pitch - self.game.pitch]) * 0.5, keys={"w"})
            if still > 2 or self.random.random() < 0.02:
                turn.keys.add("space")
            yield turn
            still = still + 1 if np.linalg.norm(self.game.pos - last) < 0.02 else 0
            if still > 25:
                heading, still = heading + self.random.uniform(90, 270), 0

    def place(self, item: str) -> Play:
        """Puts a block beside the feet; `spot` tells where."""
        self.spot = None
        yield from self.hold(item)
        before = self.has(item)
        for sx, sz in self.random.permutation(_SIDES):
            if not self.game.solid(sx, -1, sz) or self.game.solid(sx, 1, sz):
                continue
            x, y, z = self.game.state["foot"]
            if self.game.solid(sx, 0, sz):
                yield from self.arm()
                yield from self.dig((x + sx, y, z + sz))
                yield from self.hold(item)
            yield from self.look(np.array([x + 0.95 * sx, y - 0.5, z + 0.95 * sz]))
            yield Input(buttons={1})
            yield from self.wait(6)
            if self.has(item) < before:
                self.spot = (x + int(sx), y, z + int(sz))
                return

    # Windows.

    def point(self, x: float, y: float, **held) -> Play:
        """Moves the cursor to a place of the screen."""
        for _ in range(30):
            error = np.array([x, y]) - self.game.cursor
            if np.abs(error).max() <= 2 or not self.game.window:
                return
            step = np.where(np.abs(error) < 6, error, error * self.random.uniform(0.35, 0.7))
            dx, dy = np.round(step).astype(int)
            yield Input(dx=int(dx), dy=int(dy), **held)

    def click(self, place: tuple[float, float], button: int = 0) -> Play:
        yield from self.point(place[0] * 40, place[1] * 40)
        yield Input()
        yield Input(buttons={button})
        yield from self.wait(2)

    def main(self, slot: int) -> tuple[float, float]:
        return 3 + 1.25 * (slot % 9), 4.4 + 1.25 * (slot // 9)

    def free(self) -> int:
        return next(slot for slot in range(36) if slot not in self.game.things)

    def close(self) -> Play:
        for _ in range(5):
            if not self.game.window:
                return
            yield Input(keys={"e"})
            yield from self.wait(5)

    def open(self, spot: Spot | None = None) -> Play:
        """Opens the inventory, or the block at a spot."""
        if spot:
            yield from self.look(np.array(spot, float))
        yield Input(buttons={1}) if spot else Input(keys={"e"})
        for _ in range(12):
            if self.game.window:
                yield from self.wait(int(self.random.integers(3, 10)))
                return
            yield Input()

    def put(self, item: str, cells: list[tuple[float, float]], each: int) -> Play:
        """Lays some of an item into each cell of the window that is open."""
        stacks = [(amount, slot) for slot, (name, amount) in self.game.things.items() if name.endswith(item)]
        if not stacks or not self.game.window:
            return
        slot = max(stacks)[1]
        yield from self.click(self.main(slot))
        for _ in range(each):
            for cell in cells:
                yield from self.click(cell, 1)
        yield from self.click(self.main(slot))

    def craft(self, recipe: dict[str, str], times: int = 1, gives: str = "-") -> Play:
        """Fills the grid of the open window, `recipe` being cells such as 00 01 by item, and takes what comes out."""
        for item, cells in recipe.items():
            places = [(4.5 + 1.25 * int(cell[0]), 0.8 + 1.25 * int(cell[1])) for cell in cells.split()]
            yield from self.put(item, places, times)
        for _ in range(times):
            if not self.game.window:
                return
            yield from self.click((9.5, 1.5))
            like = self.slot(gives)
            yield from self.click(self.main(self.free() if like is None else like))

    def by_hand(self, recipe: dict[str, str], times: int = 1, gives: str = "-") -> Play:
        yield from self.open()
        yield from self.craft(recipe, times, gives)
        yield from self.close()

    def at_table(self, *recipes: dict[str, str]) -> Play:
        """Crafts at a table, which is put down and taken up again."""
        yield from self.place("crafting_table")
        if self.spot:
            spot = self.spot
            yield from self.open(spot)
            for recipe in recipes if self.game.window == "table" else ():
                yield from self.craft(recipe)
            yield from self.close()
            yield from self.dig(spot)

    def planks(self, times: int) -> Play:
        log = next((name for name, _ in self.game.things.values() if name.endswith("_log")), None)
        if log:
            yield from self.by_hand({log: "00"}, min(times, self.has(log)), "_planks")


def miner(player: Player) -> Play:
    """Goes from wood to diamonds, by the shortest way."""
    yield from player.gather(30, TREES, "_log", int(player.random.integers(6, 9)))
    while player.has("_log") and player.has("_planks") < 18:
        yield from player.planks(3)
    yield from player.by_hand({"_planks": "00 10 01 11"})
    yield from player.by_hand({"_planks": "00"}, 2, "stick")
    handle = {"stick": "11 12"}
    for _ in range(3):
        if not player.has("wooden_pickaxe"):
            yield from player.at_table({"_planks": "00 10 20", **handle})
    yield from player.gather(12, ("stone",), "cobblestone", 12)
    yield from player.at_table({"cobblestone": "00 10 20", **handle}, {"cobblestone": "00 10 20 01 21 02 12 22"})
    yield from player.gather(20, ("stone_with_coal",), "coal", 2)
    yield from player.gather(20, ("stone_with_iron",), "raw_iron", 4)
    yield from player.place("furnace")
    if player.spot:
        yield from player.open(player.spot)
        yield from player.put("raw_iron", [(5.5, 0.9)], 4)
        yield from player.put("coal", [(5.5, 2.9)], 2)
        yield from player.wait(110)
        yield from player.click((9.5, 1.9))
        yield from player.click(player.main(player.free()))
        yield from player.close()
    yield from player.at_table({"iron_ingot": "00 10 20", **handle})
    yield from player.gather(30, ("stone_with_diamond",), "diamond", 99, tries=200)


def wanderer(player: Player) -> Play:
    """Strolls, looks, chops a little, digs a little, plays with what it has."""
    random = player.random
    while True:
        kind = random.choice(6, p=[0.42, 0.2, 0.12, 0.08, 0.1, 0.08])
        if kind == 0:
            yield from player.roam(int(random.integers(40, 240)))
        elif kind == 1:
            yield from player.gather(25, TREES, "_log", player.has("_log") + int(random.integers(1, 3)), tries=3)
        elif kind == 2:
            yield from player.look(player.game.pos + random.uniform(-3, 3, 3))
            yield from player.wait(int(random.integers(2, 20)))
            yield from (Input(buttons={0}) for _ in range(int(random.integers(5, 40))))
        elif kind == 3:
            yield from player.open()
            for _ in range(int(random.integers(1, 5))):
                yield from player.point(*random.uniform((100, 20), (540, 340)))
            yield from player.close()
        elif kind == 4 and player.game.things:
            yield from (Input(keys={str(random.integers(1, 10))}) for _ in range(2))
            yield from player.place(next(iter(player.game.things.values()))[0])
        elif kind == 5:
            yield from player.planks(int(random.integers(1, 3)))


STYLES = {"miner": miner, "wanderer": wanderer}
