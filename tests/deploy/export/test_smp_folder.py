"""smp's folder loads in the two lines of its README, without this package."""

import numpy as np
import torch
from exported import check_of
from program import run_alone


def test_the_folder_has_the_files_of_smp_and_a_readme(exported):
    names = sorted(path.name for path in (exported[0] / "student_smp").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def test_the_folder_loads_in_the_two_lines_of_its_readme(exported, tiny, tmp_path):
    folder, images = exported[0] / "student_smp", check_of(tiny).batches[0]
    readme = (folder / "README.md").read_text()
    lines = readme.split("```python\n")[1].split("```")[0].replace("path/of/this/folder", str(folder))
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import numpy as np, torch, segmentation_models_pytorch as smp\n"
        f"images = torch.from_numpy(np.load({str(tmp_path / 'images.npy')!r}))\n"
        f"{lines}\n"
        f"np.save({str(tmp_path / 'logits.npy')!r}, logits.detach().numpy())\n"
    )
    run_alone(code, tmp_path)
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "logits.npy")), tiny(images), atol=1e-4, rtol=1e-4)
