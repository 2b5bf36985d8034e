"""Craftax-Classic: few compilations, since its rules take long to compile."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dreamer4.envs import CraftaxPixels
from dreamer4.envs.craftax import LADDER, Picture, Reader
from dreamer4.envs.craftax.effects import _GAINS as GAINS
from dreamer4.envs.craftax.effects import effects
from dreamer4.envs.craftax.picture import ITEMS
from dreamer4.errors import InputError
from dreamer4.types import Action


pytest.importorskip("craftax")

HERDS = ("zombies", "cows", "skeletons", "arrows")


@pytest.fixture(scope="module")
def env():
    return CraftaxPixels(night=False, max_steps=30)


@pytest.fixture(scope="module")
def life(env):
    """Steps of three environments side by side, each of some episodes: states and time steps, time leading."""

    @eqx.filter_jit
    def play(env, key):
        def body(states, key):
            keys = jr.split(key, 3)
            actions = Action(jr.randint(key, (3, 1), 0, 17, jnp.int32), jnp.zeros((3, 0)))
            after = jax.vmap(lambda s, a, k: env.step(s, a, key=k))(states, actions, keys)
            return after[0], (*after, jax.vmap(jr.key_data)(keys))

        states, first = jax.vmap(lambda key: env.reset(key=key))(jr.split(jr.fold_in(key, 1), 3))
        return first, jax.lax.scan(body, states, jr.split(key, 70))[1]

    return jax.device_get(play(env, jr.key(0)))


def test_each_episode_opens_in_a_world_of_its_own_which_reset_draws_by_the_same_key(env, life):
    _, (states, steps, keys) = life
    assert steps.is_first.sum() >= 6 and not steps.is_first.all()
    np.testing.assert_array_equal(steps.is_first[1:], steps.is_last[:-1])
    times = states.world.timestep
    np.testing.assert_array_equal(times == 0, steps.is_first)
    np.testing.assert_array_equal(np.diff(times, axis=0)[~steps.is_first[1:]], 1)
    maps = [states.world.map[t, i] for t, i in np.argwhere(steps.is_first)]
    assert all((a != b).any() for i, a in enumerate(maps) for b in maps[:i])
    t, i = np.argwhere(steps.is_first)[1]
    again, _ = eqx.filter_jit(env.reset)(key=jr.wrap_key_data(keys[t, i]))
    np.testing.assert_array_equal(again.world.map, states.world.map[t, i])


def test_rewards_are_the_achievements_that_are_new(life):
    _, (states, steps, _) = life
    achieved = states.world.achievements.sum(-1)
    before = np.where(steps.is_first[1:], achieved[1:], achieved[:-1])
    np.testing.assert_array_equal(steps.reward[1:], achieved[1:] - before)
    assert steps.reward.sum() > 0


def test_the_ladder_asks_for_a_rung_until_it_and_all_before_have_happened(life):
    ladder = CraftaxPixels(task="ladder", night=False)
    world, place = jax.tree.map(lambda x: jnp.asarray(x[0, 0]), life[1][0].world), ladder.events.index
    before = jnp.zeros(23, bool).at[jnp.array([place(LADDER[0]), place(LADDER[2])])].set(True)

    @eqx.filter_jit
    def climbed(achieved):
        then = world.replace(achievements=achieved[:-1])
        state, step = ladder._show(then, jnp.array(5), before, jnp.array(False))
        return ladder.prompt(state), step.reward

    # The pickaxe was made before its rung was reached, so the table pays for both.
    for event, prompt, paid in (("make_wood_pickaxe", 1, 0.0), ("collect_coal", 1, 0.0), ("place_table", 3, 2.0)):
        assert tuple(map(float, climbed(before.at[place(event)].set(True)))) == (prompt, paid), event
    prompt, paid = climbed(jnp.ones(23, bool))
    assert (int(prompt), float(paid)) == (9, 9.0)  # nothing is behind the diamond
    assert CraftaxPixels(task="collect_coal").prompts == ()


@pytest.fixture(scope="module")
def scenes(life):
    """Twelve moments with all that can be seen, each in another place, light and pose."""
    world = jax.tree.map(lambda x: jnp.asarray(x[:12, 0]), life[1][0].world)
    near = world.player_position[:, None] + jnp.array([[1, 0], [-1, 1], [0, 2]])
    ways, there = jnp.array([[0, 1], [0, -1], [1, 0], [-1, 0]]), jnp.ones((12, 3), bool)
    return world.replace(
        light_level=jnp.linspace(0.0, 1.0, 12),
        is_sleeping=jnp.arange(12) % 3 == 1,
        player_direction=1 + jnp.arange(12) % 4,
        arrows=world.arrows.replace(position=near, mask=there),
        arrow_directions=jnp.stack([jnp.roll(ways, i, 0)[:3] for i in range(12)]),
        cows=world.cows.replace(position=near - 2, mask=jnp.arange(36).reshape(12, 3) % 2 == 0),
        zombies=world.zombies.replace(position=near + 1, mask=there),
        skeletons=world.skeletons.replace(position=near[:, :2] + jnp.array([2, -3]), mask=there[:, :2]),
        inventory=jax.tree.map(lambda x: (x + jnp.arange(12)) % 10, world.inventory),
    )


def test_pictures_are_those_of_the_game(env, scenes, monkeypatch):
    from craftax.craftax_classic import constants, renderer

    small = {7: constants.load_all_textures_given_size(7)}
    monkeypatch.setattr(renderer, "load_all_textures", lambda: small)
    draw = renderer.make_craftax_pixel_renderer(7)
    by_night = Picture(night=True)

    @jax.jit
    def drawn(world):
        return jax.vmap(draw)(world), jax.vmap(by_night)(world), jax.vmap(env.picture)(world)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, found, by_day = drawn(scenes)
    np.testing.assert_allclose(found, np.asarray(expected), atol=0.501)
    np.testing.assert_array_equal(by_day[-1], found[-1])
    assert (by_day[0] != found[0]).any()


def test_a_reader_tells_every_tile_and_item_of_a_picture(env, scenes, life):
    read = Reader(env.picture)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        posed = np.asarray(jax.jit(jax.vmap(env.picture))(scenes))
    lived = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), life[1][:2])
    for frames, world in ((posed, jax.device_get(scenes)), (lived[1].frame, lived[0].world)):
        for given in (frames, frames / 255.0 + 0.001):
            found = read(given)
            for i in range(len(frames)):
                one = jax.tree.map(lambda x: x[i], world)  # noqa: B023
                block, thing, items = told(one)
                np.testing.assert_array_equal(read.block[found["tiles"][i]], block.ravel())
                np.testing.assert_array_equal(read.thing[found["tiles"][i]], thing.ravel())
                np.testing.assert_array_equal(found["items"][i], items)
                assert (read.sleeps[found["tiles"][i]] == one.is_sleeping).all()


def test_a_step_shows_the_effect_of_its_action_and_none_that_it_has_not(env, life):
    reader = Reader(env.picture)
    still = jax.tree.map(lambda x: jnp.asarray(x[0, 0]), life[1][0].world)
    nobody = {n: getattr(still, n).replace(mask=jnp.zeros_like(getattr(still, n).mask)) for n in HERDS}
    ground = jnp.full_like(still.map, 2).at[30, 30:34].set(jnp.array([4, 7, 13, 5]))
    still = still.replace(**nobody, map=ground, player_position=jnp.array([31, 31]), player_direction=jnp.array(1))
    still = still.replace(is_sleeping=jnp.array(False), inventory=jax.tree.map(lambda x: x * 0 + 3, still.inventory))
    still = still.replace(**{n: jnp.array(5) for n in ("player_food", "player_drink", "player_energy")})

    def made(item=None, by=0, block=2, mob=None, **other):
        world = still.replace(map=ground.at[31, 30].set(block), **other)
        if item is not None:
            held = world if item.startswith("player") else world.inventory
            held = held.replace(**{item: getattr(held, item) + by})
            world = held if item.startswith("player") else world.replace(inventory=held)
        if mob is not None:
            herd = getattr(world, mob)
            there = herd.replace(position=herd.position.at[0].set(jnp.array([31, 30])), mask=herd.mask.at[0].set(True))
            world = world.replace(**{mob: there})
        return world

    steps = {
        name: (action, made(block=was or 2), made(item, 1 if sign == "+" else -1, becomes or 2))
        for name, (action, sign, item, was, becomes) in GAINS.items()
    }
    steps["eat_cow"] = 5, made(mob="cows"), made("player_food", 4)
    steps["defeat_zombie"], steps["defeat_skeleton"] = ((5, made(mob=m), made()) for m in ("zombies", "skeletons"))
    steps["sleep"] = 6, made(), made(is_sleeping=jnp.array(True))
    steps["walk"] = 1, made(), made(player_position=jnp.array([31, 30]))
    steps["turn"] = 4, made(), made(player_direction=jnp.array(4))
    draw, stack = jax.jit(jax.vmap(env.picture)), lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        before, after = (env.symbols(np.asarray(draw(stack(side)))) for side in list(zip(*steps.values()))[1:])  # noqa: B905
    action = np.array([step[0] for step in steps.values()])
    told = effects(reader, before, after, action)
    np.testing.assert_array_equal([told[name] for name in steps], np.eye(len(steps), dtype=bool))
    assert told.keys() == steps.keys()
    for wrong in (effects(reader, before, after, 0 * action), effects(reader, after, before, action)):
        assert not any(shown.any() for shown in wrong.values())
    assert env.effects({}, {}, action[:, None]) == {}


def test_a_lived_step_shows_a_walk_where_the_player_went(env, life):
    _, (states, steps, _) = life
    read = {kind: np.moveaxis(x, 1, 0) for kind, x in env.symbols(steps.frame).items()}
    before, after = ({k: x[:, cut] for k, x in read.items()} for cut in (np.s_[:-1], np.s_[1:]))
    moved = np.diff(states.world.player_position, axis=0).swapaxes(0, 1)
    way = np.select([(moved == w).all(-1) for w in ((0, -1), (0, 1), (-1, 0), (1, 0))], [1, 2, 3, 4], 0)
    same = ~steps.is_first[1:].T
    walked = env.effects(before, after, np.maximum(way, 1)[..., None])["walk"]
    assert not walked[same & (way == 0)].any() and walked[same & (way > 0)].mean() > 0.9
    back = np.array([0, 2, 1, 4, 3])[way]
    assert not env.effects(before, after, back[..., None])["walk"][same].any()


def told(world):
    """Returns blocks, things and items that a state says are seen."""
    row, column = world.player_position
    block = np.pad(world.map, 9, constant_values=1)[row + 6 : row + 13, column + 5 : column + 14]
    thing = np.full((7, 9), -1)
    thing[3, 4] = 11 if world.is_sleeping else 6 + world.player_direction
    ways = {(-1, 0): 3, (1, 0): 4, (0, -1): 5, (0, 1): 6}  # those that do not fly yet have another
    flights = [ways.get(tuple(way), 3) for way in world.arrow_directions]
    kinds = [(world.zombies, [0] * 3), (world.cows, [1] * 3), (world.skeletons, [2] * 2), (world.arrows, flights)]
    for herd, kind in kinds:
        for (r, c), there, which in zip(herd.position - (row - 3, column - 4), herd.mask, kind, strict=True):
            if there and 0 <= r < 7 and 0 <= c < 9:
                thing[r, c] = which
    held = [getattr(world, n) if n.startswith("player") else getattr(world.inventory, n) for n in ITEMS]
    return block, thing, held


@pytest.mark.parametrize(
    "kwargs, told", [({"task": "collect_diamonds"}, "collect_diamond"), ({"max_steps": 0}, "10000")]
)
def test_wrong_arguments_are_named(kwargs, told):
    with pytest.raises(InputError, match=told):
        CraftaxPixels(**kwargs)
