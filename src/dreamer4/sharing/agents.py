"""Weights for others: one agent of a run as a folder that any machine and any version reads, and back into a run.

    my_agent/
        model.safetensors    the weights, each under its dotted path in `Dreamer`
        dreamer4.json        configuration, data specification, provenance, and the SHA-256 of every leaf and file
        config.json          the configuration again, where the Hub looks for one
        README.md            a model card, for people and, its head, for the Hub; it may be edited
        replay.mp4 or .gif   if given, a film
        starts/              if asked for, a data set of episodes it was not trained on, to dream on from

`Dreamer.load`, `dreamer4 evaluate` and `dreamer4 info` take the folder as they take a checkpoint. What leaves the house
is one training seed, without optimiser and without the paths of the machine it was trained on.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp

from dreamer4 import checkpoint
from dreamer4.config import Config, override
from dreamer4.data import DatasetInfo, Episode, read_episodes, read_info, write_dataset
from dreamer4.dreamer import PHASES, find_checkpoint, read_description, spec_to_json, weights_of
from dreamer4.errors import InputError
from dreamer4.run.facts import run_results
from dreamer4.run.folder import RunFolder, run_of, steps_done
from dreamer4.sharing.cards import agent_card
from dreamer4.sharing.datasets import policy_name
from dreamer4.training.trained import load_trained


STARTS = "starts"
Precision = Literal["float32", "bfloat16", "float16"]


def export_agent(
    path: Path,
    out: Path,
    *,
    member: int = 0,
    starts: int = 0,
    license: str = "mit",
    dtype: Precision | None = None,
    replay: Callable[[], Path | None] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Writes the averaged weights of a checkpoint into a new folder for others, bit by bit unless `dtype` rounds them.

    Of an agent phase that was left before its end, the policy as cloned so far is the prior too.

    Args:
        path: a run, a checkpoint, or an exported folder.
        out: the folder to create.
        member: which of several training seeds.
        starts: held-out episodes of the run to add.
        license: of the weights, as the Hub names it.
        dtype: in which the weights are kept; None: as they are, which is float32. In half precision the folder has half
            the size; they are rounded once, and whoever loads them has them in float32.
        replay: makes a film to add, `.mp4` or `.gif`, if it can; called when nothing else is left to refuse.
        provenance: what else to tell about the origin, JSON values by name, such as the commit.

    Raises:
        InputError: if the checkpoint is missing or damaged, has no such member or a weight beyond the range of `dtype`,
            or lies in no run with so many held-out episodes; or `out` exists or cannot be written.
    """
    step = find_checkpoint(path)
    held_out = _held_out(step, starts) if starts else None
    (config, spec), source = read_description(step), checkpoint.read_manifest(step)
    if not 0 <= member < config.seeds:
        raise InputError(f"export: got member {member}, but {step} holds training seeds 0 to {config.seeds - 1}.")
    at = weights_of(step)
    saved = checkpoint.read_leaves(step, at=at)
    prefix = f"{at}." if at else ""
    # By name, not through a template, so that parts of a user's own are exported as well.
    weights = checkpoint.load(step, {name.removeprefix(prefix): leaf for name, leaf in saved.items()}, at=at)
    if config.seeds > 1:
        weights = {name: leaf[member] for name, leaf in weights.items()}
    phase, left = source.meta.get("phase"), _unfinished(step, config, source.meta)
    if left and phase == "agent":  # whose end would have made the cloned policy the prior, where readers look for it
        policy = {name: leaf for name, leaf in weights.items() if name.startswith("policy.")}
        weights |= {name.replace("policy", "prior", 1): leaf for name, leaf in policy.items()}
    if dtype is not None:
        weights = {name: _rounded(name, leaf, dtype) for name, leaf in weights.items()}
    kept = sorted({str(leaf.dtype) for leaf in weights.values() if jnp.issubdtype(leaf.dtype, jnp.floating)})
    meta = {
        "config": _private(config, member).model_dump(mode="json"),
        "spec": spec_to_json(spec),
        "phase": phase,
        "data": source.meta.get("data"),
        **({"unfinished": left} if left else {}),
        **({} if kept == ["float32"] else {"kept_as": ", ".join(kept)}),
        "provenance": {"trained_with": source.libraries, **(provenance or {})},
    }
    run = run_of(step) if phase == PHASES[-1] else None
    results = None if run is None else run_results(run)
    if os.path.lexists(out):
        raise InputError(f"export: {out} exists, and is never overwritten. Choose another folder, or remove it.")
    filmed = None if replay is None else replay()
    checkpoint.save(out, weights, meta=meta, kind="safetensors")
    parameters = sum(leaf.size for leaf in weights.values())
    film = None if filmed is None else f"replay{filmed.suffix}"
    if filmed is not None and film is not None:
        shutil.copyfile(filmed, out / film)
    card = agent_card(meta, results, parameters, license=license, film=film)
    (out / "README.md").write_text(card, encoding="utf-8")
    told = {"model_type": "dreamer4", "config": meta["config"], "spec": meta["spec"]}
    (out / "config.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if held_out is not None:
        info, episodes = held_out
        write_dataset(
            out / STARTS,
            episodes,
            spec=info.spec,
            environment=info.environment,
            policy=policy_name(info.policy),
            seed=info.seed,
            held_out=0.0,
        )


def _rounded(name: str, leaf: Any, dtype: str) -> Any:
    """Returns a weight in the type in which it is kept; whole numbers and flags stay as they are."""
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    if bool(jnp.any(jnp.abs(leaf) > jnp.finfo(dtype).max)):
        raise InputError(f"export: {name} has a weight beyond the range of {dtype}. Use --dtype bfloat16 or float32.")
    return leaf.astype(dtype)


def _held_out(step: Path, count: int) -> tuple[DatasetInfo, list[Episode]]:
    """Returns the first held-out episodes of the data set that a checkpoint was trained on."""
    (config, _), meta = read_description(step), checkpoint.read_meta(step)
    if config.data.path is not None:
        path = Path(config.data.path)
    elif (run := run_of(step)) is not None:
        path = run.data
    else:
        raise InputError(f"export: {step} lies in no run that has held-out episodes to add. Leave --starts out.")
    info = read_info(path)
    if info.fingerprint != meta.get("data"):
        raise InputError(f"export: {path} is not the data set that {step} was trained on. Leave --starts out.")
    episodes = read_episodes(path, "held_out")
    if len(episodes) < count:
        raise InputError(f"export: got --starts {count}, but {path} holds {len(episodes)} episodes out.")
    return info, episodes[:count]


def import_agent(path: Path, folder: Path, *, phase: str | None = None, overrides: Sequence[str] = ()) -> RunFolder:
    """Makes a new run out of someone's weights, from which training goes on.

    Args:
        path: an exported folder, or a checkpoint or run of one training seed.
        folder: the run folder to create.
        phase: the phase that counts as done, so that the next one can be trained; default, the one exported. What later
            ones trained is drawn anew by the configuration's seed and may differ in size: `tokenizer` keeps how frames
            are seen, `agent` also the world model, its heads and the cloned policy. Only the dynamics that `dynamics`
            keeps are, past the agent phase, those which it finetuned: weights tell nothing of what they were before.
        overrides: assignments `a.b=c` laid over the exported configuration, such as the steps of later phases.

    Raises:
        InputError: if the weights are missing or damaged, do not fit the configuration, are of more than one training
            seed, or of the middle of the phase that would count as done; or the folder is not free.
    """
    step = find_checkpoint(path)
    (config, spec), source = read_description(step), checkpoint.read_manifest(step)
    done = source.meta.get("phase")
    if done not in PHASES:
        raise InputError(f"import: {step} tells no phase that it comes from, expected one of {', '.join(PHASES)}.")
    phase = done if phase is None else phase
    if phase not in PHASES[: PHASES.index(done) + 1]:
        known = ", ".join(PHASES[: PHASES.index(done) + 1])
        raise InputError(
            f"import: got phase {phase}, but these weights were trained up to {done}. Choose from: {known}."
        )
    if config.seeds > 1:
        raise InputError(f"import: {step} holds {config.seeds} training seeds. Export one of them with --member first.")
    if phase == done and (left := _unfinished(step, config, source.meta)):
        before = PHASES[: PHASES.index(done)]
        instead = f", or train it anew from the phase before with --phase {before[-1]}" if before else ""
        raise InputError(
            f"import: {step} was left at {left} of the {done} phase, so that phase does not count as done. "
            f"Finish it in its own run (dreamer4 train {done} --run RUN --resume) and take that{instead}."
        )
    config = override(config, overrides)
    if config.seeds > 1:
        raise InputError(
            f"import: got seeds={config.seeds}, but {step} holds one training seed. Leave seeds out; for more of them, "
            "import once for each, into a run of its own with --set seed=N."
        )
    dreamer = load_trained(step, phase, config, spec)
    if (done, phase) == ("imagination", "agent"):  # imagination starts from the cloned policy
        dreamer = eqx.tree_at(lambda d: d.policy, dreamer, dreamer.prior)
    known = {name: value for name, value in source.meta.items() if name != "unfinished"}
    meta = {**known, "config": config.model_dump(mode="json"), "spec": spec_to_json(spec), "phase": phase}
    run = RunFolder(folder)
    run.open(config)
    run.checkpoints(phase).save(getattr(config.train, phase).steps, {"ema": dreamer}, meta)
    return run


def _unfinished(step: Path, config: Config, meta: Mapping[str, Any]) -> str:
    """Returns how far the phase of a checkpoint or an exported folder came; nothing if to its end, or if unknown."""
    if told := meta.get("unfinished"):
        return str(told)
    if (phase := meta.get("phase")) not in PHASES or (done := steps_done(step)) is None:
        return ""
    wanted = getattr(config.train, phase).steps
    return f"step {done} of {wanted}" if done < wanted else ""


def _private(config: Config, member: int) -> Config:
    """Returns the configuration of one training seed, without the folders of this machine."""
    data = config.data
    cleaned: dict[str, Any] = {"path": None if data.path is None else Path(data.path).name}
    cleaned["policy"] = policy_name(data.policy)
    cleaned["mixture"] = tuple(part.model_copy(update={"policy": policy_name(part.policy)}) for part in data.mixture)
    data = data.model_copy(update=cleaned)
    return config.model_copy(update={"seed": config.seed + member, "seeds": 1, "data": data})
