"""Speed: the floor is arithmetic, a program is known before it is allocated, figures tell what made them."""

import json
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from helpers import generic

from benchmarks import gpu, kernels
from benchmarks.speed import floor as floors
from benchmarks.speed import start, suite, timing
from benchmarks.speed.floor import Part, Rates, floor, frame_parts, training_part
from benchmarks.speed.programs import PROGRAMS, Program, Settings, full
from benchmarks.speed.timing import Row
from dreamer4.config import load
from dreamer4.dreamer import Dreamer
from dreamer4.errors import InputError
from dreamer4.run.sizes import data_spec
from dreamer4.training import init_dreamer
from dreamer4.training.flops import parameters, step_flops


@pytest.fixture(scope="module")
def shapes():
    config = load("tiny")
    return config, eqx.filter_eval_shape(init_dreamer, config, data_spec(config))


class TestFloor:
    def test_a_part_waits_for_its_products_or_for_its_bytes(self):
        rates = Rates(matmul=100.0, memory=10.0)
        assert floor([Part(1000, 50)], rates) == 10  # products
        assert floor([Part(100, 50)], rates) == 5  # bytes
        # Parts follow each other, so the products of one do not hide the bytes of another.
        assert floor([Part(1000, 0), Part(0, 50, times=3)], rates) == 10 + 15

    @pytest.mark.parametrize("rows", [1, 3])
    def test_a_frame_reads_weights_and_context_once_in_every_pass(self, shapes, rows):
        config, dreamer = shapes
        draw, commit, decode = frame_parts(dreamer, rows, 2, decode=True)
        assert (draw.times, commit.times, decode.times) == (2, 1, 1)
        t, slots = config.dynamics.transformer, 2 + config.tokenizer.num_spatial + 1 + 1
        cache = 2 * 4 * (t.depth // t.time_every) * slots * t.context_length * t.kv_heads * t.width // t.heads
        blocks = t.depth * (t.width**2 * (2 + 2 * t.kv_heads // t.heads) + 3 * t.width * round(t.mlp_ratio * t.width))
        outside = parameters(dreamer.dynamics) - parameters(
            dreamer.dynamics.network.transformer
        )  # tables, first and last map
        assert draw.bytes == commit.bytes == pytest.approx(4 * (blocks + outside) + rows * cache, rel=0.02)
        assert draw.operations == rows * dreamer.dynamics.network.flops(frames=9, agent=False)
        assert commit.operations == rows * dreamer.dynamics.network.flops(frames=9, agent=True)
        assert decode.operations == rows * dreamer.tokenizer.decoder_flops(frames=9)
        assert frame_parts(dreamer, rows, 2, decode=False) == (draw, commit)

    def test_a_training_step_moves_weights_averages_gradient_and_moments(self):
        # 10 parameters, Adam: read twice as bfloat16; gradient, weight, average and two moments written and read.
        assert training_part(5, 10, optimizer=2 * 40, itemsize=2) == Part(5, 10 * (2 * 2 + 5 * 2 * 4))

    def test_rates_are_those_of_a_product_and_of_memory(self, monkeypatch):
        seconds = iter([0.5, 0.25])
        monkeypatch.setattr(floors, "median_seconds", lambda call, repeats: call() and None or next(seconds))
        monkeypatch.setattr(floors, "_square", lambda matrix: None)
        rates = floors.measure("float32", side=4, megabytes=1)
        assert rates == Rates(2 * 4**3 / 0.5, 2 * 2**20 / 0.25)


class TestPrograms:
    def test_a_training_step_has_the_operations_of_the_formula_and_its_teachers(self):
        settings = Settings("tiny", batch=8, length=6)
        program = PROGRAMS["dynamics"](settings)
        config = settings.config("dynamics")
        dreamer = eqx.filter_eval_shape(init_dreamer, config, data_spec(config))
        assert program.parts[0].operations == step_flops("dynamics", dreamer, config)
        assert program.frames == 48 and program.facts["teacher_share"] == 0.25

    def test_memory_is_known_by_shape(self):
        needs = PROGRAMS["tokenizer"](Settings("tiny")).memory()
        dreamer = eqx.filter_eval_shape(init_dreamer, load("tiny"), data_spec(load("tiny")))
        assert needs["weights"] == needs["averages"] == pytest.approx(4 * parameters(dreamer), rel=1e-3)
        trained = needs["gradient"]
        assert needs["optimiser"] == pytest.approx(2 * trained, rel=1e-3)

    def test_a_full_memory_is_as_long_as_it_can_be(self, shapes):
        config, _ = shapes
        dreamer = generic(Dreamer.build, config, data_spec(config), key=jr.key(0))
        memory = full(dreamer.init(), key=jr.key(0))
        assert memory.world.stream.position == config.dynamics.transformer.context_length
        assert sorted(memory.world.stream.cache.position.tolist()) == list(range(8))
        assert not np.any(memory.world.stream.cache.key == 0)

    def test_what_does_not_fit_is_refused_before_anything_is_made(self, monkeypatch):
        monkeypatch.setattr(timing, "device_memory", lambda: int(4e9))
        monkeypatch.setattr(timing, "compile_program", lambda program: pytest.fail("compiled"))
        program = PROGRAMS["frame"](Settings("paper", batch=1))
        with pytest.raises(InputError, match=r"9\.95 of 4 GB \(.*agent 8\.45 GB.*does not fit"):
            timing.run("frame", program, Rates(1, 1), 1)

    def test_a_type_is_one_of_two(self):
        with pytest.raises(InputError, match="--weights.*float8"):
            Settings("tiny", weights="float8").config()


class TestCommand:
    @pytest.fixture
    def quick(self, monkeypatch):
        monkeypatch.setattr(suite, "_rates", lambda dtype: Rates(1e11, 1e10))

    def test_a_benchmark_tells_all_about_itself(self, quick, tmp_path, capsys):
        out = tmp_path / "speed.json"
        out.write_text(json.dumps({"collect": {"rows": []}}))
        settings = Settings("tiny", batch=2, repeats=3)
        suite.speed(["frame"], settings, out=out)
        kept = json.loads(out.read_text())
        assert kept.pop("collect") == {"rows": []}  # of an earlier call
        told = kept.pop("frame")
        assert not kept
        assert told["command"] == "python -m benchmarks speed frame --preset tiny --batch 2 --repeats 3"
        assert {"commit", "device", "processor", "versions", "flags", "rates"} < set(told)
        (row,) = told["rows"]
        assert row["value"] == pytest.approx(2e3 / row["ms_p50"], rel=1e-3)
        assert row["ms_p50"] <= row["ms_p95"] <= row["ms_p99"]
        program = PROGRAMS["frame"](settings)
        assert row["floor"] == pytest.approx(2 / floor(program.parts, Rates(1e11, 1e10)), rel=1e-3)
        assert row["gflop"] == pytest.approx(sum(p.times * p.operations for p in program.parts) / 1e9, rel=1e-3)
        assert row["memory_gb"]["agent"] > 0 and row["trace_s"] > 0
        assert "frame, batch 2" in capsys.readouterr().out
        assert suite._cells(row)[-1] == f"{sum(row['memory_gb'].values()):.3g}", "of this program, not of the process"

    def test_options_are_told_as_they_are_typed(self):
        settings = Settings("tiny", ("sampler.num_steps=4",), batch=3, dtype="bfloat16")
        assert settings.options() == "--preset tiny --batch 3 --dtype bfloat16 --set sampler.num_steps=4".split()

    def test_mistakes_are_told_before_anything_runs(self, tmp_path):
        with pytest.raises(InputError, match="'fram'.*frame"):
            suite.speed(["collect", "fram"], Settings("tiny"), out=tmp_path / "a.json")
        for text in ('{"other": 1}', "[]", "{"):
            (tmp_path / "b.json").write_text(text)
            with pytest.raises(InputError, match=r"b\.json is no result"):
                suite.speed(["collect"], Settings("tiny"), out=tmp_path / "b.json")
        with pytest.raises(InputError, match="is no result of the speed benchmarks"):
            suite.speed(["collect"], Settings("tiny"), out=tmp_path)

    def test_random_play_is_collected_and_loaded(self, quick):
        collected = suite.measure("collect", Settings("tiny", batch=2, repeats=1))["rows"][0]
        assert collected["environments"] == 2 and collected["steps"] >= 2 * collected["episodes"] > 0
        assert collected["bytes_per_step"] > 10 * 10 * 4

    def test_each_call_of_a_program_starts_where_the_last_one_ended(self):
        calls = []

        def call(given, state):
            return {"count": state["count"] + given["by"]}, state["count"]

        program = Program(lambda: ({"by": jnp.array(2)}, {"count": jnp.array(0)}), call, 1, (), {})
        compiled, seconds = timing.compile_program(program)
        assert set(seconds) == {"trace_s", "compile_s"}

        def watched(given, state):
            state, result = compiled(given, state)
            calls.append(int(result))
            return state, result

        assert len(timing.timed(watched, program, 2)) == 2
        assert calls == [0, 2, 4, 6, 8]  # three to warm up


class TestStart:
    def test_compilations_are_counted(self):
        before = timing.compilations()
        function = jax.jit(lambda x: x * 3 + 1)
        x = jnp.arange(3.0)
        first = timing.compilations() - before
        function(x)
        assert timing.compilations() - before > first
        once = timing.compilations()
        function(x)
        assert timing.compilations() == once

    def test_a_phase_that_compiles_late_is_found(self, monkeypatch):
        def steps(name, settings):
            for size in (1, 1, 1, 2, 2, 3) if name == "agent" else (1,) * 6:
                yield type("State", (), {"step": jax.jit(jnp.cumsum)(np.zeros(size))}), {}

        monkeypatch.setattr(start, "steps", steps)
        rows = start.recompilations(Settings("tiny"), Rates(1, 1))
        assert {row.what: row.value for row in rows} == {
            "recompilations, tokenizer": 0,
            "recompilations, dynamics": 0,
            "recompilations, agent": 2,
            "recompilations, imagination": 0,
        }

    def test_depths_differ_in_their_layers_alone(self, monkeypatch):
        seen = []

        def compiled(program):
            given, state = program.shapes()
            agent = given["agent"] if "agent" in given else state["weights"]
            seen.append(agent.dynamics.network.transformer.num_groups)
            return None, {"trace_s": 1.0, "compile_s": float(seen[-1])}

        monkeypatch.setattr(start, "compile_program", compiled)
        rows = start.depth(Settings("tiny"), Rates(1, 1))
        assert seen == [6, 24, 6, 24]
        assert [row.value for row in rows] == [7, 25, 25 / 7] * 2


class TestGpu:
    def test_every_full_size_program_can_be_traced_and_fits_one_gpu(self):
        for name, work in gpu.rows().items():
            if ":" in name:  # the same sizes as the row before the colon
                assert name.partition(":")[0] in gpu.rows()
            elif work.benchmark in PROGRAMS:
                program = PROGRAMS[work.benchmark](work.settings)
                assert 0.1e9 < sum(program.memory().values()) < 60e9, name
                eqx.filter_eval_shape(program.call, *program.shapes())

    def test_a_slice_ends_in_time_and_the_next_one_goes_on(self, tmp_path, monkeypatch, capsys):
        out, clock, done = tmp_path / "gpu.json", [0.0], []

        def measure(work, seconds):
            done.append(work.settings)
            clock[0] += 240
            row = Row(work.benchmark, 1.0, "frames/s").to_json()
            return {"failed": "no"} if failing.pop() else {"rows": [row], "device": "a GPU"}

        failing = [False] * 100 + [True, False]  # the second one

        def call(commit, *options):
            done.clear()
            monkeypatch.setattr(gpu, "source_commit", lambda: commit)
            monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), *options])
            gpu.main()
            return len(done), capsys.readouterr().out

        monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(gpu, "measure", measure)
        count, said = call("abc")
        assert count == 2 and "left for the next call" in said and "failed: no" in said
        counts = [count]
        while "nothing is left" not in said:
            count, said = call("abc")
            counts.append(count)
        assert max(counts) == 2 and sum(counts) == 1 + len(gpu.rows())  # what failed is tried again
        assert len(json.loads(out.read_text())) == len(gpu.rows())
        assert call("abc")[0] == 0
        assert call("def", "--only", "play")[0] == 2  # another commit

    @pytest.mark.slow
    def test_a_row_is_a_process_of_its_own(self, monkeypatch):
        work = gpu.tiny(gpu.rows()["play, base: no command buffers"])
        told = gpu.measure(work, 300)
        assert told["flags"]["XLA_FLAGS"].endswith(gpu.NO_GRAPHS)
        assert told["rows"][0]["batch"] == 2 and told["rows"][0]["value"] > 0
        monkeypatch.setattr(gpu.sys, "executable", "false")
        assert gpu.measure(work, 300) == {"failed": ""}


