import os
import subprocess
import sys

import pytest

import tfprune


def python(code, environment=None, **arguments):
    inherited = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**inherited, **(environment or {})},
        timeout=120, check=False, **arguments,
    )  # fmt: skip


def test_importing_the_package_imports_nothing_heavy():
    done = python(
        "import sys, tfprune; print(tfprune.__version__, *dir(tfprune))\n"
        "print(*{'tensorflow', 'keras', 'numpy', 'scipy'} & set(sys.modules))"
    )
    first, second = done.stdout.splitlines()
    assert {"plan_channels", "verify", "profile", "export", "load_plan", "ChannelPlan"} <= set(first.split())
    assert second == ""


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="plan_chanels"):
        tfprune.plan_chanels  # noqa: B018


def test_every_public_name_can_be_had():
    for name in tfprune.__all__:
        assert getattr(tfprune, name) is not None
    assert set(dir(tfprune)) == {*tfprune.__all__, "rules"}


def test_tensorflow_is_imported_quietly_on_its_backend():
    done = python(
        "from tfprune.support.startup import import_tensorflow; import_tensorflow()\n"
        "import os, sys, keras; print(keras.backend.backend())\n"
        "os.write(2, b'later'); import_tensorflow(); print('again', file=sys.stderr)"
    )
    assert done.stdout.split() == ["tensorflow"]
    assert done.stderr == "lateragain\n"  # nothing of TensorFlow's; standard error works afterwards


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_another_backend_is_refused_in_one_line_before_anything_is_imported(backend):
    done = python(
        "import sys; from tfprune.experiments.run import main; status = main(['--smoke', '--dry_run'])\n"
        "print(status, *{'keras', 'tensorflow'} & set(sys.modules))",
        {"KERAS_BACKEND": backend},
    )
    assert done.stdout.split() == ["2"]
    assert done.stderr.count("\n") == 1
    assert f"KERAS_BACKEND='{backend}'" in done.stderr


def test_if_the_import_fails_what_was_held_back_is_shown(tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os; os.write(2, b'the reason\\n'); raise ImportError('no keras')", encoding="utf-8"
    )
    done = python(
        "from tfprune.support.startup import import_tensorflow; import_tensorflow()", {"PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "the reason\n" in done.stderr
    assert "ImportError: no keras" in done.stderr


def test_a_log_level_of_the_users_is_left_alone():
    done = python(
        "import os; from tfprune.support.startup import import_tensorflow; import_tensorflow()\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])",
        {"TF_CPP_MIN_LOG_LEVEL": "0"},
    )
    assert done.stdout.split() == ["0"]
