"""Options about masks that are invalid, or contradict each other, are refused in one line."""

import pytest

from kd.data import Folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_index": 65536}, "ignore_index must be a whole number, from 0 to 65535, but got 65536"),
        ({"ignore_values": [0.5]}, r"ignore_values must be whole numbers from 0 to 65535, but got \[0.5\]"),
        ({"ignore_values": "0,255"}, "ignore_values must be a list, but got '0,255'"),
        ({"ignore_index": 1}, r"ignore_index 1 is the value of foreground.* as in 'data.mask_values=\[0,2\]"),
        ({"classes": 3, "ignore_values": [0, 255]}, r"ignore_values 0 is the value of class_0.*=\[1,2,3\]"),
        ({"mask_values": [[0, 1], [1]]}, "mask_values must be 2 different values"),
        ({"mask_values": [[0, 1], []]}, "mask_values must be whole numbers"),
        ({"mask_values": [0, [1, 255]], "ignore_index": 255}, "ignore_index 255 must not be one of mask_values"),
        ({"mask_threshold": 0}, "mask_threshold must be a whole number, from 1 to 65535, but got 0"),
        ({"mask_threshold": True}, "mask_threshold must be a whole number, from 1 to 65535, but got True"),
        ({"classes": 3, "mask_threshold": 9}, "there are 3 classes: set data.classes=1 or data.mask_threshold=null"),
        (
            {"mask_values": [0, 255], "mask_threshold": 128},
            r"mask_threshold=128 and data.mask_values=\[0,255\] contradict each other: set data.mask_threshold=null or",
        ),
        ({"mask_colours": ["#000000", "#ffffff"], "mask_threshold": 9}, "contradict each other"),
        ({"mask_colours": ["#000000", "#ffffff"], "mask_values": [0, 1]}, "contradict each other"),
        ({"mask_colours": ["#000000", "#ffffff"], "ignore_index": 255}, "ignore_index=255 and data.mask_colours="),
        ({"mask_colours": ["#000000", "#fff"]}, r"mask_colours must be colours, each \[red,green,blue\] from 0 to 255"),
        ({"mask_colours": ["#000000"]}, "mask_colours must be 2 different colours"),
        ({"mask_colours": ["#000000", [0, 0, 0]]}, "mask_colours must be 2 different colours"),
        ({"mask_colours": [[0, 0, 256], [0, 0, 0]]}, "mask_colours must be colours"),
        ({"ignore_colours": [[0, 0, 1]]}, "ignore_colours=.* needs the colours of the classes, data.mask_colours"),
        ({"mask_colours": ["#000000", "#ffffff"], "ignore_colours": ["#000000"]}, "which is background in data.mask_c"),
    ],
)  # fmt: skip
def test_impossible_and_contradictory_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Folder("x", **options)
    assert "\n" not in str(caught.value)
