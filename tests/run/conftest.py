"""A picture of a run, drawn and checked as a file."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from kd.run import plots, predictions


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw with a function of kd.run.plots or kd.run.predictions: checks the file, returns the figure."""
    figures, save = [], plots.save
    for module in (plots, predictions):
        monkeypatch.setattr(module, "save", lambda figure, path: (figures.append(figure), save(figure, path)))

    def draw(function, *args, **more):
        path = tmp_path / "pictures" / "picture.png"
        function(*args, path, **more)
        with Image.open(path) as picture:
            picture.verify()
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) >= 64
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10  # something is drawn
        assert [file.name for file in path.parent.iterdir()] == ["picture.png"]
        assert plt.get_fignums() == []
        return figures[-1]

    yield draw
    plt.close("all")
