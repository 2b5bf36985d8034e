"""The command line: what it hands to the library, and that bad input ends in one message and exit code 2."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import types
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dreamer4_cli
from dreamer4.config import PRESETS, load, to_yaml
from dreamer4.envs import ENVIRONMENTS
from dreamer4.errors import InputError, nearest
from dreamer4_cli import compile_cache, endings, options
from dreamer4_cli.app import app, main


WORK = """
    demo collect train evaluate play export push import info doctor encode report dream runs study
""".split()
COMMANDS = [*WORK, "config", "baseline", "data"]
LEAVES = [
    *WORK,
    "config show",
    "baseline ppo",
    "baseline sac",
    "baseline offline",
    "data check",
    "data plan",
    "data import",
    "data merge",
]
ROOT = Path(__file__).parents[2]
AFRESH = {"resume": False, "fallback": True, "changed_data": False}


@pytest.fixture
def calls(monkeypatch) -> list:
    """Replaces `dreamer4_cli.run` by a recorder of calls, so that no command does any work."""
    recorded = []
    fake = types.ModuleType("dreamer4_cli.run")
    for name in (
        "collect",
        "train",
        "evaluate",
        "demo",
        "dry_run",
        "info",
        "check_data",
        "export",
        "push",
        "import_run",
        "play",
    ):
        setattr(fake, name, lambda *args, _name=name, **kwargs: recorded.append((_name, args, kwargs)))
    monkeypatch.setitem(sys.modules, "dreamer4_cli.run", fake)
    monkeypatch.setattr(dreamer4_cli, "run", fake, raising=False)
    monkeypatch.setitem(sys.modules, "dreamer4_cli.share", fake)
    monkeypatch.setattr(dreamer4_cli, "share", fake, raising=False)
    monkeypatch.setitem(sys.modules, "dreamer4_cli.play", fake)
    monkeypatch.setattr(dreamer4_cli, "play", fake, raising=False)
    return recorded


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def invoke(*args: str):
    return CliRunner().invoke(app, list(args), env={"NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"})


def refused(*args: str) -> str:
    """Runs a command line that must be refused, and returns its one message."""
    result = invoke(*args)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stdout == ""
    return result.stderr


def shell(*args: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dreamer4_cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **kwargs)


def test_a_path_that_cannot_be_is_told_as_one(tmp_path):
    (tmp_path / "afile").touch()
    assert "a part of its path is a file. Choose a folder" in refused("collect", "--preset", "tiny", "--out", "afile/x")
    assert "File name too long. Choose another path." in refused("train", "tokenizer", "--run", 300 * "x")


def test_warnings_are_told_without_the_line_of_code_that_gave_them(monkeypatch):
    def warn(folder):
        warnings.warn("Episodes differ.", stacklevel=1)
        warnings.warn("will be gone", FutureWarning, stacklevel=1)

    monkeypatch.setattr("dreamer4_cli.listing.runs", warn)
    before = warnings.showwarning
    with pytest.warns(FutureWarning, match="will be gone") as others:
        result = invoke("runs", ".")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Warning: Episodes differ.\n"
    assert len(others) == 1
    assert warnings.showwarning is before


class TestCalls:
    def test_demo(self, calls):
        assert invoke("demo", "--preset", "tiny", "--seed", "3").exit_code == 0
        config = load("tiny", seed=3)
        assert calls == [("demo", (config, Path("runs/tiny-Catch-bsuite-seed3")), AFRESH)]

    def test_demo_takes_every_common_option(self, calls, tmp_path):
        (tmp_path / "mine.yaml").write_text("train: {log_every: 7}\n")
        line = "demo --preset tiny --config mine.yaml --set seeds=2 --set train.keep=5 --env Breakout-MinAtar"
        assert invoke(*line.split(), "--run", "here", "--seed", "1", "--seeds", "4", "--resume").exit_code == 0
        (_, (config, folder), options) = calls[0]
        assert (config.train.log_every, config.train.keep, config.seed, config.seeds) == (7, 5, 1, 2)
        assert config.env.id == "Breakout-MinAtar"
        assert (folder, options) == (Path("here"), AFRESH | {"resume": True})

    @pytest.mark.parametrize("phase", ["tokenizer", "dynamics", "agent", "imagination"])
    def test_train_one_phase(self, calls, phase):
        assert invoke("train", phase, "--preset", "tiny").exit_code == 0
        assert calls == [
            (
                "train",
                (load("tiny"), Path("runs/tiny-Catch-bsuite-seed0"), (phase,)),
                AFRESH | {"origin": None, "rounds": 0},
            )
        ]

    def test_a_phase_may_start_from_another_run_and_take_its_settings_and_data(self, calls, tmp_path):
        (tmp_path / "old" / "data").mkdir(parents=True)
        (tmp_path / "old" / "config.yaml").write_text("preset: tiny\ntrain: {log_every: 7}\n")
        line = "train imagination --from old --run new --set imagination.horizon=3"
        assert invoke(*line.split()).exit_code == 0
        (_, (config, folder, phases), options) = calls[0]
        assert (config.preset, config.train.log_every, config.imagination.horizon) == ("tiny", 7, 3)
        assert (config.data.path, folder, phases) == (str(tmp_path / "old" / "data"), Path("new"), ("imagination",))
        assert options["origin"] == Path("old")
        assert invoke("train", "imagination", "--from", "nowhere", "--run", "new").exit_code == 2

    @pytest.mark.parametrize("afresh", [[], ["--preset", "tiny"], ["--config", "mine.yaml"]])
    def test_another_run_keeps_its_data_set_whatever_settings_start_from_it(self, calls, tmp_path, afresh):
        (tmp_path / "old").mkdir()
        (tmp_path / "old" / "config.yaml").write_text("preset: tiny\ndata: {path: /else/where}\n")
        (tmp_path / "mine.yaml").write_text("preset: tiny\ndata: {episodes: 50}\n")
        line = ["train", "imagination", "--from", "old", "--run", "new", *afresh]
        assert invoke(*line).exit_code == 0
        assert invoke(*line, "--set", "data.path=mine").exit_code == 0
        assert [config.data.path for _, (config, *_), _ in calls] == ["/else/where", str(tmp_path / "mine")]

    def test_train_all_phases_in_order(self, calls):
        assert invoke("train", "all", "--resume").exit_code == 0
        assert calls[0][1][2] == ("tokenizer", "dynamics", "agent", "imagination")
        assert calls[0][2] == AFRESH | {"resume": True, "origin": None, "rounds": 0}

    @pytest.mark.parametrize("line", ["demo", "train all"])
    def test_an_older_checkpoint_may_be_refused(self, calls, line):
        assert invoke(*line.split(), "--resume", "--no-fallback").exit_code == 0
        assert (calls[0][2]["resume"], calls[0][2]["fallback"]) == (True, False)

    @pytest.mark.parametrize("line", ["demo", "train all"])
    def test_other_data_may_be_accepted(self, calls, line):
        assert invoke(*line.split(), "--resume", "--changed-data").exit_code == 0
        assert calls[0][2]["changed_data"]

    def test_weights_are_handed_on_and_taken_over(self, calls):
        assert invoke("export", ".", "out", "--member", "2", "--dtype", "float16").exit_code == 0
        assert invoke("push", ".", "me/it", "--private", "--license", "cc0-1.0").exit_code == 0
        assert invoke("import", ".", "--run", "run", "--phase", "agent", "--set", "seed=1").exit_code == 0
        half = {"starts": 0, "license": "mit", "dtype": "float16"}
        whole = {"starts": 0, "license": "cc0-1.0", "dtype": None}
        assert calls == [
            ("export", (), {"path": Path(), "out": Path("out"), "member": 2, **half}),
            ("push", (), {"path": Path(), "name": "me/it", "private": True, "member": 0, **whole}),
            ("import_run", (), {"path": Path(), "folder": Path("run"), "phase": "agent", "overrides": ["seed=1"]}),
        ]

    def test_play(self, calls, tmp_path):
        asked = {"host": "127.0.0.1", "port": 7860, "token": None, "allow": None, "dataset": None, "member": 0}
        asked |= {"prefix": "", "task": None}
        assert invoke("play", "catch").exit_code == 0
        line = "play here --port 0 --allow a:1 --allow b:2 --data . --member 1 --open --token t --host 0.0.0.0"
        line += " --root-path /p --task 0"
        assert invoke(*line.split()).exit_code == 0
        other = {"host": "0.0.0.0", "port": 0, "token": "t", "allow": ["a:1", "b:2"], "dataset": Path(), "member": 1}
        other |= {"prefix": "/p", "task": "0"}
        assert calls == [
            ("play", (), {"name": "catch", **asked, "show": False}),
            ("play", (), {"name": "here", **other, "show": True}),
        ]

    @pytest.mark.parametrize(
        ("line", "phases", "more"),
        [
            ("demo", (), {"judged": True}),
            ("train all", (("tokenizer", "dynamics", "agent", "imagination"),), {}),
            ("train dynamics", (("dynamics",),), {}),
        ],
    )
    def test_dry_run_does_nothing_else(self, calls, line, phases, more):
        assert invoke(*line.split(), "--preset", "paper", "--dry-run").exit_code == 0
        assert calls == [("dry_run", (load("paper"), *phases), more)]

    def test_collect(self, calls):
        assert invoke("collect", "--preset", "tiny").exit_code == 0
        assert invoke("collect", "--preset", "tiny", "--run", "here").exit_code == 0
        assert invoke("collect", "--preset", "tiny", "--out", "there").exit_code == 0
        assert [args for _, args, _ in calls] == [
            (load("tiny"), Path("runs/tiny-Catch-bsuite-seed0/data")),
            (load("tiny"), Path("here/data")),
            (load("tiny"), Path("there")),
        ]

    def test_paths(self, calls):
        for line in (
            "evaluate .",
            "evaluate --run . --episodes 5 --seed 2",
            "info .",
            "data check .",
            "data check . --option camera=top --option size=[4,6]",
        ):
            assert invoke(*line.split()).exit_code == 0
        assert calls == [
            ("evaluate", (Path(),), {"episodes": None, "seed": 0, "plan": None, "task": None}),
            ("evaluate", (Path(),), {"episodes": 5, "seed": 2, "plan": None, "task": None}),
            ("info", (), {"path": Path()}),
            ("check_data", (Path(), {}), {}),
            ("check_data", (Path(), {"camera": "top", "size": [4, 6]}), {}),
        ]

    def test_a_run_folder_knows_its_configuration(self, calls, tmp_path):
        config = load("tiny", overrides=["train.log_every=3"], seed=5)
        (tmp_path / "here").mkdir()
        (tmp_path / "here/config.yaml").write_text(to_yaml(config))
        assert invoke("train", "dynamics", "--run", "here").exit_code == 0
        assert invoke("train", "dynamics", "--run", "here", "--preset", "tiny").exit_code == 0
        assert invoke("train", "dynamics", "--run", "here", "--set", "seed=6").exit_code == 0
        assert [args[0] for _, args, _ in calls] == [config, load("tiny"), config.model_copy(update={"seed": 6})]

    @pytest.mark.parametrize("env", ["../../up", "a/b", "/etc/x", "sp ace", "\N{SNOWMAN}", "a\nb"])
    def test_an_id_never_leaves_the_runs_folder(self, calls, env):
        assert invoke("demo", "--env", env).exit_code == 0
        folder = calls[0][1][1]
        assert folder.parent == Path("runs")
        assert re.fullmatch(r"[A-Za-z0-9._-]+", folder.name)


def test_a_working_folder_that_is_gone(calls, tmp_path, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the working folder is gone" in refused("train", "all", "--set", "data.path=x")


class TestShow:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_output_is_a_file_that_reads_back(self, tmp_path, preset):
        result = invoke("config", "show", "--preset", preset, "--set", "seed=7")
        assert result.exit_code == 0
        assert result.stdout.startswith("# ")  # what the preset is for
        (tmp_path / "shown.yaml").write_text(result.stdout)
        assert load(file=tmp_path / "shown.yaml") == load(preset, seed=7)

    def test_of_a_run(self, tmp_path):
        (tmp_path / "config.yaml").write_text(to_yaml(load("tiny", seed=4)))
        assert invoke("config", "show", "--run", ".").stdout == to_yaml(load("tiny", seed=4))


REFUSED = [
    ("demo --preset catsh", "Did you mean catch?"),
    ("demo --config missing.yaml", "missing.yaml: cannot read the configuration file"),
    ("demo --config .", "cannot read the configuration file. Cannot read .: it is not a file"),
    ("demo --set train.dynamics.step=3", "train.dynamics.step: unknown key. Did you mean steps?"),
    ("demo --set train.dynamics.steps", "expected key=value"),
    ("demo --set", "--set"),
    ("demo --seed -1", "seed: got -1, expected greater than or equal to 0"),
    ("demo --seed one", "--seed"),
    ("demo --seeds 0", "seeds: got 0, expected greater than 0"),
    ("demo --sed 1", "--sed"),
    ("demo extra", "extra"),
    ("train", "phase"),
    ("train everything", "everything"),
    ("train all --set tokenizer.encoder.width=65", "tokenizer.encoder: width 65 is not divisible by heads"),
    ("train all --set tokenizer.patch=[0,1]", "tokenizer.patch.0: got 0"),
    ("train all --set sampler.num_steps=3", "sampler.num_steps 3 is not a power of two"),
    ("train all --dry-run --set agent.num_bins=4", "agent: num_bins 4 is even"),
    ("train all --preset tiny --preset paper --set zzz=1", "zzz: unknown key"),
    (
        "train all --set data.path=[a,b]",
        "data.path: it names several data sets, expected one. Join them: dreamer4 data",
    ),
    ("collect --policy mixture:random=many", "--policy: got 'random=many'"),
    ("collect --set data.episodes=0", "data.episodes: got 0, expected greater than 0"),
    ("collect --seeds 2", "--seeds"),
    ("evaluate", "got neither PATH nor --run"),
    ("evaluate . --world-model --plan 4", "--plan is a way to play"),
    ("evaluate . --run .", "got both PATH . and --run ."),
    ("evaluate missing", "missing: no such file or folder"),
    ("evaluate . --episodes 0", "--episodes"),
    ("evaluate . --episodes many", "--episodes"),
    ("evaluate . --seed -1", "--seed"),
    ("export .", "out"),
    ("export missing out", "missing: no such file or folder"),
    ("export . out --member -1", "--member"),
    ("play catch --port 70000", "--port"),
    ("play catch --data missing", "missing: no such file or folder"),
    ("import .", "--run"),
    ("import missing --run out", "missing: no such file or folder"),
    ("info", "path"),
    ("info missing", "missing: no such file or folder"),
    ("info " + "x" * 5000, "no such file or folder"),
    ("data check missing", "missing: no such file or folder"),
    ("data chek .", "chek"),
    ("config show --preset nothing", 'preset: got "nothing", expected a preset'),
    ("report", "runs"),
    ("report . missing", "missing: no such file or folder"),
    ("dream .", "--out"),
    ("dream . --out x.txt", "ends in .gif or .mp4"),
    ("dream missing --out x.gif", "missing: no such file or folder"),
    ("dream . --out x.gif --episode -1", "--episode"),
    ("dream . --out x.gif --fps 0", "--fps"),
    ("runs", "runs: no such file or folder"),
    ("config show --run missing", "config.yaml: no such file or folder"),
    ("config show --env", "--env"),
    ("config shw", "shw"),
    ("train all --run= --preset tiny", "nothing stands behind --run"),
    ("train all --set data.path=", "data.path=null"),
    ("evaluate . --env-typo=", "nothing stands behind"),
    ("traim all", "traim"),
    ("--versoin", "--versoin"),
]


class TestRefusals:
    @pytest.mark.parametrize(("line", "expected"), REFUSED, ids=[line[:40] for line, _ in REFUSED])
    def test_a_bad_command_line(self, calls, line, expected):
        assert expected.lower() in refused(*line.split()).lower()
        assert not calls
        assert not list(Path().iterdir()), "nothing is written"

    @pytest.mark.parametrize("command", ["demo", "train all", "collect", "evaluate .", "info .", "data check ."])
    def test_bad_input_found_by_the_library(self, calls, monkeypatch, command):
        def refuse(*args, **kwargs):
            raise InputError("the data set is damaged: shard 3 [bold]has[/bold] a wrong hash.\nRun data check.")

        for name in ("demo", "train", "collect", "evaluate", "info", "check_data", "export", "import_run"):
            monkeypatch.setattr(sys.modules["dreamer4_cli.run"], name, refuse)
        expected = "Error: the data set is damaged: shard 3 [bold]has[/bold] a wrong hash.\nRun data check.\n"
        assert refused(*command.split()) == expected

    def test_a_long_message_stays_in_one_piece(self, tmp_path):
        path = "x" * 300 + ".yaml"
        assert path in refused("demo", "--config", path)

    def test_control_codes_are_shown_and_not_obeyed(self):
        text = refused("demo", "--config", "\x1b[2Jgone\x07.yaml")
        assert "\x1b" not in text
        assert "\\x1b[2Jgone\\x07.yaml" in text

    def test_markup_is_not_interpreted(self):
        assert "[red]a[/red]: unknown key" in refused("demo", "--set", "[red]a[/red]=1")

    def test_an_interrupt_is_told_in_a_word(self, calls, monkeypatch):
        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["dreamer4_cli.run"], "demo", interrupt)
        result = invoke("demo")
        assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Interrupted.\n")

    def test_a_defect_of_ours_keeps_its_traceback(self, calls, monkeypatch):
        def fail(*args, **kwargs):
            raise ZeroDivisionError("ours")

        monkeypatch.setattr(sys.modules["dreamer4_cli.run"], "demo", fail)
        assert isinstance(invoke("demo").exception, ZeroDivisionError)


class TestHelp:
    def test_command_names(self):
        text = invoke("--help").stdout
        assert re.findall(r"^│ (\w+)  ", text, re.MULTILINE) == COMMANDS

    @pytest.mark.parametrize("command", ["", *LEAVES, "config", "data"])
    def test_every_command_explains_itself(self, command):
        result = invoke(*command.split(), "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
        assert "--help" in result.stdout

    @pytest.mark.parametrize("command", ["demo", "train", "collect", "config show"])
    def test_options_of_a_configuration_are_the_same_everywhere(self, command):
        text = invoke(*command.split(), "--help").stdout
        assert {"--preset", "--config", "--set", "--env", "--run", "--seed"} <= set(re.findall(r"--[a-z-]+", text))

    def test_the_presets_in_the_help_are_the_presets(self):
        text = re.sub(r"[\s│]+", " ", invoke("demo", "--help").stdout)
        names = list(PRESETS)
        assert names[0] == "catch"
        assert "catch (default), " + ", ".join(names[1:]) + "." in text

    def test_version(self):
        result = invoke("--version")
        assert result.exit_code == 0
        assert re.fullmatch(r"dreamer4 \d+\.\d+\.\d+\S*\n", result.stdout)

    def test_help_imports_nothing_heavy(self):
        # One process for all commands: what any of them imports stays loaded, and the first such one is named.
        script = """
            import json, sys
            from dreamer4_cli.app import main
            told = []
            for command in json.loads(sys.argv[1]):
                sys.argv = ["dreamer4", *command.split(), "--help"]
                try:
                    main()
                except SystemExit as end:
                    told.append([command, end.code, sorted(m for m in sys.modules if "." not in m)])
            print(json.dumps(told), file=sys.stderr)
        """
        commands = ["", *LEAVES]
        command_line = [sys.executable, "-c", textwrap.dedent(script), json.dumps(commands)]
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=300)
        # Not pydantic, which typer itself imports.
        heavy = {"jax", "jaxlib", "equinox", "numpy", "optax", "orbax", "gymnax", "matplotlib", "yaml"}
        told = [(command, code, sorted(heavy & set(loaded))) for command, code, loaded in json.loads(done.stderr)]
        assert told == [(command, 0, []) for command in commands]

    def test_help_answers_at_once(self):
        def seconds(*command: str) -> float:
            before = os.times()
            assert subprocess.run([sys.executable, *command], capture_output=True, timeout=300).returncode == 0
            after = os.times()
            return after.children_user - before.children_user + after.children_system - before.children_system

        smallest = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
        # Processor time, and the best of three: other work on the machine is not the command's. What the library for
        # command lines needs by itself tells how fast the machine is; importing JAX takes four times as long as that.
        bare, ours = (
            min(seconds(*command) for _ in range(3))
            for command in (("-c", smallest, "--help"), ("-m", "dreamer4_cli", "train", "--help"))
        )
        assert ours < 3 * bare


class TestProcess:
    """The same through a real process, where nothing catches what `main` lets through."""

    @pytest.mark.parametrize(
        "line", ["demo --set train.dynamics.step=3", "demo --preset catsh", "train nothing", "info x"]
    )
    def test_refusals(self, line):
        done = shell(*line.split())
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr
        assert "Traceback" not in done.stderr

    def test_a_closed_pipe_is_no_error_message(self):
        command = f"{sys.executable} -m dreamer4_cli config show | head -n 1"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
        assert (done.stdout, done.stderr) == ("# The demo: Catch from random data, minutes on two CPU cores.\n", "")

    def test_an_interrupt_ends_cleanly(self):
        script = """
            import signal, sys, time, types
            # A shell that started the tests in the background has told every child to ignore interrupts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            run = types.ModuleType("dreamer4_cli.run")
            def demo(*args, **kwargs):
                print("working", flush=True)
                time.sleep(600)
            run.demo = demo
            import dreamer4_cli
            dreamer4_cli.run = sys.modules["dreamer4_cli.run"] = run
            from dreamer4_cli.app import main
            sys.argv = ["dreamer4", "demo"]
            main()
        """
        command = [sys.executable, "-c", textwrap.dedent(script)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "working\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (130, "Interrupted.\n")


def test_a_command_needs_nothing_that_only_unix_has():
    code = (
        "import sys\n"
        "for name in ('resource', 'fcntl', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "import dreamer4_cli.run\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_the_home_folder_is_found_where_no_shell_looks(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert endings._at_home("--run=~/runs/a") == "--run=/somewhere/runs/a"
    assert endings._at_home("~/a") == "/somewhere/a"
    assert endings._at_home("a~b") == "a~b" and endings._at_home("--set=x=~y/..") == "--set=x=~y/.."


def test_a_device_that_is_not_there_is_told_in_one_message(tmp_path):
    for platform in ("cuda", "nonsense"):
        told = subprocess.run(
            [sys.executable, "-m", "dreamer4_cli", "collect", "--preset", "tiny", "--out", str(tmp_path / "data")],
            env={**os.environ, "JAX_PLATFORMS": platform},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert told.returncode == 2 and "Traceback" not in told.stderr and platform in told.stderr


def test_switches_that_would_change_a_run_are_put_aside(monkeypatch):
    monkeypatch.setenv("JAX_DEFAULT_PRNG_IMPL", "rbg")
    assert compile_cache.settle() == {"JAX_DEFAULT_PRNG_IMPL": "rbg"}
    assert "JAX_DEFAULT_PRNG_IMPL" not in os.environ and not compile_cache.settle()


def test_names_that_the_output_cannot_hold_are_escaped(tmp_path, monkeypatch):
    (tmp_path / "世界").mkdir()
    (tmp_path / "世界" / "config.yaml").write_text(to_yaml(load("tiny")))
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")  # as a C locale, or cp1252 of Windows, opens it
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["dreamer4", "info", str(tmp_path / "世界")])
    with pytest.raises(SystemExit) as end:
        main()
    out.flush()
    assert end.value.code == 0 and b"\\u4e16\\u754c" in out.buffer.getvalue()


def test_a_relative_data_set_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = options.resolve("tiny", None, ["data.path=mine"], folder=Path("run"))
    assert config.data.path == str(tmp_path / "mine")
    # A run of an earlier version goes on with what it was begun with.
    (tmp_path / "run").mkdir()
    old = load("tiny", overrides=["data.path=mine"])
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(old))
    assert options.resolve(None, None, [], folder=Path("run"))[0] == old


def test_nonsense_is_not_suggested_and_long_lists_are_cut():
    names = [f"name{n:02d}" for n in range(30)]
    assert nearest("nam07", names).startswith("Did you mean name07")
    assert nearest("timestamp", ["task", "reward"]) == "Known: reward, task."
    told = nearest("Mine", names)
    assert told.startswith("Known: name00, ") and told.endswith("name11 and 18 more.")


class TestOwnParts:
    LINE = ("train", "all", "--preset", "tiny", "--env", "Mine-v0", "--dry-run")

    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        text = "from dreamer4.envs import ENVIRONMENTS, GymnaxEnvironment\nENVIRONMENTS['Mine-v0'] = lambda: "
        (tmp_path / "my_parts.py").write_text(text + "GymnaxEnvironment('Catch-bsuite')\n")
        (tmp_path / "broken.py").write_text("import json\njson.loads('no')\n")
        monkeypatch.setattr(sys, "path", [*sys.path])
        yield
        sys.modules.pop("my_parts", None)
        ENVIRONMENTS.pop("Mine-v0", None)

    @pytest.mark.parametrize("line", [("--import", "my_parts", *LINE), (*LINE, "--import=my_parts")])
    def test_are_there_before_the_command_looks_for_them(self, line):
        assert "Mine-v0" in refused(*self.LINE)
        result = invoke(*line)
        assert result.exit_code == 0, result.output

    def test_are_remembered_and_asked_for_but_never_imported_from_a_file(self, tmp_path):
        told = invoke("config", "show", *self.LINE[2:-1], "--import", "my_parts").stdout
        (tmp_path / "run.yaml").write_text(told)
        assert load(file=tmp_path / "run.yaml").imports == ("my_parts",)
        sys.modules.pop("my_parts")
        line = ("train", "all", "--config", "run.yaml", "--dry-run")
        assert "add --import my_parts to the command" in refused(*line)
        assert "my_parts" not in sys.modules
        assert invoke(*line, "--import", "my_parts").exit_code == 0

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("no_such", "No module named 'no_such'"),
            ("broken", r"JSONDecodeError"),
            ("./x.py", "x.py"),
        ],
    )
    def test_that_cannot_be_imported_are_told(self, name, match):
        assert re.search(match, refused("--import", name, *self.LINE), re.DOTALL)
