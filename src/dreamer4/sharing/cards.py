"""The cards of agents and data sets: a head of metadata that the Hub reads, and text for people."""

from collections.abc import Mapping
from typing import Any

import yaml

from dreamer4.data import DatasetInfo
from dreamer4.evaluation.results import Results
from dreamer4.evaluation.statistics import Estimate


PREVIEW = "preview.parquet"
COLUMNS = {  # of the preview: how the Hub calls their types
    "image": {"dtype": "image"},
    "episode": {"dtype": "int32"},
    "frame": {"dtype": "int32"},
    "action": {"sequence": "int32"},
    "continuous": {"sequence": "float32"},
    "action_known": {"dtype": "bool"},
    "reward": {"dtype": "float32"},
}

_PAPER = "[Training Agents Inside of Scalable World Models](https://arxiv.org/abs/2509.24527)"
_TAGS = ["world-model", "reinforcement-learning", "dreamer4", "jax", "arxiv:2509.24527"]
_POLICIES = {
    "random": "random actions",
    "data": "behaviour data",
    "cloned": "cloned policy",
    "imagination": "imagination policy",
}


def agent_card(
    meta: Mapping[str, Any], results: Results | None, parameters: int, *, license: str, film: str | None
) -> str:
    """Returns the card of an agent.

    Args:
        meta: of its checkpoint.
        results: what was measured of it; None: nothing.
        parameters: how many numbers it consists of.
        license: of the weights, as the Hub names it.
        film: name of a film beside the card.
    """
    config, spec, provenance = meta["config"], meta["spec"], meta["provenance"]
    env = str(config["env"]["id"])
    rows = {} if results is None else _rows(results)
    head = {
        "license": license,
        "library_name": "dreamer4",
        "pipeline_tag": "reinforcement-learning",
        "tags": [*_TAGS, env],
        "model-index": [{"name": f"Dreamer 4 on {env}", "results": _measured(env, rows, results)}],
    }
    if not rows:
        del head["model-index"]
    stage = f", left at {_plain(meta['unfinished'])}" if "unfinished" in meta else ""
    kept = f", kept as {_plain(meta['kept_as'])}" if "kept_as" in meta else ""
    lines = [
        f"# Dreamer 4 agent for {_plain(env)}",
        "",
        f"Trained up to the phase *{_plain(meta['phase'])}*{stage}; {parameters:,} numbers, averaged weights of seed "
        f"{config['seed']}{kept}. Frames {spec['frame_shape']}, action classes {spec['num_classes']}, "
        f"{spec['continuous_dim']} continuous. Method: {_PAPER}.",
        "",
        "```python",
        "from dreamer4 import Dreamer",
        "",
        'dreamer = Dreamer.load("path/to/this/folder")  # or "hf://USER/NAME"',
        "```",
        "",
        "`dreamer4 evaluate FOLDER` plays it, `dreamer4 play FOLDER` lets you walk in its dream, `dreamer4 import "
        "FOLDER --run DIR` makes a run to go on training. The weights also load with `safetensors` alone.",
        "",
    ]
    if film is not None:
        picture = f"![Truth, dream and difference]({film})" if film.endswith(".gif") else f"`{film}`"
        lines += [f"A dream of a held-out episode under its actions, beside the truth: {picture}", ""]
    if rows and results is not None:
        over = "episodes" if results.seeds == 1 else f"{results.seeds} training seeds"
        lines += [f"| return (interval over {over}) | mean | 95 % interval | episodes |", "|---|---|---|---|"]
        lines += [
            f"| {_plain(name)} | {r.mean:.4g} | {r.low:.4g} to {r.high:.4g} | {r.episodes} |"
            for name, r in rows.items()
        ]
        lines += ["", f"Measured at commit {_plain(results.commit)} on {_plain(results.device)}.", ""]
    versions = ", ".join(f"{_plain(k)} {_plain(v)}" for k, v in provenance["trained_with"].items())
    told = [f"- {_plain(name)}: {_plain(value)}" for name, value in provenance.items() if name != "trained_with"]
    return _card(head, [*lines, f"- trained with: {versions}", *told, f"- data set: {_plain(meta['data'])}"])


def dataset_card(info: DatasetInfo, *, license: str, previewed: int) -> str:
    """Returns the card of a data set, whose `preview.parquet` holds its first `previewed` frames."""
    env = str(info.environment.get("id", "recordings"))
    head = {
        "license": license,
        "library_name": "dreamer4",
        "task_categories": ["reinforcement-learning"],
        "tags": [*_TAGS, env],
        "configs": [{"config_name": "preview", "data_files": PREVIEW}],
        "dataset_info": {
            "config_name": "preview",
            "features": [{"name": name} | kind for name, kind in COLUMNS.items()],
        },
    }
    facts = {
        "episodes": f"{info.num_episodes:,}, {len(info.held_out):,} of them held out",
        "frames": f"{info.num_frames:,} of {list(info.frame_shape)}",
        "actions": f"classes {list(info.num_classes)}, {info.continuous_dim} continuous",
        "return": f"{info.return_mean:.3f} on average, {info.return_min:g} to {info.return_max:g}",
        "behaviour": _plain(info.policy),
        "fingerprint (SHA-256)": info.fingerprint,
    }
    lines = [
        f"# Episodes of {_plain(env)}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {fact} |" for name, fact in facts.items()),
        "",
        "`episodes/` is a data set of dreamer4: `dreamer4 data check FOLDER/episodes` reads it, `--set data.path="
        f"FOLDER/episodes` trains on it. Actions and rewards are those that led to their frame. `{PREVIEW}` holds the "
        f"first {previewed:,} frames as a table, for viewers.",
    ]
    return _card(head, lines)


def _rows(results: Results) -> dict[str, Estimate]:
    """Returns the measured returns by the name of who played."""
    rows = {_POLICIES.get(name, name): row for name, row in results.returns.items()}
    return rows | {f"{_POLICIES.get(name, name)}, greedy": row for name, row in results.by_mode.items()}


def _measured(env: str, rows: Mapping[str, Estimate], results: Results | None) -> list[dict[str, Any]]:
    """Returns what was measured, as `model-index` lists it."""
    metrics = [
        {
            "type": "mean_reward",
            "name": name,
            "value": row.mean,
            "args": {"episodes": row.episodes, "interval 95 %": [row.low, row.high]},
            "verified": False,
        }
        for name, row in rows.items()
    ]
    world = None if results is None else results.world_model
    if world is not None and world.num_steps in world.psnr:
        passes = f"of dreamt frames, K = {world.num_steps}"
        metrics.append({"type": "psnr", "name": f"PSNR {passes} (dB)", "value": world.psnr[world.num_steps]})
        if world.exact is not None:
            metrics.append({"type": "exact_match", "name": f"share exactly right {passes}", "value": world.exact})
    task = {"type": "reinforcement-learning", "name": "reinforcement-learning"}
    return [{"task": task, "dataset": {"type": env, "name": env}, "metrics": metrics}]


def _card(head: Mapping[str, Any], lines: list[str]) -> str:
    return f"---\n{yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True)}---\n\n" + "\n".join([*lines, ""])


def _plain(value: Any) -> str:
    """Returns a value as text that Markdown shows as it is."""
    text = " ".join(str(value).split())[:200]
    return "".join(f"&#{ord(c)};" if c in "|`*_<>[]&\\#" else c for c in text)
