"""Checkpoints through orbax, every byte under a digest; the newest that verifies is restored."""

import hashlib
import json
import operator
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vijax.checks import named_leaves
from vijax.types import PyTree

MANIFEST = "manifest.json"
SAVING = ".saving"  # a step that is being written; it gets its name when it is whole
REMOVING = ".removing"
# What reading a damaged manifest may raise.
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)


class Checkpoints(NamedTuple):
    """Where and how often a fit is saved.

    Fields:
        path: a folder for this fit alone; one that holds checkpoints is resumed from.
        every: how many steps from one to the next.
        keep: how many of the newest stay.
    """

    path: str | os.PathLike[str]
    every: int
    keep: int = 3


class Restored(NamedTuple):
    """What `restore` returns.

    Fields:
        step: of the checkpoint, None where the folder holds none.
        tree: what was saved, on the devices of `like` (NumPy's arrays and Python's numbers come
            back as NumPy's); `like` itself where the folder holds none.
        skipped: steps that were newer and did not verify, each with the reason.
    """

    step: int | None
    tree: PyTree
    skipped: tuple[tuple[int, str], ...] = ()


def save(path: str | os.PathLike[str], step: SupportsIndex, tree: PyTree, *, keep: int = 3) -> None:
    """Save a pytree as one checkpoint: whole under its name, or not there at all.

        path/step/{tree, manifest.json},     manifest: sha256 of every file of tree

    It is renamed when all is written: a process killed at any moment leaves earlier checkpoints as they
    were.

    Args:
        path: the folder of one fit.
        step: of the checkpoint, a whole number from 0 on; one of that step is replaced.
        tree: a pytree of arrays, addressable from this process. Typed keys are kept with their
            implementation.
        keep: how many of the newest up to this step stay, at least 1.

    Returns:
        None, when all is on disk.

    Raises:
        TypeError: for a step that is not a whole number.
        ValueError: for keep < 1, or step < 0.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save(folder, 3, {"w": jnp.ones(2)})
        >>> sorted(entry.name for entry in Path(folder).iterdir())
        ['3']

    Reference: none.
    """
    step = _step_number(step)
    if keep < 1:
        raise ValueError(
            f"keep must be at least 1, got {keep}: the checkpoint would delete itself."
        )
    import orbax.checkpoint as ocp

    folder = Path(path).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    _finish(folder)
    saving = folder / SAVING
    # Left by a process that was killed.
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir()
    arrays = {f"{i:05d}": _plain(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    # Zero-size arrays orbax cannot write, and an empty tree neither: the step is always there.
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(
            saving / "tree",
            {name: a for name, a in arrays.items() if a.size} | {"step": np.asarray(step)},
        )
    # The manifest is written last, so a folder without one was not finished.
    manifest = {"step": step, "leaves": _description(tree), "files": _digests(saving)}
    (saving / MANIFEST).write_text(json.dumps({"sha256": _digest(manifest), **manifest}, indent=1))
    # A step that did not verify, from a fit that had come further.
    if (folder / str(step)).exists():
        _remove(folder, step)
    saving.rename(folder / str(step))
    for old in [s for s in _steps(folder) if s <= step][:-keep]:
        _remove(folder, old)


def restore(path: str | os.PathLike[str], like: PyTree) -> Restored:
    """Restore the newest checkpoint whose every byte is as it was saved.

        sha256(file) = manifest(file) for every file, newest step first

    A flipped byte, a file cut short or an emptied folder costs that step and no other, with a warning.
    Nothing is deleted.

    Args:
        path: the folder of one fit.
        like: a pytree of the structure, shapes and dtypes that were saved, on the devices wanted.

    Returns:
        Restored(step, tree, skipped); step is None where the folder holds no checkpoint at all.

    Raises:
        RuntimeError: where there are checkpoints and none verifies: a fit never starts again in
            silence.
        ValueError: for a checkpoint that is sound and of another structure, naming the leaf.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save(folder, 3, {"w": jnp.ones(2)})
        >>> result = restore(folder, like={"w": jnp.zeros(2)})
        >>> result.step, result.tree["w"].tolist()
        (3, [1.0, 1.0])

    Reference: none.
    """
    folder = Path(path).absolute()
    _finish(folder)
    skipped: list[tuple[int, str]] = []
    for step in reversed(_steps(folder)):
        try:
            manifest = _verified(folder / str(step), step)
        except BROKEN as why:
            skipped.append((step, f"{type(why).__name__}: {why}"))
            warnings.warn(
                f"checkpoint {step} in {folder} does not verify and is skipped: {why}", stacklevel=2
            )
            continue
        _fits(manifest["leaves"], _description(like), folder / str(step))
        return Restored(step, _read(folder / str(step) / "tree", like), tuple(skipped))
    if skipped:
        reasons = "; ".join(f"{step}: {why}" for step, why in skipped)
        raise RuntimeError(
            f"no checkpoint in {folder} verifies ({reasons}). To begin anew, move that folder "
            "away or name another."
        )
    return Restored(None, like)


def _step_number(step: SupportsIndex) -> int:
    """Return a step as Python's int; refuse one that no name could be made of."""
    try:
        number = operator.index(step)
    except TypeError as why:
        raise TypeError(
            f"step must be a whole number, the name of its checkpoint; got {step!r}."
        ) from why
    if number < 0:
        raise ValueError(f"step must be at least 0, got {number}: it would never be found again.")
    return number


def _steps(folder: Path) -> list[int]:
    """Return the steps that have a folder, ascending; hidden ones are no checkpoints."""
    # An error where the folder is a file.
    names = [entry.name for entry in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if re.fullmatch(r"\d+", name))


def _remove(folder: Path, step: int) -> None:
    shutil.rmtree(folder / REMOVING, ignore_errors=True)
    # At once, so that no half of it is ever taken for a checkpoint.
    (folder / str(step)).rename(folder / REMOVING)
    shutil.rmtree(folder / REMOVING)


def _finish(folder: Path) -> None:
    """Give a checkpoint its name that is whole: its writer was killed while it made room."""
    try:
        step = int(json.loads((folder / SAVING / MANIFEST).read_bytes())["step"])
        _verified(folder / SAVING, step)
        (folder / SAVING).rename(folder / str(step))
    except BROKEN:
        return


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f != folder / MANIFEST)
    digests = {}
    for file in files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        digests[file.relative_to(folder).as_posix()] = digest
    return digests


def _verified(folder: Path, step: int) -> dict[str, Any]:
    """Return the manifest of a checkpoint; an error where any byte is not as it was."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if manifest.pop("sha256") != _digest(manifest):
        raise ValueError(f"{MANIFEST} was altered")
    if manifest["step"] != step:
        raise ValueError(f"it is the checkpoint of step {manifest['step']}")
    # Files that are missing, altered, or too many.
    stored = _digests(folder)
    for name in sorted(set(stored) | set(manifest["files"])):
        if stored.get(name) != manifest["files"].get(name):
            was, now = name in manifest["files"], name in stored
            raise ValueError(
                f"{name} "
                f"{'was altered' if was and now else 'is missing' if was else 'does not belong'}"
            )
    return dict(manifest)


def _is_key(leaf: ArrayLike) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)


def _plain(leaf: ArrayLike) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _description(tree: PyTree) -> list[list[Any]]:
    # NumPy's own arrays keep their 64 bits, whatever JAX would make of them.
    described = []
    for name, leaf in named_leaves(tree):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        described.append([name, str(dtype), list(jnp.shape(leaf))])
    return described


def _fits(saved: list[list[Any]], wanted: list[list[Any]], folder: Path) -> None:
    if len(saved) != len(wanted):
        raise ValueError(
            f"{folder} holds another fit, of {len(saved)} arrays, not {len(wanted)}. Name another "
            "folder."
        )
    for there, here in zip(saved, wanted, strict=True):
        if there != here:
            raise ValueError(
                f"{folder} holds another fit: its leaf '{there[0]}' is {there[1]}{there[2]}, where "
                f"'{here[0]}' is {here[1]}{here[2]} now. Name another folder."
            )


def _read(folder: Path, like: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    leaves, structure = jax.tree.flatten(like)
    names = [f"{i:05d}" for i in range(len(leaves))]
    plain = {name: _plain(leaf) for name, leaf in zip(names, leaves, strict=True)}
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.restore(
            folder, {n: a for n, a in plain.items() if a.size} | {"step": np.asarray(0)}
        )

    # On the device and in the kind that `like` has: NumPy's arrays stay NumPy's.
    def place(name: str, leaf: PyTree) -> PyTree:
        array = stored[name] if plain[name].size else plain[name]
        if _is_key(leaf):
            array = jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
        return (
            jax.device_put(array, leaf.sharding)
            if isinstance(leaf, jax.Array)
            else np.asarray(array)
        )

    return jax.tree.unflatten(
        structure, [place(n, leaf) for n, leaf in zip(names, leaves, strict=True)]
    )
