"""Configurations: presets, layers of input, the round trip, and every way to get one wrong."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dreamer4.config import PRESETS, Config, EnvConfig, diff, from_yaml, load, presets, to_yaml
from dreamer4.errors import InputError


def message(*args, **kwargs) -> str:
    with pytest.raises(InputError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def keys(tree, prefix=()):
    for name, value in tree.items():
        if isinstance(value, dict) and prefix + (name,) != ("env", "kwargs"):
            yield from keys(value, (*prefix, name))
        else:
            yield ".".join((*prefix, name)), value


def holds(found, told):
    """Returns whether what is told is found, at any depth, beside what is not told."""
    if isinstance(told, dict):
        return all(holds(found[name], value) for name, value in told.items())
    if isinstance(told, list):
        return len(found) == len(told) and all(map(holds, found, told))
    return found == told


class TestPresets:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_loads_and_round_trips(self, preset):
        config = load(preset)
        assert config.preset == preset
        assert from_yaml(to_yaml(config)) == config
        assert to_yaml(from_yaml(to_yaml(config))) == to_yaml(config)

    @pytest.mark.parametrize("preset", PRESETS)
    def test_arrives_unchanged_in_the_configuration(self, preset):
        resolved = dict(keys(yaml.safe_load(to_yaml(load(preset)))))
        told = dict(keys(presets.preset(preset)))
        assert all(holds(resolved[key], value) for key, value in told.items())

    def test_every_file_is_a_preset_or_what_several_share(self):
        files = list((Path(presets.__file__).parent / "presets").glob("*.yaml"))
        shared = [yaml.safe_load(file.read_text()).get("include") for file in files]
        assert {file.stem for file in files} == {*PRESETS, *shared} - {None}
        assert all(shared.count(name) > 1 for name in {*shared} - {*PRESETS, None})
        assert not {*shared} & {*PRESETS}  # or a change of one would change another

    def test_catch_is_the_default(self):
        assert load() == load("catch")

    def test_paper_has_the_stated_sizes(self):
        config = load("paper")
        tokenizer, dynamics = config.tokenizer, config.dynamics
        rows, columns = 384 // tokenizer.patch[0], 640 // tokenizer.patch[1]
        assert rows * columns == 960
        assert (tokenizer.num_latents, tokenizer.latent_dim) == (512, 16)
        assert (tokenizer.num_spatial, tokenizer.spatial_dim) == (256, 32)
        assert dynamics.transformer.context_length == 192 < config.train.dynamics.length == 256
        assert config.sampler.num_steps == 4
        assert (config.imagination.objective.alpha, config.imagination.objective.beta) == (0.5, 0.3)

    def test_paper_has_the_stated_parameter_counts(self):
        def count(t):
            attention = t.width**2 * (2 + 2 * t.kv_heads / t.heads)
            return t.depth * (attention + 3 * t.mlp_ratio * t.width**2)

        config = load("paper")
        tokenizer = count(config.tokenizer.encoder) + count(config.tokenizer.decoder)
        assert 0.38e9 < tokenizer < 0.42e9
        assert 1.5e9 < count(config.dynamics.transformer) < 1.7e9

    def test_base_has_64_tokens_and_about_100_million_parameters(self):
        t = load("base").dynamics.transformer
        assert load("base").tokenizer.num_spatial == 64
        assert 0.95e8 < t.depth * t.width**2 * (2 + 2 * t.kv_heads / t.heads + 3 * t.mlp_ratio) < 1.05e8

    def test_tiny_is_small(self):
        config = load("tiny")
        assert config.dynamics.transformer.width == 32
        assert max(config.train.tokenizer.steps, config.train.dynamics.steps) <= 10


class TestLayers:
    def test_each_layer_beats_the_one_before(self, tmp_path):
        file = tmp_path / "mine.yaml"
        file.write_text("seed: 1\nseeds: 2\ntrain: {log_every: 7}\n")
        assert (load("tiny").seed, load("tiny").train.log_every) == (0, 2)
        assert (load("tiny", file).seed, load("tiny", file).train.log_every) == (1, 7)
        assert load("tiny", file, seed=3).seed == 3
        assert load("tiny", file, ["seed=4"], seed=3).seed == 4
        assert load("tiny", file, ["seed=4", "seed=5"], seed=3).seed == 5

    def test_a_layer_keeps_what_it_does_not_name(self):
        config = load("tiny", overrides=["dynamics.transformer.width=64", "train.dynamics={steps: 9}"])
        assert config.dynamics.transformer.heads == load("tiny").dynamics.transformer.heads
        assert config.train.dynamics.batch_size == load("tiny").train.dynamics.batch_size
        assert config.train.dynamics.steps == 9

    def test_the_env_shortcut_sets_the_id_and_nothing_else(self):
        assert diff(load("catch"), load("catch", env="Breakout-MinAtar")) == [
            'env.id: "Catch-bsuite" -> "Breakout-MinAtar"'
        ]

    def test_a_resolved_file_needs_no_preset(self, tmp_path):
        config = load("breakout", overrides=["seed=3"])
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        assert load(file=tmp_path / "config.yaml") == config
        assert load("breakout", tmp_path / "config.yaml") == config

    def test_loading_leaves_the_presets_alone(self):
        before = repr(presets.preset("tiny"))
        load("tiny", overrides=["train.dynamics.steps=77", "tokenizer.encoder.width=64"])
        assert repr(presets.preset("tiny")) == before

    def test_an_empty_file_changes_nothing(self, tmp_path):
        (tmp_path / "empty.yaml").write_text("# nothing\n")
        assert load("tiny", tmp_path / "empty.yaml") == load("tiny")

    @pytest.mark.parametrize(
        ("text", "value"),
        [("1e-3", 1e-3), ("1E-5", 1e-5), ("0.001", 1e-3), (" 2 ", 2.0), ("'1e-3'", 1e-3)],
    )
    def test_numbers_as_people_write_them(self, text, value):
        config = load(overrides=[f"train.agent.optimizer.learning_rate={text}"])
        assert config.train.agent.optimizer.learning_rate == value

    def test_values_are_yaml(self):
        config = load(
            overrides=[
                "tokenizer.patch=[2, 5]",
                "dynamics.transformer.soft_cap=null",
                "dynamics.transformer.remat=true",
                "env.kwargs.size=8",
                "env.kwargs.name='a=b.c'",
            ]
        )
        assert config.tokenizer.patch == (2, 5)
        assert config.dynamics.transformer.soft_cap is None
        assert config.dynamics.transformer.remat is True
        assert config.env == EnvConfig(id="Catch-bsuite", kwargs={"size": 8, "name": "a=b.c"})


class TestRoundTrip:
    @given(
        rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        ratio=st.floats(min_value=1e-300, max_value=1e300),
        seed=st.integers(0, 2**31 - 1),
        env_id=st.text(min_size=1),
        kwargs=st.dictionaries(
            st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
        ),
    )
    def test_is_exact_for_any_value(self, rate, ratio, seed, env_id, kwargs):
        config = Config.model_validate(
            {
                "seed": seed,
                "env": {"id": env_id, "kwargs": kwargs},
                "dynamics": {"transformer": {"mlp_ratio": ratio}},
                "train": {"agent": {"optimizer": {"learning_rate": rate}}},
            }
        )
        assert from_yaml(to_yaml(config)) == config

    def test_every_key_is_written(self):
        tree = yaml.safe_load(to_yaml(load()))
        assert tree["dynamics"]["shortcut"]["k_max"] == load().dynamics.shortcut.k_max
        assert set(tree) == set(Config.model_fields)

    def test_diff_lists_exactly_the_changed_keys(self):
        a = load("tiny")
        b = load("tiny", overrides=["train.dynamics.steps=9", "tokenizer.patch=[2, 5]", "env.kwargs.x=1"])
        assert diff(a, a) == []
        assert diff(a, b) == [
            'env.kwargs: {} -> {"x": 1}',
            "tokenizer.patch: [5, 5] -> [2, 5]",
            "train.dynamics.steps: 4 -> 9",
        ]
        assert [line.split(":")[0] for line in diff(b, a)] == [line.split(":")[0] for line in diff(a, b)]

    def test_a_configuration_is_frozen(self):
        with pytest.raises(ValidationError):
            load().seed = 3


# Each bad override with what its message must name: the key path and, after it, the value or the rule.
BAD_OVERRIDES = [
    ("train.dynamics.step=5", "train.dynamics.step: unknown key. Did you mean steps?"),
    ("train.dynamic.steps=5", "train.dynamic: unknown key. Did you mean dynamics?"),
    ("tokeniser.mask_max=0.5", "tokeniser: unknown key. Did you mean tokenizer?"),
    ("dynamics.width=64", "dynamics.width: unknown key. Did you mean dynamics.transformer.width?"),
    ("learning_rate=1", "learning_rate: unknown key. Did you mean ppo.learning_rate or sac.learning_rate or"),
    ("imagination.lambda=0.9", "imagination.lambda: unknown key. Did you mean lambda_?"),
    ("imagination.objective.Beta=0.9", "imagination.objective.Beta: unknown key. Did you mean beta?"),
    ("zzz=1", "zzz: unknown key. Known: agent, data, dynamics"),
    ("env.id=''", 'env.id: got "", expected a name or text that is not empty'),
    ("seed.x=1", 'seed: got {"x": 1}, expected a whole number'),
    ("seed=-1", "seed: got -1, expected greater than or equal to 0"),
    ("seed=99999999999999999999", "seed: got 99999999999999999999, expected less than 2147483648"),
    ("seed=1.5", "seed: got 1.5, expected a whole number"),
    ("seed=one", 'seed: got "one", expected a whole number'),
    ("seed=true", "seed: got true, expected a number"),
    ("seed=", "nothing behind the =. For no value, write seed=null"),
    ("seeds=0", "seeds: got 0, expected greater than 0"),
    ("train.agent.steps=on", "train.agent.steps: got true, expected a number"),
    ("train.agent.steps=0", "train.agent.steps: got 0, expected greater than 0"),
    ("train.agent.steps=[1]", "train.agent.steps: got [1], expected a whole number"),
    ("train.agent.batch_size=-8", "train.agent.batch_size: got -8"),
    ("train.agent.length=0", "train.agent.length: got 0"),
    ("train.agent.ema=1", "train.agent.ema: got 1, expected less than 1"),
    ("train.agent.optimizer.kind=adam", "train.agent.optimizer.kind: got \"adam\", expected 'adamw' or 'muon'"),
    ("train.agent.optimizer.learning_rate=-1e-3", 'train.agent.optimizer.learning_rate: got "-1e-3", expected greater'),
    (
        "train.agent.optimizer.learning_rate=.inf",
        "train.agent.optimizer.learning_rate: got Infinity",
    ),
    ("train.agent.optimizer.learning_rate=.nan", "train.agent.optimizer.learning_rate: got NaN, expected a finite"),
    ("train.agent.optimizer.learning_rate=fast", 'train.agent.optimizer.learning_rate: got "fast", expected a number'),
    ("train.agent.optimizer.clip=0", "train.agent.optimizer.clip: got 0"),
    ("train.agent.optimizer={warmup: 0.6, decay: 0.6}", "train.agent.optimizer: warmup 0.6 and decay 0.6"),
    ("train.agent=fast", 'train.agent: got "fast", expected a mapping'),
    ("train.dynamics.warm_value=0.2", "train: dynamics.warm_value is 0.2, but only the imagination phase"),
    ("train.mesh.data=3", "train: tokenizer.batch_size 32 is not divisible by mesh.data 3 * mesh.fsdp 1 * tokenizer"),
    ("train.mesh={data: 4, fsdp: 16}", "train: tokenizer.batch_size 32 is not divisible by mesh.data 4 * mesh.fsdp 16"),
    ("train.mesh.data=0", "train.mesh.data: got 0"),
    ("train.mesh.tensor=2", "train.mesh.tensor: unknown key"),
    (
        "train.agent.accumulate=5",
        "train: agent.batch_size 32 is not divisible by mesh.data 1 * mesh.fsdp 1 * agent.accumulate 5",
    ),
    ("train.agent.accumulate=0", "train.agent.accumulate: got 0"),
    ("train.tokenizer.warm_heads=0.2", "train: tokenizer.warm_heads is 0.2, but only the agent phase has heads"),
    ("train.agent.ends=0.2", "train: agent.ends is 0.2, but only the dynamics phase draws ends of its own"),
    ("train.dynamics.ends=1.5", "train.dynamics.ends: got 1.5"),
    ("train.log_every=0", "train.log_every: got 0"),
    ("train.keep=0", "train.keep: got 0"),
    ("tokenizer.patch=5", "tokenizer.patch: got 5, expected a list such as [5, 5]"),
    ("tokenizer.patch=5x5", 'tokenizer.patch: got "5x5", expected a list'),
    ("tokenizer.patch=[5]", "tokenizer.patch.1: got [5], expected a list"),
    ("tokenizer.patch=[5, 5, 5]", "tokenizer.patch: got [5, 5, 5], expected a list"),
    ("tokenizer.patch=[0, 5]", "tokenizer.patch.0: got 0, expected greater than 0"),
    ("tokenizer.mask_max=1", "tokenizer.mask_max: got 1, expected less than 1"),
    ("tokenizer.num_spatial=7", "tokenizer: num_latents * latent_dim is 32, not divisible by num_spatial 7"),
    ("tokenizer.time_tokens=some", "tokenizer.time_tokens: got \"some\", expected 'all' or 'latents'"),
    ("tokenizer.encoder.width=65", "tokenizer.encoder: width 65 is not divisible by heads 4"),
    ("tokenizer.encoder={width: 20, heads: 4}", "tokenizer.encoder: width / heads is 5"),
    ("tokenizer.decoder.depth=6", "tokenizer.decoder: depth 6 is not divisible by time_every 4"),
    ("tokenizer.decoder=null", "tokenizer.decoder: got null, expected a mapping"),
    ("dynamics.transformer.kv_heads=3", "dynamics.transformer: heads 4 is not divisible by kv_heads 3"),
    ("dynamics.transformer.dtype=float16", "dynamics.transformer.dtype: got \"float16\", expected 'float32' or"),
    ("dynamics.transformer.soft_cap=0", "dynamics.transformer.soft_cap: got 0, expected greater than 0"),
    (
        "dynamics.transformer.remat=perhaps",
        "dynamics.transformer.remat: got \"perhaps\", expected False, True or 'products'",
    ),
    ("agent.balanced=perhaps", 'agent.balanced: got "perhaps", expected true or false'),
    ("dynamics.shortcut.k_max=48", "dynamics.shortcut: k_max 48 is not a power of two"),
    ("dynamics.shortcut.mode=literal", "shortcut.mode: got \"literal\", expected 'paper', 'split' or 'drafts'"),
    ("dynamics.shortcut.bootstrap_fraction=1.1", "dynamics.shortcut.bootstrap_fraction: got 1.1"),
    ("dynamics.prediction=noise", "dynamics.prediction: got \"noise\", expected 'x' or 'v'"),
    ("train.dynamics.batch_size=1", "train.dynamics.batch_size 1 has no room for a row that learns from the data and"),
    ("train.agent.batch_size=1", "train.agent.batch_size 1 has no room for a row that learns from the data and"),
    (
        "dynamics.shortcut.chunk_length=7",
        "train.dynamics.length 16 is not divisible by dynamics.shortcut.chunk",
    ),
    ("dynamics.num_registers=-1", "dynamics.num_registers: got -1"),
    ("sampler.num_steps=3", "sampler.num_steps 3 is not a power of two that divides dynamics.shortcut.k_max"),
    ("sampler.num_steps=4096", "sampler.num_steps 4096 is not a power of two that divides"),
    ("sampler.context_signal=0", "sampler.context_signal: got 0"),
    ("agent.num_bins=254", "agent: num_bins 254 is even"),
    ("agent.mtp_length=99", "agent.mtp_length 99 reaches beyond the clips of train.agent.length"),
    ("imagination.discount=1.01", "imagination.discount: got 1.01"),
    ("imagination.horizon=0", "imagination.horizon: got 0"),
    ("imagination.objective.alpha=2", "imagination.objective.alpha: got 2"),
    ("data.held_out=0", "data.held_out: got 0, expected greater than 0"),
    ("data.episodes=3", "data: episodes 3 with held_out 0.1 leaves the training part or the held-out part"),
    ("data.policy=mixture", "data: policy is mixture, but mixture names no policies"),
    ("data.mixture=[{policy: mixture}]", "data: a mixture cannot hold a mixture"),
    ("data.mixture=[{policy: random, tasks: [walk]}]", "data.mixture names tasks that are not there: walk"),
    ("data.mixture=[{policy: random, share: 0}]", "data.mixture.0.share: got 0"),
    ("ppo.minibatches=7", "ppo: num_envs * rollout_length is 4096, not divisible by minibatches 7"),
    ("data.path=5", "data.path: got 5, expected text"),
    ("data.spec={frame_shape: [-64, 64, 3]}", "data.spec.frame_shape.0: got -64, expected greater than 0"),
    ("data.spec={frame_shape: [9, 9, 3], num_classes: [0]}", "data.spec.num_classes.0: got 0, expected greater than 0"),
    ("env.id=5", "env.id: got 5, expected text"),
    ("env=Catch-bsuite", 'env: got "Catch-bsuite", expected a mapping'),
    ("env.kwargs=[1]", "env.kwargs: got [1], expected a mapping"),
    ("env.kwargs={1: 2}", "env.kwargs.1: got 1, expected text"),
    ("env.kwargs.day=2020-01-01", 'env.kwargs.day: got "2020-01-01", expected plain'),
    ("evaluation.temperature=0", "evaluation.temperature: got 0"),
    ("preset=tiny", 'override: got "preset=tiny"'),
    ("seed", 'override: got "seed", expected key=value'),
    ("", 'override: got "", expected key=value'),
    ("=1", 'override: got "=1", expected key=value'),
    ("train..steps=1", 'override: got "train..steps=1", expected key=value'),
    ("seed=[1", 'override "seed=[1", line 1, column 3: not valid YAML'),
    ("seed=2020-99-99", 'override "seed=2020-99-99": not valid YAML (an impossible date or number)'),
    ("seed=" + 5000 * "[", "not valid YAML (nested too deeply)"),
    ("seed={a: 1, a: 2}", 'line 1: "a" is given twice'),
]


class TestErrors:
    @pytest.mark.parametrize(("override", "expected"), BAD_OVERRIDES, ids=[o[:40] for o, _ in BAD_OVERRIDES])
    def test_an_override_that_breaks_a_rule_is_named_with_the_rule(self, override, expected):
        text = message("catch", overrides=[*FIXED, override])
        assert expected in text
        assert len(text.splitlines()) == 1

    def test_every_error_has_its_line(self):
        lines = message(overrides=["seed=-1", "train.dynamics.step=5", "tokenizer.patch=[0, 0]"]).splitlines()
        assert [line.split(":")[0] for line in lines] == [
            "seed",
            "tokenizer.patch.0",
            "tokenizer.patch.1",
            "train.dynamics.step",
        ]

    def test_no_word_of_python_reaches_the_user(self):
        for override, _ in BAD_OVERRIDES:
            text = message("catch", overrides=[*FIXED, override])
            assert not re.search(r"pydantic|Traceback|NoneType|Input should|Value error|instance of", text), text

    def test_an_unknown_preset_shows_the_nearest(self):
        assert message("catsh") == 'preset: got "catsh", expected a preset. Did you mean catch?'
        assert "Known: asterix, base, breakout, cartpole, catch" in message("")

    def test_a_preset_that_contradicts_the_file(self, tmp_path):
        (tmp_path / "config.yaml").write_text(to_yaml(load("breakout")))
        assert message("tiny", tmp_path / "config.yaml").startswith("preset: got tiny, but")

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"- 1\n- 2\n", "got [1, 2], expected a YAML mapping"),
            (b"just words", 'got "just words", expected a YAML mapping'),
            (b"seed: [1\n", "line 2, column 1: not valid YAML"),
            (b"seed: 1\nseed: 2\n", 'line 2: "seed" is given twice'),
            (b"train:\n  log_every: 1\n  log_every: 2\n", 'line 3: "log_every" is given twice'),
            (b"\tseed: 1\n", "not valid YAML"),
            (b"\xff\xfe\x00", "not a text file in UTF-8"),
            (b"seed: \x00", "not valid YAML"),
            (b"1: 2\n", "1: got 1, expected keys that are text"),
            (b"seed: 1\nsed: 2\n", "sed: unknown key. Did you mean seed or seeds?"),
            (b"preset: mine\n", 'preset: got "mine", expected a preset'),
            (b"preset: [catch]\n", 'preset: got ["catch"], expected a preset'),
            (b"seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
            (b"train: &a\n  agent: *a\n", "train.agent"),
            (b"# " + b"x" * 200_001, "larger than 200000 bytes"),
        ],
    )
    def test_a_file_that_is_no_configuration(self, tmp_path, content, expected):
        (tmp_path / "bad.yaml").write_bytes(content)
        text = message(file=tmp_path / "bad.yaml")
        assert expected in text

    @pytest.mark.parametrize("name", ["missing.yaml", ".", "x" * 5000, "nul\0byte"])
    def test_a_file_that_cannot_be_read(self, tmp_path, name):
        assert "cannot read the configuration file" in message(file=tmp_path / name)

    def test_an_alias_that_is_shared_is_fine(self):
        config = from_yaml("tokenizer: {encoder: &t {width: 96}, decoder: *t}\n")
        assert config.tokenizer.encoder == config.tokenizer.decoder

    @given(st.text(max_size=60))
    def test_any_text_is_a_configuration_or_one_clear_error(self, text):
        try:
            from_yaml(text)
        except InputError as error:
            assert str(error)
        try:
            load(overrides=[text])
        except InputError as error:
            assert str(error)


def test_a_branch_that_may_be_missing_differs_as_one_value():
    declared = load("tiny", overrides=["data.spec={frame_shape: [10, 5, 1], num_classes: [3]}"])
    assert [line.split(":")[0] for line in diff(load("tiny"), declared)] == ["data.spec"]


# The sizes that messages above quote, whatever the preset is tuned to.
FIXED = [
    "tokenizer={num_latents: 4, latent_dim: 8, num_spatial: 4, patch: [5, 5]}",
    "tokenizer.encoder={width: 64, depth: 4, heads: 4, kv_heads: 4, time_every: 4}",
    "tokenizer.decoder={width: 64, depth: 4, heads: 4, kv_heads: 4, time_every: 4}",
    "dynamics.transformer={width: 64, depth: 4, heads: 4, kv_heads: 4, time_every: 4}",
    "dynamics.shortcut={k_max: 64, chunk_length: null}",
    "sampler.num_steps=4",
    "train.dynamics.length=16",
    "train.agent.length=16",
    "data={path: null, held_out: 0.1}",
]


def test_the_home_folder_is_found_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    mixture = ["data.policy=mixture", "data.mixture=[{policy: ~/mine.py:left}]"]
    assert load("tiny", overrides=["data.path=~/own"]).data.path == str(tmp_path / "own")
    assert load("tiny", overrides=["data.policy=~/run"]).data.policy == str(tmp_path / "run")
    assert load("tiny", overrides=mixture).data.mixture[0].policy == f"{tmp_path / 'mine.py'}:left"