class TestKernels:
    def test_a_loop_has_the_time_that_nothing_in_it_has(self):
        events = [("add.2", 3.0, 2.0), ("while.1", 0.0, 10.0), ("dot.7", 5.0, 4.0), ("dot.8", 20.0, 1.0)]
        assert kernels.own_times(events) == {
            "while.1": (1, 4.0),
            "add.2": (1, 2.0),
            "dot.7": (1, 4.0),
            "dot.8": (1, 1.0),
        }

    def test_a_kernel_that_begins_early_takes_over(self):
        events = [("while", 0.0, 20.0), ("a", 1.0, 5.0), ("b", 4.0, 6.0), ("c", 5.0, 1.0), ("d", 18.0, 5.0)]
        assert kernels.own_times(events) == {
            "while": (1, 9.0),  # 0 to 1 and 10 to 18
            "a": (1, 3.0),
            "b": (1, 5.0),  # 4 to 5 and 6 to 10
            "c": (1, 1.0),
            "d": (1, 5.0),
        }

    def test_streams_that_run_at_once_are_busy_once(self):
        found = [[("dot.1", 0.0, 4e6), ("dot.2", 6e6, 2e6)], [("copy.3", 2e6, 3e6)]]
        busy, rows = kernels.summary(found, calls=2)
        assert busy == 7 / 2
        assert [(row["name"], row["times"], row["ms"]) for row in rows] == [("dot", 1.0, 3.0), ("copy", 0.5, 1.5)]
        assert [row["share"] for row in rows] == pytest.approx([2 / 3, 1 / 3])

    @pytest.mark.slow
    def test_a_trace_holds_every_call_of_the_program_alone(self, capsys):
        kernels.main("frame", preset="tiny", batch=1, repeats=4)
        told = json.loads(capsys.readouterr().out)
        assert 0 < told["busy_ms"] and told["busy_ms"] + told["idle_ms"] == pytest.approx(told["ms"])
        # What runs once for each call was seen once for each call, those of warming up included.
        assert any(row["times"] == 1.0 for row in told["operations"])
        assert all(row["times"] >= 1.0 for row in told["operations"])
