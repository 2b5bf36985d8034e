"""The laws of every registered attention, and GroupedQueryAttention, rope and RingCache in particular."""

import types

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import distance, equal, generic, influence, load_example

from dreamer4.errors import InputError
from dreamer4.nn import ATTENTIONS, Entry, GroupedQueryAttention, RingCache, attention_weights, rope
from dreamer4.nn.attention import kernel, mask_blocks


WIDTH, LENGTH = 16, 7
FACTORIES = {**ATTENTIONS, "example_sink": load_example("01_swap_attention").from_config}

# Row 2 sees nothing; every other row sees at least two tokens, so that its query matters.
MASK = np.array(
    [
        [1, 1, 0, 0, 0, 0, 1],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 1, 0],
        [0, 1, 0, 1, 0, 1, 0],
    ],
    bool,
)
POSITIONS = jnp.array([0, 3, 4, 11, 12, 40, 41])


def make(factory, heads, kv_heads, soft_cap):
    return generic(factory, WIDTH, heads, kv_heads, soft_cap=soft_cap, key=jr.key(0))


@pytest.fixture(scope="module", params=FACTORIES)
def attention(request):
    return make(FACTORIES[request.param], 4, 2, None if request.param == "fused" else 50.0)


@pytest.fixture(scope="module")
def tokens():
    return jr.normal(jr.key(2), (LENGTH, WIDTH))


def steps(attention, x, entry, visible, positions):
    """Runs `step` for every token of a sequence, against the entries of the whole sequence."""
    return eqx.filter_jit(eqx.filter_vmap(attention.step, in_axes=(0, None, None, 0, 0)))(
        x, cached(entry.key), cached(entry.value), visible, positions
    )


def cached(entries):
    """Puts heads before tokens, as a cache has them."""
    return jnp.swapaxes(entries, -3, -2)


def test_step_equals_call_at_every_position(attention, tokens):
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    update, entry = eqx.filter_jit(attention)(tokens, causal, POSITIONS)
    stepped, own = steps(attention, tokens, entry, jnp.tril(causal, -1), POSITIONS)
    assert distance(stepped, update) < 1e-5
    assert distance(own, entry) < 1e-6


def test_the_order_of_cached_tokens_does_not_matter(attention, tokens):
    causal = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    _, entry = eqx.filter_jit(attention)(tokens, causal, POSITIONS)
    before = jnp.tril(causal, -1)
    rolled = jax.tree.map(lambda leaf: jnp.roll(leaf, 3, axis=0), entry)
    straight, _ = steps(attention, tokens, entry, before, POSITIONS)
    turned, _ = steps(attention, tokens, rolled, jnp.roll(before, 3, axis=1), POSITIONS)
    assert distance(straight, turned) < 1e-5


def test_a_token_depends_on_itself_and_on_what_it_sees_alone(attention, tokens):
    acts = influence(lambda x: attention(x, jnp.asarray(MASK), POSITIONS)[0], tokens)
    expected = MASK | (np.eye(LENGTH, dtype=bool) & MASK.any(1)[:, None])
    assert np.array_equal(acts > 0, expected)


def test_a_token_that_sees_nothing_gets_no_update_and_finite_gradients(attention, tokens):
    def loss(attention, x, mask):
        return jnp.sum(attention(x, mask, POSITIONS)[0] ** 2)

    update, _ = eqx.filter_jit(attention)(tokens, jnp.asarray(MASK), POSITIONS)
    assert np.array_equal(update[2], np.zeros(WIDTH))
    assert (np.abs(np.delete(update, 2, axis=0)).sum(1) > 0).all()
    for mask in (jnp.asarray(MASK), jnp.zeros_like(MASK)):
        gradients = eqx.filter_jit(eqx.filter_grad(lambda both, mask=mask: loss(*both, mask)))((attention, tokens))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_sequences_side_by_side_are_what_each_gives_alone(attention):
    x, causal = jr.normal(jr.key(3), (2, 3, LENGTH, WIDTH)), jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    both = eqx.filter_jit(attention)(x, causal, POSITIONS)
    alone = jax.jit(jax.vmap(jax.vmap(lambda line: attention(line, causal, POSITIONS))))(x)
    assert distance(jax.tree.leaves(both), jax.tree.leaves(alone)) < 1e-5
    entry, visible = both[1], jnp.arange(LENGTH) < 4
    step = eqx.filter_jit(lambda *args: attention.step(*args, visible, jnp.array(50)))
    once = step(x[..., 0, :], cached(entry.key), cached(entry.value))
    alone = jax.jit(jax.vmap(jax.vmap(step)))(x[..., 0, :], cached(entry.key), cached(entry.value))
    assert distance(jax.tree.leaves(once), jax.tree.leaves(alone)) < 1e-5


