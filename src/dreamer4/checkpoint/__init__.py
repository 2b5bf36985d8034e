"""Checkpoints: the arrays of any PyTree on disk, such that damage cannot pass for weights.

A checkpoint is a folder: arrays, and a manifest, written last, that states shape, type and SHA-256 of every leaf, size
and SHA-256 of every file, and its own SHA-256. The folder is built under a temporary name and renamed when it is
complete, so a process that dies while saving leaves nothing that looks like a checkpoint.

There are two kinds. Orbax writes what a run saves and goes on from (`arrays/`, `manifest.json`); one safetensors file
holds what is handed to others (`model.safetensors`, `dreamer4.json`), who may read it with any program and any version.
It also holds what a run of several processes saves, for one process writes it without the others.
Either library alone would load a flipped bit without a word; the manifest refuses it.

A leaf is known by its dotted path in the tree (`model.dynamics.transformer.groups.space.attention.query.weight`), not
by its place in a list, so a message can name it and a part can be read alone (`load(path, like, at="model")`). Nothing
here knows a model: a state stacked over training seeds is a tree of arrays like any other.

A checkpoint may come from anyone. Nothing in it can run code; sizes, names and types are checked before memory is
asked for, and a manifest names only files inside its own folder.
"""

from dreamer4.checkpoint.folder import check as check
from dreamer4.checkpoint.folder import is_checkpoint as is_checkpoint
from dreamer4.checkpoint.folder import load as load
from dreamer4.checkpoint.folder import read_leaves as read_leaves
from dreamer4.checkpoint.folder import read_manifest as read_manifest
from dreamer4.checkpoint.folder import read_meta as read_meta
from dreamer4.checkpoint.folder import save as save
from dreamer4.checkpoint.folder import verify as verify
from dreamer4.checkpoint.leaves import place as place
from dreamer4.checkpoint.leaves import whole as whole
from dreamer4.checkpoint.manifest import MANIFEST as MANIFEST
from dreamer4.checkpoint.manifest import SCHEMA as SCHEMA
from dreamer4.checkpoint.manifest import Manifest as Manifest
from dreamer4.checkpoint.steps import Checkpoints as Checkpoints
