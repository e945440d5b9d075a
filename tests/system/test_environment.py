"""The recorded environment holds plain values and nothing personal."""

import getpass
import json
import platform

import torch

from kd.system.environment import environment


def test_the_environment_names_versions_and_device():
    found = environment(torch.device("cpu"), 2)
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert (found["device"], found["processes"], found["threads"]) == ("cpu", 2, torch.get_num_threads())
    assert json.loads(json.dumps(found)) == found


def test_the_environment_holds_no_host_or_user_name():
    text = json.dumps(environment(torch.device("cpu")))
    assert platform.node() not in text
    assert f"/{getpass.getuser()}" not in text
