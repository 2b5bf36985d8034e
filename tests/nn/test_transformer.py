"""What a token of the transformer may depend on, and that its several ways of computing agree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, equal, generic, influence

from dreamer4.errors import InputError
from dreamer4.nn import GroupedQueryAttention, TokenGroup, TokenLayout, Transformer, cast_weights, time_mask
from dreamer4.nn.layout import add
from dreamer4.nn.transformer import UNROLLED_GROUPS


WIDTH, FRAMES, WINDOW = 16, 11, 4  # the ring of 4 wraps twice over 11 frames

# "still" does not attend through time; nothing before "late" sees "late".
LAYOUT = TokenLayout(
    (
        TokenGroup("first", 2, ("first",)),
        TokenGroup("still", 1, ("first",), through_time=False),
        TokenGroup("late", 2, ("first", "still", "late")),
    )
)


def make(**changes):
    def attention(*, key):
        return GroupedQueryAttention(WIDTH, 2, 1, key=key)

    sizes = {"width": WIDTH, "depth": 4, "time_every": 2, "context_length": WINDOW} | changes
    return generic(Transformer, LAYOUT, attention=attention, key=jr.key(0), **sizes)


def layer(transformer, i):
    """Returns the i-th group of layers by itself."""
    return jax.tree.map(lambda leaf: leaf[i] if eqx.is_array(leaf) else leaf, transformer.groups)


@eqx.filter_jit
def full(transformer, x, segment=None):
    return transformer(x, segment)


@eqx.filter_jit
def stepwise(transformer, x, cache, start=0):
    """Runs a clip frame by frame, remembering each frame."""

    def body(cache, frame):
        tokens, position = frame
        out, entry = transformer.step(tokens, cache, position)
        return cache.write(entry, position), (out, entry)

    return jax.lax.scan(body, cache, (x, start + jnp.arange(x.shape[0])))


@pytest.fixture(scope="module")
def transformer():
    return make()


@pytest.fixture(scope="module")
def clip():
    return jr.normal(jr.key(2), (FRAMES, LAYOUT.size, WIDTH))


@pytest.fixture(scope="module")
def whole(transformer, clip):
    return full(transformer, clip)


# ---- who sees whom


def test_the_layout_is_a_table():
    assert LAYOUT.size == 5
    assert LAYOUT.slots("still") == slice(2, 3)
    assert LAYOUT.through_time() == (True, True, False, True, True)
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert np.array_equal(LAYOUT.space_mask(), np.array(expected, bool))
    with pytest.raises(KeyError):
        LAYOUT.slots("nobody")


def test_a_space_layer_follows_the_mask_and_never_leaves_the_frame(transformer, clip):
    block = layer(transformer, 0).space[0]
    acts = influence(block.space, clip[:3], jnp.asarray(LAYOUT.space_mask()), outputs=2, inputs=2)
    reach = LAYOUT.space_mask() | np.eye(LAYOUT.size, dtype=bool)
    assert np.array_equal(acts > 0, np.einsum("tu,ij->tiuj", np.eye(3, dtype=bool), reach))


def test_a_time_layer_follows_the_window_and_never_leaves_the_slot(transformer, clip):
    block, mask = layer(transformer, 0).time, time_mask(jnp.zeros(7, jnp.int32), WINDOW)
    acts = influence(lambda x: block.time(x, mask, LAYOUT.through_time())[0], clip[:7], outputs=2, inputs=2)
    window = np.array([[0 <= i - j < WINDOW for j in range(7)] for i in range(7)])
    for i, moves in enumerate(LAYOUT.through_time()):
        for j in range(LAYOUT.size):
            expected = np.zeros_like(window) if i != j else window if moves else np.eye(7, dtype=bool)
            assert np.array_equal(acts[:, i, :, j] > 0, expected)


def test_a_slot_outside_time_gets_an_attention_update_of_zero(transformer, clip):
    block, mask = layer(transformer, 0).time, time_mask(jnp.zeros(7, jnp.int32), WINDOW)
    x = clip[:7]
    out = eqx.filter_jit(block.time)(x, mask, LAYOUT.through_time())[0]
    alone = eqx.filter_jit(block.feed_forward)(x)
    still, first = LAYOUT.slots("still"), LAYOUT.slots("first")
    assert distance(out[:, still], alone[:, still]) < 1e-6
    assert distance(out[:, first], alone[:, first]) > 1e-2


def test_a_clip_of_one_frame_reaches_as_the_layout_says(transformer, clip):
    acts = influence(transformer, clip[:1], outputs=2, inputs=2)[0, :, 0]
    # Two space layers: what a seen slot sees is seen as well; this layout is transitive.
    assert np.array_equal(acts > 0, LAYOUT.space_mask() | np.eye(LAYOUT.size, dtype=bool))


def test_no_frame_depends_on_a_later_one(transformer, clip):
    acts = influence(transformer, clip, jnp.zeros(FRAMES, jnp.int32))
    assert not np.triu(acts, 1).any()
    # Two time layers reach two windows back, and no further.
    age = np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES))
    assert np.array_equal(acts > 0, (age >= 0) & (age <= 2 * (WINDOW - 1)))


@pytest.mark.parametrize(
    "segment",
    [list(range(FRAMES)), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3], [5, 5, 5, 5, 5, 5, 5, 2, 2, 2, 2]],
    ids=["images", "chunks", "two"],
)
def test_segments_do_not_see_each_other(transformer, clip, segment):
    acts = influence(transformer, clip, jnp.array(segment))
    segment = np.array(segment)
    age = np.subtract.outer(np.arange(FRAMES), np.arange(FRAMES))
    assert np.array_equal(acts > 0, (age >= 0) & (age <= 2 * (WINDOW - 1)) & (segment[:, None] == segment))


def test_an_image_is_computed_like_a_clip_of_one_frame(transformer, clip):
    images = full(transformer, clip, jnp.arange(FRAMES))
    for t in (0, 6):
        assert distance(images[t], full(transformer, clip[t : t + 1])[0]) < 1e-5


def test_an_update_is_added_to_the_chosen_slots_alone():
    x, update = (jr.normal(jr.key(i), (3, size, 4)) for i, size in enumerate((5, 3)))
    expected = np.array(x)
    expected[:, [0, 2, 3]] += update
    assert np.array_equal(add(x, update, (True, False, True, True, False)), expected)


def test_the_time_mask_is_a_band():
    mask = time_mask(jnp.array([0, 0, 0, 0, 1, 1]), 2)
    expected = ["100000", "110000", "011000", "001100", "000010", "000011"]
    assert np.array_equal(mask, np.array([[c == "1" for c in row] for row in expected]))


# ---- one computation, several ways


def test_later_slots_may_be_left_out(transformer, clip, whole):
    seen = LAYOUT.slots("still").stop
    assert distance(full(transformer, clip[:, :seen]), whole[:, :seen]) < 1e-5


def test_step_equals_call_at_every_position_through_two_wraps(transformer, clip, whole):
    _, (out, _) = stepwise(transformer, clip, transformer.init_cache())
    assert distance(out, whole) < 1e-5


def test_step_without_later_slots_reads_the_same_cache(transformer, clip, whole):
    seen = LAYOUT.slots("still").stop
    cache, _ = stepwise(transformer, clip[:-1], transformer.init_cache())
    out, _ = eqx.filter_jit(transformer.step)(clip[-1, :seen], cache, jnp.array(FRAMES - 1))
    assert distance(out, whole[-1, :seen]) < 1e-5
    _, (out, _) = stepwise(transformer, clip[:, :seen], transformer.init_cache(seen))
    assert distance(out, whole[:, :seen]) < 1e-5


def test_step_does_not_depend_on_where_counting_starts(transformer, clip, whole):
    _, (out, _) = stepwise(transformer, clip, transformer.init_cache(), 1_000_003)
    assert distance(out, whole) < 1e-5


def test_prefill_equals_call_and_its_entries_equal_those_of_steps(transformer, clip, whole):
    out, entries = eqx.filter_jit(transformer.prefill)(clip)
    assert distance(out, whole) < 1e-5
    cache, (_, written) = stepwise(transformer, clip, transformer.init_cache())
    by_time = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 2), written)  # (T G S ...) -> (G S T ...)
    assert distance(by_time, entries) < 1e-5
    filled = transformer.init_cache().fill(entries, jnp.array(FRAMES))
    assert equal(filled.position, cache.position)
    assert distance(filled, cache) < 1e-5


@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_clip_goes_on_from_a_filled_cache(transformer, clip, whole, count):
    # The entries of frames that did not happen are there too, and must not matter.
    _, entries = eqx.filter_jit(transformer.prefill)(clip.at[count:].set(9.0))
    cache = transformer.init_cache().fill(entries, jnp.array(count))
    out, _ = eqx.filter_jit(transformer.step)(clip[count], cache, jnp.array(count))
    assert distance(out, whole[count]) < 1e-5


def test_drafts_equal_steps_after_the_frames_before_them(transformer, clip):
    other, seen = clip[::-1] + 1.0, LAYOUT.slots("still").stop

    def body(cache, frame):
        draft, tokens, position = frame
        out, _ = transformer.step(draft, cache, position)
        return cache.write(transformer.step(tokens, cache, position)[1], position), out

    _, expected = jax.jit(lambda: jax.lax.scan(body, transformer.init_cache(), (other, clip, jnp.arange(FRAMES))))()
    _, entries = eqx.filter_jit(transformer.prefill)(clip)
    drafts = eqx.filter_jit(transformer.drafts)
    assert distance(drafts(other, entries), expected) < 1e-5
    assert distance(drafts(other[:, :seen], entries), expected[:, :seen]) < 1e-5


def test_drafts_see_their_own_segment_alone(transformer, clip):
    segment = jnp.arange(FRAMES) // 3
    other = clip[::-1] + 1.0

    @eqx.filter_jit
    def drafts(clip, segment):
        return transformer.drafts(other[: clip.shape[0]], transformer.prefill(clip, segment)[1], segment)

    whole = drafts(clip, segment)
    assert distance(whole[:3], drafts(clip[:3], segment[:3])) < 1e-5
    moved = drafts(clip.at[4].add(3.0), segment)
    changed = np.abs(moved - whole).max(axis=(1, 2)) > 1e-4
    assert np.flatnonzero(changed).tolist() == [5]  # the frame after it in its segment; its own draft is another frame


# ---- dense: every slot of the past, the first rows of table 2


def test_a_dense_layer_sees_in_the_past_what_it_sees_in_its_frame(transformer, clip):
    block, mask = layer(transformer, 0).time, time_mask(jnp.zeros(7, jnp.int32), WINDOW)
    space = LAYOUT.space_mask()
    acts = influence(lambda x: block.dense(x, mask, space)[0], clip[:7], outputs=2, inputs=2)
    seen = space | np.eye(LAYOUT.size, dtype=bool)
    assert np.array_equal(acts > 0, np.einsum("tu,ij->tiuj", np.asarray(mask), seen))


def test_a_dense_stack_computes_one_thing_in_every_way(clip):
    dense, seen = make(dense=True), LAYOUT.slots("still").stop
    whole, entries = eqx.filter_jit(dense.prefill)(clip)
    assert distance(full(dense, clip[:, :seen]), whole[:, :seen]) < 1e-5
    _, (out, _) = stepwise(dense, clip, dense.init_cache(), 1_000_003)  # through two wraps
    assert distance(out, whole) < 1e-5
    cache = dense.init_cache().fill(entries, jnp.array(9))
    assert distance(eqx.filter_jit(dense.step)(clip[9], cache, jnp.array(9))[0], whole[9]) < 1e-5
    # Drafts of the very frames of the clip are these frames; without later slots they are the same.
    drafts = eqx.filter_jit(dense.drafts)
    assert distance(drafts(clip, entries), whole) < 1e-5
    assert distance(drafts(clip[:, :seen], entries), whole[:, :seen]) < 1e-5


@pytest.mark.parametrize("depth", [4, 6], ids=["unrolled", "rolled"])
def test_the_scan_over_groups_equals_a_loop(clip, depth):
    transformer = make(depth=depth)
    space, time = jnp.asarray(LAYOUT.space_mask()), time_mask(jnp.zeros(FRAMES, jnp.int32), WINDOW)

    @eqx.filter_jit
    def loop(transformer, x):
        x = x + transformer.slot
        for i in range(transformer.num_groups):
            group = layer(transformer, i)
            for block in group.space:
                x = block.space(x, space)
            x, _ = group.time.time(x, time, LAYOUT.through_time())
        return transformer.norm(x)

    assert distance(loop(transformer, clip), full(transformer, clip)) < 1e-5


def test_the_program_does_not_grow_with_depth(clip):
    def lines(depth):
        transformer = eqx.filter_eval_shape(make, depth=depth)
        arrays, static = eqx.partition((transformer, clip), lambda leaf: hasattr(leaf, "shape"))
        gradient = jax.grad(lambda arrays: jnp.mean(full(*eqx.combine(arrays, static)) ** 2))
        return len(jax.jit(gradient).lower(arrays).as_text().splitlines())

    assert lines(48) == lines(12)


def test_the_program_of_a_step_does_not_grow_with_depth(clip):
    def lines(depth):
        transformer = eqx.filter_eval_shape(make, depth=depth, time_every=4)
        given = (transformer, clip[0], eqx.filter_eval_shape(transformer.init_cache), jnp.array(0))
        arrays, static = eqx.partition(given, lambda leaf: hasattr(leaf, "shape"))

        def step(arrays):
            transformer, *frame = eqx.combine(arrays, static)
            return transformer.step(*frame)

        return len(jax.jit(step).lower(arrays).as_text().splitlines())

    assert lines(48) <= lines(12)


def test_steps_through_a_deep_stack_equal_the_whole_clip(clip):
    deep = make(depth=10)
    assert deep.num_groups > UNROLLED_GROUPS
    _, (out, _) = stepwise(deep, clip, deep.init_cache())
    assert distance(out, full(deep, clip)) < 1e-5


@pytest.mark.parametrize("remat", [True, "products"])
def test_rematerialisation_changes_neither_values_nor_gradients(clip, remat):
    @eqx.filter_jit
    def loss(transformer, x):
        return eqx.filter_value_and_grad(lambda t: jnp.mean(t(x) ** 3))(transformer)

    plain, recomputed = loss(make(depth=2, time_every=1), clip), loss(make(depth=2, time_every=1, remat=remat), clip)
    assert distance(jax.tree.leaves(plain), jax.tree.leaves(recomputed)) < 1e-6
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain[1])) > 1e-3


def test_rematerialisation_computes_again_what_it_says(clip):
    def count(remat):
        """Counts the products of a gradient: with weights, and those of attention, which have batch dimensions."""
        parts, rest = eqx.partition(make(depth=2, time_every=2, remat=remat), eqx.is_array)

        def gradient(parts, x):
            return jax.grad(lambda parts, x: jnp.mean(eqx.combine(parts, rest)(x) ** 3), argnums=(0, 1))(parts, x)

        program = str(jax.make_jaxpr(gradient)(parts, clip))
        with_weights = program.count(", ([], []))")
        return np.array([with_weights, program.count("dot_general") - with_weights])

    # Two layers of seven products with weights and two of attention, these in two blocks of slots in the space layer;
    # backwards, each has two. The last product of all is not computed again, since no gradient needs its result.
    kept = count(False)
    assert kept.tolist() == [3 * 2 * 7, 3 * 2 * 3]
    assert (count(True) - kept).tolist() == [2 * 7 - 1, 2 * 3]
    assert (count("products") - kept).tolist() == [0, 2 * 3]


def test_bfloat16_stays_close_and_keeps_float32_outside(clip, whole):
    half = make(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(eqx.filter(half, eqx.is_array))} == {jnp.dtype("float32")}
    out = full(half, clip)
    cache, (stepped, _) = stepwise(half, clip, half.init_cache())
    assert out.dtype == stepped.dtype == jnp.float32
    assert cache.key.dtype == cache.value.dtype == jnp.bfloat16
    for values in (out, stepped):
        assert 1e-4 < np.linalg.norm(values - whole) / np.linalg.norm(whole) < 2e-2
        rounded = values.astype(jnp.bfloat16).astype(jnp.float32)
        assert np.mean(values != rounded) > 0.9, "the last norm is part of what stays float32"


def test_matrices_that_are_cast_once_change_no_bit(clip):
    half = make(dtype="bfloat16")
    once = cast_weights({"model": half, "rest": jnp.ones((2, 3, 4))})
    assert once["rest"].dtype == jnp.float32
    once = once["model"]
    leaves = jax.tree.leaves(eqx.filter(once.groups, eqx.is_array))
    assert {leaf.dtype for leaf in leaves if leaf.ndim >= 3} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in leaves if leaf.ndim < 3} == {jnp.dtype("float32")}
    assert once.slot.dtype == once.norm.scale.dtype == jnp.float32
    assert equal(full(once, clip), full(half, clip))
    start = half.init_cache()
    assert equal(stepwise(once, clip, start)[1], stepwise(half, clip, start)[1])
    assert equal(eqx.filter(cast_weights(make()), eqx.is_array), eqx.filter(make(), eqx.is_array))
    seeds = cast_weights(jax.tree.map(lambda leaf: leaf[None] if eqx.is_array(leaf) else leaf, half))
    assert equal(jax.tree.map(lambda leaf: leaf[0], eqx.filter(seeds, eqx.is_array)), eqx.filter(once, eqx.is_array))


def test_a_depth_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(InputError, match="depth 5, expected a multiple of time_every 2"):
        make(depth=5)