# Masks that are known when a program is built, and into how many blocks they are cut.
INDEX = np.arange(LENGTH)
KNOWN = {
    "everything": (np.ones((LENGTH, LENGTH), bool), 1),
    "two groups, the second sees all": (INDEX < np.where(INDEX < 5, 5, LENGTH)[:, None], 2),
    "four groups": (INDEX // 2 == INDEX[:, None] // 2, 4),
    "too many": (np.tril(np.ones((LENGTH, LENGTH), bool)), 1),
    "with a hole": (INDEX != np.where(INDEX < 5, 2, LENGTH)[:, None], 1),
    "blind": (np.broadcast_to(INDEX[:, None] > 2, (LENGTH, LENGTH)).copy(), 1),
}


@pytest.mark.parametrize(("mask", "count"), KNOWN.values(), ids=KNOWN)
def test_a_mask_known_in_advance_gives_the_same_in_blocks(mask, count, tokens):
    attention = make(GroupedQueryAttention, 4, 2, 50.0)
    assert len(mask_blocks(mask)) == count
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)):
        x = tokens.astype(dtype)
        blocks, _ = jax.jit(lambda x: attention(x, mask, POSITIONS))(x)
        dense, _ = eqx.filter_jit(attention)(x, jnp.asarray(mask), POSITIONS)
        assert distance(blocks, dense) < tolerance * np.abs(np.float32(dense)).max()


@pytest.mark.parametrize("shift", [5, 10**6, 2**31 - 42])
def test_only_differences_of_positions_matter(attention, tokens, shift):
    call = jax.jit(lambda positions: attention(tokens, jnp.asarray(MASK), positions)[0])
    assert distance(call(POSITIONS + shift), call(POSITIONS)) < 1e-5
    assert distance(call(2 * POSITIONS), call(POSITIONS)) > 1e-3


def test_the_type_of_the_input_is_kept(attention, tokens):
    update, entry = eqx.filter_jit(attention)(tokens.astype(jnp.bfloat16), jnp.asarray(MASK), POSITIONS)
    exact, _ = eqx.filter_jit(attention)(tokens, jnp.asarray(MASK), POSITIONS)
    assert {leaf.dtype for leaf in jax.tree.leaves((update, entry))} == {jnp.dtype("bfloat16")}
    assert np.linalg.norm(np.float32(update) - exact) / np.linalg.norm(exact) < 2e-2


# ---- grouped queries against a plain reference


def reference_rope(x, positions, base=10_000.0):
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    for i in range(half):
        angle = positions * base ** (-i / half)
        pair = (x[..., i] + 1j * x[..., i + half]) * np.exp(1j * angle)[:, None]
        out[..., i], out[..., i + half] = pair.real, pair.imag
    return out


def reference_attention(attention, x, mask, positions):
    """Every head by itself, in float64."""
    x, positions = np.asarray(x, np.float64), np.asarray(positions, np.float64)
    length, dim = len(x), attention.head_dim

    def project(layer, heads):
        return (x @ np.asarray(layer.weight, np.float64)).reshape(length, heads, dim)

    def normalise(norm, y):
        return y / np.sqrt((y**2).mean(-1, keepdims=True) + norm.epsilon) * np.asarray(norm.scale, np.float64)

    query = reference_rope(normalise(attention.query_norm, project(attention.query, attention.heads)), positions)
    key = reference_rope(normalise(attention.key_norm, project(attention.key, attention.kv_heads)), positions)
    value = project(attention.value, attention.kv_heads)
    out = np.zeros((length, attention.heads, dim))
    for head in range(attention.heads):
        shared = head // (attention.heads // attention.kv_heads)
        for i in range(length):
            seen = np.flatnonzero(mask[i])
            if not len(seen):
                continue
            logits = key[seen, shared] @ query[i, head] / np.sqrt(dim)
            if attention.soft_cap is not None:
                logits = attention.soft_cap * np.tanh(logits / attention.soft_cap)
            weights = np.exp(logits - logits.max())
            out[i, head] = weights / weights.sum() @ value[seen, shared]
    return out.reshape(length, -1) @ np.asarray(attention.out.weight, np.float64)


