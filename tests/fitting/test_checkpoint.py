"""Checkpoints: the same bits after a resume, after a kill at any moment, after a flipped byte; never a silent restart."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.fitting import crash
from vijax.fitting import Checkpoints, Restored, _checkpoint, restore, save

ROOT = Path(__file__).parents[2]


def tree(value=0.0):
    return {
        "params": {"loc": jnp.arange(300.0) + value, "empty": jnp.zeros((0, 3))},
        "optimizer": optax.adam(0.1).init(jnp.ones(3)),
        "key": jax.random.fold_in(jax.random.key(7), int(value)),
        "half": jnp.ones(3, jnp.bfloat16) * value,
        "flags": (jnp.bool_(1), jnp.int32(value), jnp.uint8(255)),
    }


def same(a, b):
    plain = lambda l: jax.random.key_data(l) if jnp.issubdtype(l.dtype, jax.dtypes.prng_key) else l
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(plain(x)), np.asarray(plain(y)))


@pytest.fixture
def saved(tmp_path):
    """Three checkpoints, of steps 10, 20 and 30."""
    for step in (10, 20, 30):
        save(tmp_path, step, tree(step))
    return tmp_path


def test_what_is_saved_comes_back(saved, tmp_path):
    found = restore(saved, tree())
    assert isinstance(found, Restored)
    assert found.step == 30
    assert found.skipped == ()
    same(found.tree, tree(30))
    same({"k": jax.random.normal(found.tree["key"])}, {"k": jax.random.normal(tree(30)["key"])})
    save(saved, 40, tree(40), keep=2)
    assert sorted(p.name for p in saved.iterdir()) == ["30", "40"]
    nothing = restore(tmp_path / "none", tree(5))
    assert nothing.step is None
    same(nothing.tree, tree(5))


def test_wide_numbers_and_steps_that_are_arrays(tmp_path):
    """NumPy's 64 bits stay 64 without x64; a step that no restore would find is refused, and so is a file."""
    wide = {"rows": np.array([2**40]), "third": np.float64(1 / 3), "count": 5}
    save(tmp_path, jnp.int32(7), wide)
    found = restore(tmp_path, wide)
    assert found.step == 7
    assert found.tree == wide
    assert found.tree["rows"].dtype == np.int64
    with pytest.raises(ValueError, match="step must be at least 0"):
        save(tmp_path, -1, wide)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        restore(tmp_path / "file", wide)


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def test_a_flipped_byte_anywhere_costs_one_step(saved, tmp_path):
    """Data and metadata of orbax, and our own digests: first, middle and last byte of every file."""
    files = [
        f.relative_to(saved / "30")
        for f in (saved / "30").rglob("*")
        if f.is_file() and f.stat().st_size
    ]
    assert len(files) >= 5
    assert Path("manifest.json") in files
    sound = 0
    for file in files:
        for place in (0, 0.31, 0.5, 0.77, 1):
            shutil.copytree(saved / "30", tmp_path / "copy")
            flip(tmp_path / "copy" / file, place)
            try:
                _checkpoint._verified(tmp_path / "copy", 30)
                sound += 1
            except _checkpoint.BROKEN:
                pass
            shutil.rmtree(tmp_path / "copy")
    assert sound == 0
    # The control: without a flip it verifies.
    _checkpoint._verified(saved / "30", 30)
    flip(max((saved / "30" / "tree").rglob("*"), key=lambda f: f.stat().st_size * f.is_file()), 0.5)
    with pytest.warns(
        UserWarning, match="checkpoint 30 in .* does not verify and is skipped: .* was altered"
    ):
        found = restore(saved, tree())
    assert found.step == 20
    assert [step for step, _ in found.skipped] == [30]
    same(found.tree, tree(20))


