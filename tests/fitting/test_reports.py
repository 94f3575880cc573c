"""What is told while a fit runs: a bar that moves, lines that are JSON whatever happened, numbers that are right."""

import builtins
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vijax as vj
from vijax.fitting import bar, fit, jsonl
from vijax.types import Draws, Rule, Step

LINE = {
    "step": 5,
    "steps": 10,
    "first": 0,
    "bound": -1.5,
    "ess": 2.0,
    "khat": None,
    "drift": float("nan"),
}


def step(key, state):
    """Log-weights of a normal, four a step: the bound is their mean."""
    log_w = jax.random.normal(key, (4,))
    return state + 1, Step(log_w.mean(), Draws(None, log_w, jnp.zeros(4)))


RULE = Rule(lambda params: params, step, lambda state: jnp.zeros(()))  # which never moves


def told(key, steps, **options):
    lines = []
    fit(key, RULE, jnp.int32(0), steps=steps, reports=[lines.append], **options)
    return lines


def test_the_numbers_are_those_of_the_steps(key):
    lines = told(key, 1000, log_every=250, stop=None)
    assert [line["step"] for line in lines] == [250, 500, 750, 1000]
    log_w = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (4,)))(
        jnp.arange(1000)
    )
    for i, line in enumerate(lines):
        np.testing.assert_allclose(
            line["bound"], log_w[250 * i : 250 * (i + 1)].mean(), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            line["ess"], vj.diagnostics.ess(log_w[250 * (i + 1) - 1]), rtol=1e-5
        )
        assert line["steps_per_second"] > 0
    # The last draws of every eighth step, pooled: the ring has gone no further than its 256 rows.
    last = vj.diagnostics.khat(log_w[7:1000:8][jnp.arange(256) % 125].reshape(-1))
    np.testing.assert_allclose(lines[-1]["khat"], last, rtol=1e-3)
    assert [line["stopped"] for line in lines] == [None] * 3 + ["all 1000 steps were made"]


def test_lines_come_by_time_where_no_number_is_given(key):
    lines = told(key, 20_000)
    assert lines[-1]["stopped"]
    assert lines[-1]["drift"] >= 0


def test_a_file_of_lines_is_json_after_a_kill(key, tmp_path):
    path = tmp_path / "folder" / "fit.jsonl"
    with jsonl(path) as write:
        write(LINE)
    with path.open("a") as file:
        file.write('{"step": 6, "ste')  # killed
    with jsonl(path) as write:
        write(LINE | {"step": 7, "bound": float("inf")})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 7]
    assert lines[0]["drift"] is None
    assert lines[1]["bound"] is None
    # A line that only lacks its end is kept.
    path.write_text('{"step": 1}')
    with jsonl(path) as write:
        write(LINE)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 5]
    fit(key, RULE, jnp.int32(0), steps=40, log_every=20, reports=[jsonl(path)])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 5, 20, 40]


def test_the_bar_shows_bound_sample_size_and_khat(key, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    fit(key, RULE, jnp.int32(0), steps=600, log_every=200, reports=[bar(every=0.0)])
    shown = screen.getvalue().split("\r")[-1]
    assert "512/600" in shown  # what is watched does not move, and the bound does not rise
    for word in ("step/s", "bound ", "ess ", "khat ", "drift "):
        assert word in shown


def test_a_bar_serves_one_fit(key, unchecked):
    again = bar()
    run = lambda reports, **more: fit(key, RULE, jnp.int32(0), steps=8, reports=reports, **more)
    run([again])
    with pytest.raises(ValueError, match=r"make another, fitting.bar\(\)"):
        run([again])
    for alone in (bar(), "fit.jsonl"):
        with pytest.raises(TypeError, match="reports must be a sequence"):
            run(alone)
    with pytest.raises(TypeError, match="checkpoints must be fitting.Checkpoints"):
        run((), checkpoints="folder")


def test_without_tqdm_the_bar_says_so_and_a_fit_goes_on(key, monkeypatch):
    real = builtins.__import__

    def missing(name, *args):
        if name == "tqdm":
            raise ImportError("No module named 'tqdm'")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="tqdm"), bar():
        pass
    monkeypatch.setattr("vijax.fitting._reports.find_spec", lambda name: None)
    assert fit(key, RULE, jnp.int32(0), steps=8, stop=None).steps == 8