@pytest.mark.parametrize(
    ("kind", "heads", "kv_heads", "soft_cap"),
    [
        ("grouped_query", 4, 4, None),
        ("grouped_query", 4, 2, 1.5),
        ("grouped_query", 4, 1, 50.0),
        ("fused", 4, 4, None),
        ("fused", 4, 2, None),
    ],
)
def test_grouped_query_attention_equals_the_reference(kind, heads, kv_heads, soft_cap, tokens):
    attention = make(ATTENTIONS[kind], heads, kv_heads, soft_cap)
    update, _ = eqx.filter_jit(attention)(tokens, jnp.asarray(MASK), POSITIONS)
    assert distance(update, reference_attention(attention, tokens, MASK, POSITIONS)) < 1e-5


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_fused_attention_and_its_gradient_equal_the_plain_one(dtype, tolerance, known, tokens):
    mask = KNOWN["two groups, the second sees all"][0] if known else jnp.asarray(MASK)

    def both(kind, x):
        attention = make(ATTENTIONS[kind], 4, 2, None)
        update, pull = jax.vjp(lambda x: attention(x, mask, POSITIONS)[0], x)
        return update, *pull(jnp.cos(jnp.arange(update.size, dtype=dtype)).reshape(update.shape))

    with jax.numpy_dtype_promotion("standard"):  # JAX's own kernel mixes float32 with bfloat16
        results = [jax.jit(both, static_argnums=0)(kind, tokens.astype(dtype)) for kind in ("fused", "grouped_query")]
    for fused, plain in zip(*results, strict=True):
        assert distance(fused, plain) < tolerance * np.abs(np.float32(plain)).max()


def test_fused_attention_cannot_be_capped():
    with pytest.raises(InputError, match="soft_cap: got 50.0 with fused attention"):
        make(ATTENTIONS["fused"], 4, 2, 50.0)


def test_cudnn_is_for_gpus_half_precision_and_what_it_can_cut_up(monkeypatch):
    assert kernel(jnp.dtype("bfloat16"), 64, 8, 8) == "xla"
    monkeypatch.setattr("dreamer4.nn.attention.compute_capability", lambda: 9.0)
    assert kernel(jnp.dtype("bfloat16"), 64, 8, 8) == "cudnn"
    for other in (("float32", 64, 8, 8), ("bfloat16", 12, 8, 8), ("bfloat16", 256, 8, 8), ("bfloat16", 64, 7, 8)):
        assert kernel(jnp.dtype(other[0]), *other[1:]) == "xla"


@pytest.mark.parametrize(("told", "wanted"), [("8.0", "cudnn"), ("7.5", "xla"), ("gfx90a", "xla"), (None, "xla")])
def test_older_devices_and_others_makes_get_the_plain_kernel(monkeypatch, told, wanted):
    device = types.SimpleNamespace(**({} if told is None else {"compute_capability": told}))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert kernel(jnp.dtype("bfloat16"), 64, 8, 8) == wanted


def test_a_program_for_cuda_calls_the_fused_kernel_both_ways(monkeypatch):
    # Lowering for another device needs none; what would ask it for its abilities is answered here.
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    monkeypatch.setattr("dreamer4.nn.attention.compute_capability", lambda: 9.0)
    attention = ATTENTIONS["fused"](32, 4, 2, soft_cap=None, key=jr.key(0))
    causal = jnp.tril(jnp.ones((8, 8), bool))

    def loss(rows):  # a phase maps over the rows of its batch
        return jax.vmap(lambda x: attention(x, causal, jnp.arange(8))[0])(rows).astype(jnp.float32).sum()

    lowered = jax.jit(jax.grad(loss)).trace(jnp.ones((2, 3, 8, 32), jnp.bfloat16)).lower(lowering_platforms=("cuda",))
    calls = [line for line in lowered.as_text().splitlines() if "custom_call @__cudnn$fmha" in line]
    assert ["Backward" in line for line in calls] == [False, True]


def test_shared_heads_equal_plain_heads_with_repeated_weights(tokens):
    shared = make(GroupedQueryAttention, 4, 2, 50.0)
    plain = make(GroupedQueryAttention, 4, 4, 50.0)

    def repeat(weight):
        return jnp.repeat(weight.reshape(WIDTH, 2, -1), 2, axis=1).reshape(WIDTH, -1)

    def parts(a):
        return [a.query.weight, a.key.weight, a.value.weight, a.out.weight, a.query_norm, a.key_norm]

    query, key, value, out, *norms = parts(shared)
    plain = eqx.tree_at(parts, plain, [query, repeat(key), repeat(value), out, *norms])
    call = eqx.filter_jit(lambda a: a(tokens, jnp.asarray(MASK), POSITIONS)[0])
    assert distance(call(shared), call(plain)) < 1e-5


