from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from odediff import pictures


@pytest.fixture
def texts(monkeypatch):
    """The boxes of what is written in the next picture, and that of the picture, as the renderer measures them."""
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))

    def measure():
        canvas = FigureCanvasAgg(drawn[0])
        canvas.draw()
        written = [one for one in drawn[0].findobj(Text) if one.get_text()]
        return {one.get_text(): one.get_window_extent(canvas.renderer) for one in written}, drawn[0].bbox

    return measure


@pytest.mark.parametrize("samples", [1, 2, 8])
def test_a_table_of_pictures_is_as_wide_as_its_texts(texts, samples):
    title = "One noise, one ODE, and a title that is wider than the pictures below it"
    heading = "{} calls each way, rms error 1.2e-01"
    cells = [[np.ones((28, 29 * samples - 1))] * 3] * 2
    notes = [[f"rms error {i}{j}, 100% classified as asked" for j in range(3)] for i in range(2)]
    columns = [heading.format(nfe) for nfe in (10, 20, 40)]
    notes[1][2] = ""
    pictures.labelled_grid(Path("unused"), cells, ["image", "Asynchronous leapfrog, 4"], columns, title, notes, 0.5)
    found, whole = texts()
    written = (title, "image", "Asynchronous leapfrog, 4", *columns, *notes[0], *notes[1][:2])
    boxes = {text: found[text] for text in written}
    for name, box in boxes.items():
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1, name
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert not a.overlaps(b), (one, other)