def damaged(folder, how):
    if how == "emptied":
        shutil.rmtree(folder)
        folder.mkdir()
    elif how == "truncated":
        file = max(
            folder.rglob("*"),
            key=lambda f: f.stat().st_size * f.is_file() * (f.name != "manifest.json"),
        )
        os.truncate(file, file.stat().st_size // 2)
    elif how == "metadata removed":
        (folder / "tree" / "_METADATA").unlink()
    elif how == "manifest truncated":
        os.truncate(folder / "manifest.json", 100)
    elif how == "another step's":
        shutil.rmtree(folder)
        shutil.copytree(folder.parent / "10", folder)
    elif how == "a file too many":
        (folder / "tree" / "more").write_text("x")


@pytest.mark.parametrize(
    "how",
    [
        "emptied",
        "truncated",
        "metadata removed",
        "manifest truncated",
        "another step's",
        "a file too many",
    ],
)
def test_damage_costs_one_step(saved, how):
    damaged(saved / "30", how)
    with pytest.warns(UserWarning, match="checkpoint 30 .* is skipped"):
        found = restore(saved, tree())
    assert found.step == 20
    same(found.tree, tree(20))
    # What is saved next stays, whatever lies there.
    save(saved, 30, tree(31), keep=1)
    same(restore(saved, tree()).tree, tree(31))


def test_where_none_verifies_nothing_begins_again(saved):
    for step in (10, 20, 30):
        damaged(saved / str(step), "truncated")
    with (
        pytest.warns(UserWarning, match="is skipped"),
        pytest.raises(RuntimeError, match="no checkpoint in .* verifies"),
    ):
        restore(saved, tree())
    assert sorted(p.name for p in saved.iterdir()) == ["10", "20", "30"]


def test_a_sound_checkpoint_of_another_fit_is_refused(saved):
    other = tree() | {"half": jnp.ones(4, jnp.bfloat16)}
    with pytest.raises(
        ValueError, match=r"its leaf 'half' is bfloat16\[3\], where 'half' is bfloat16\[4\] now"
    ):
        restore(saved, other)
    with pytest.raises(ValueError, match="holds another fit, of 10 arrays, not 11"):
        restore(saved, tree() | {"more": jnp.ones(3)})
    with pytest.raises(ValueError, match="keep must be at least 1"):
        save(saved, 40, tree(), keep=0)


class Killed(BaseException):
    """As if the process ended here."""


def test_dying_between_any_two_operations_of_a_save(tmp_path, monkeypatch):
    """Every call that touches the disk is the last in turn; then a checkpoint is there, whole, and the next save works."""
    save(tmp_path / "start", 10, tree(10))
    originals = {
        (Path, "rename"): Path.rename,
        (Path, "mkdir"): Path.mkdir,
        (Path, "write_text"): Path.write_text,
        (shutil, "rmtree"): shutil.rmtree,
        (_checkpoint, "_digests"): _checkpoint._digests,
    }
    count, fatal = 0, None

    def dying(original, after):
        def call(*args, **kwargs):
            nonlocal count
            if fatal is not None:
                count += 1
                if count == fatal:
                    if after:
                        original(*args, **kwargs)
                    raise Killed
            return original(*args, **kwargs)

        return call

    survived = []
    for after in (False, True):
        for death in range(1, 40):
            folder = tmp_path / f"{death}{after}"
            shutil.copytree(tmp_path / "start", folder)
            (folder / "20").mkdir()  # a damaged step that is in the way
            (folder / "20" / "manifest.json").write_text("{")
            with monkeypatch.context() as patch:
                for (place, name), original in originals.items():
                    patch.setattr(place, name, dying(original, after))
                count, fatal = 0, death
                try:
                    save(folder, 20, tree(20), keep=1)
                    died = False
                except Killed:
                    died = True
                fatal = None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = restore(folder, tree())
            assert found.step in (10, 20)
            same(found.tree, tree(found.step))
            survived.append(found.step)
            save(folder, 30, tree(30), keep=1)
            assert sorted(p.name for p in folder.iterdir()) == ["30"]
            if not died:
                break
    assert {10, 20} == set(survived)


# --- fits


def test_twenty_and_twenty_are_forty(tmp_path):
    """Also across chunk sizes; the memory, with its cursor and baseline, and the averages included."""
    whole = crash.run(None, steps=40)
    assert whole.state.memory["cursor"] == 40
    first = crash.run(tmp_path, steps=20, log_every=7)
    assert first.steps == 20
    second = crash.run(tmp_path, steps=40, log_every=3)
    assert crash.digest(second) == crash.digest(whole)
    again = crash.run(tmp_path, steps=40)
    assert again.stopped == "all 40 steps were made before"
    assert crash.digest(again) == crash.digest(whole)
    # The control: the digest can tell one step more.
    assert crash.digest(crash.run(None, steps=41)) != crash.digest(whole)


def test_a_resume_over_a_damaged_step_ends_in_the_same_bits(tmp_path):
    whole = crash.run(None, steps=200)
    crash.run(tmp_path, steps=120)
    damaged(tmp_path / "steps" / "120", "truncated")
    with pytest.warns(UserWarning, match="checkpoint 120 in .* is skipped"):
        assert crash.digest(crash.run(tmp_path, steps=200)) == crash.digest(whole)
    with pytest.raises(ValueError, match="every must be at least 1"):
        crash.run(None, checkpoints=Checkpoints(tmp_path, every=0))


def test_another_key_is_another_fit(tmp_path, monkeypatch):
    crash.run(tmp_path, steps=40)
    real = jax.random.key
    monkeypatch.setattr(jax.random, "key", lambda seed: real(4))
    with pytest.raises(ValueError, match="holds the fit of another key"):
        crash.run(tmp_path, steps=40)


def started(folder):
    command = [sys.executable, "-m", "tests.fitting.crash", str(folder)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def newest(folder):
    return max([0, *(int(p.name) for p in folder.glob("steps/*") if p.name.isdigit())])


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path, request):
    """Ten kills, every other one in the middle of a save; each loses at most what came after the last save."""
    chance = random.Random(request.config.getoption("--seed"))
    begun, kills = 0, 0
    while kills < 10:
        if (
            kills and newest(tmp_path) >= crash.STEPS - 3 * crash.EVERY
        ):  # far enough: begin another fit
            shutil.rmtree(tmp_path / "steps")
            begun = 0
        child = started(tmp_path)
        while child.poll() is None and newest(tmp_path) <= begun:
            time.sleep(0.001)
        if kills % 2:
            while child.poll() is None and not (tmp_path / "steps" / ".saving").exists():
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 0.05))
        else:
            time.sleep(chance.uniform(0, 0.2))
        before = newest(tmp_path)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode in (-signal.SIGKILL, 0)
        kills += child.returncode != 0
        begun = newest(tmp_path)
        assert begun >= before > 0
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
        steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
        assert len(steps) >= len(lines) - 1
        assert begun - crash.EVERY <= max(steps[-1], begun)
    child = started(tmp_path)
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert out.strip() == crash.digest(crash.run(None))