def test_the_soft_cap_bounds_logits_and_a_large_one_does_nothing():
    logits, mask = 30 * jr.normal(jr.key(0), (2, 3, 5)), jnp.ones((3, 5), bool)
    assert distance(attention_weights(logits, mask, 1e5), attention_weights(logits, mask, None)) < 1e-4
    capped = attention_weights(logits, mask, 2.0)
    ratio = capped.max(-1) / capped.min(-1)
    assert (ratio <= np.exp(4.0) * 1.0001).all()
    assert (ratio > np.exp(3.9)).all()


def test_weights_sum_to_one_over_the_visible_tokens():
    weights = attention_weights(jr.normal(jr.key(0), (3, LENGTH, LENGTH)), jnp.asarray(MASK), None)
    assert distance(weights.sum(-1), np.broadcast_to(MASK.any(1).astype(float), (3, LENGTH))) < 1e-6
    assert not weights[:, ~MASK].any()


# ---- rope


def dots(shift, gap):
    x = jr.normal(jr.key(0), (2, 3, 8))
    first = rope(x[:1], jnp.array([shift]))
    second = rope(x[1:], jnp.array([shift + gap]))
    return np.sum(np.asarray(first[0]) * np.asarray(second[0]), axis=-1)


@pytest.mark.parametrize("gap", [0, 1, 17, 192])
def test_rotary_products_depend_on_the_distance_alone_at_any_position(gap):
    near = dots(0, gap)
    for shift in (1, 1000, 10**6, 10**9, 2**31 - 1 - gap):
        assert distance(dots(shift, gap), near) < 1e-5
    x = np.asarray(jr.normal(jr.key(0), (2, 3, 8)), np.float64)
    turned = reference_rope(x, np.array([0.0, gap]))
    assert distance(near, np.sum(turned[0] * turned[1], axis=-1)) < 1e-5


def test_rotation_keeps_norms_and_negative_positions_turn_back():
    x = jr.normal(jr.key(1), (6, 2, 8))
    positions = jnp.array([0, 1, 7, 12345, 10**9, 2**31 - 1])
    turned = rope(x, positions)
    assert distance(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1)) < 1e-5
    assert distance(rope(turned, -positions), x) < 1e-5
    assert equal(turned[0], x[0])


def test_phases_wrap_as_whole_numbers_do():
    half, base = 4, 10_000.0
    positions = np.array([1, 5_000_000, 2**30 + 3, 2**31 - 1])
    x = np.concatenate([np.ones((4, 1, half)), np.zeros((4, 1, half))], axis=-1)
    turned = np.asarray(rope(jnp.asarray(x, jnp.float32), jnp.asarray(positions, jnp.int32)))
    for row, position in enumerate(positions):
        for i in range(half):
            per_position = round(base ** (-i / half) / (2 * np.pi) * 2**32)
            angle = (int(position) * per_position) % 2**32 / 2**32 * 2 * np.pi
            assert abs(turned[row, 0, i] - np.cos(angle)) < 1e-6
            assert abs(turned[row, 0, i + half] - np.sin(angle)) < 1e-6


# ---- the ring


def entries(count):
    """Entries whose every number tells the token's position."""
    number = jnp.arange(count, dtype=jnp.float32)[:, None, None]
    return Entry(jnp.broadcast_to(number, (3, count, 2, 4)), jnp.broadcast_to(-number, (3, count, 2, 4)))


@pytest.mark.parametrize("capacity", [1, 4, 11, 13])
def test_filling_equals_writing_in_turn(capacity):
    start, whole = RingCache.empty((3,), capacity, 2, 4, jnp.float32), entries(11)
    write = jax.jit(lambda cache, entry, position: cache.write(entry, position))
    fill = jax.jit(lambda cache, count: cache.fill(whole, count))
    cache = start
    for count in range(12):
        assert equal(fill(start, jnp.array(count)), cache)
        held = [p for p in cache.position.tolist() if p >= 0]
        assert sorted(held) == list(range(max(0, count - capacity), count))
        for slot, position in enumerate(cache.position.tolist()):
            if position >= 0:
                assert (cache.key[:, :, slot] == position).all() and (cache.value[:, :, slot] == -position).all()
        if count < 11:
            entry = jax.tree.map(lambda leaf, count=count: leaf[:, count], whole)
            cache = write(cache, entry, jnp.array(count))
    assert cache.capacity == capacity
