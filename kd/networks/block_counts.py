"""The number of blocks of common encoders.

`kd preview` prints the whole plan of a run, which depends on the number of encoder blocks; counting them means building
the encoder, which takes seconds for the imports alone. This table needs no imports. Training never reads it, and a test
compares every entry with `kd.networks.partition`; an encoder that is missing works too, with a slower preview.

The counts are for depth 5 and output stride 32, so for the architectures listed here, not for those that use part of
the encoder (PSPNet) or dilate it (DeepLab, PAN).
"""

from kd.errors import ConfigError

FULL_DEPTH = {"unet", "unetplusplus", "manet", "linknet", "fpn", "upernet", "segformer"}

_NAMES = {
    4: """
        mit_b0 mit_b1 mit_b2 mit_b3 mit_b4 mit_b5
        tu-convnext_atto tu-convnext_tiny tu-convnext_small tu-swin_tiny_patch4_window7_224 tu-pvt_v2_b0
    """,
    5: """
        resnet18 resnet34 resnet50 resnet101 resnet152
        resnext50_32x4d resnext101_32x4d
        se_resnet50 se_resnext50_32x4d se_resnext101_32x4d
        timm-skresnet18 timm-skresnet34
        densenet121 densenet161 densenet201
        dpn68
        vgg11 vgg13 vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn
        mobileone_s0 mobileone_s1 mobileone_s2 mobileone_s3 mobileone_s4
        inceptionv4 xception
        tu-resnet18 tu-resnet34 tu-resnet50 tu-regnety_002 tu-regnety_008 tu-regnety_016
        tu-rexnet_100 tu-ghostnet_100
    """,
    6: """
        inceptionresnetv2
        tu-tf_efficientnetv2_s tu-mobilenetv4_conv_small tu-hrnet_w18_small tu-mobilenetv3_small_050
    """,
    7: """
        efficientnet-b0 efficientnet-b1 efficientnet-b2 efficientnet-b3
        efficientnet-b4 efficientnet-b5 efficientnet-b6 efficientnet-b7
        timm-efficientnet-b0 timm-efficientnet-b1 timm-efficientnet-b2 timm-efficientnet-b3 timm-efficientnet-b4
        timm-tf_efficientnet_lite0 timm-tf_efficientnet_lite1
        mobilenet_v2 tu-mobilenetv2_100 tu-mobilenetv3_small_100 tu-mobilenetv3_large_100
        tu-efficientnet_b0 tu-efficientnet_b1 tu-efficientnet_b2 tu-efficientnet_b3
        tu-tf_efficientnet_lite0 tu-tf_efficientnet_lite1 tu-tf_efficientnet_lite2
    """,
}

BLOCK_COUNTS: dict[str, int] = {name: count for count, names in _NAMES.items() for name in names.split()}

#: The side in pixels of the only images that an encoder of the table takes; the others take any multiple of 32.
FIXED_SIDES = {"tu-swin_tiny_patch4_window7_224": 224}


def is_known(arch: str, encoder: str) -> bool:
    """Whether the table covers a network: architectures that run the encoder to its full depth at its own strides."""
    return arch.lower() in FULL_DEPTH and encoder in BLOCK_COUNTS


def size_refusal(key: str, encoder: str, image_size: tuple[int, int], sides: tuple[int, ...]) -> ConfigError:
    """The error for a network that takes squares of these `sides` instead."""
    (height, width), alone = image_size, " alone" if len(sides) == 1 else ""
    squares = " or ".join(f"{side}x{side}" for side in sides)
    return ConfigError(
        f"{key}.encoder={encoder} does not take data.image_size=[{height},{width}]: it takes {squares}{alone}; set "
        f"'data.image_size=[{sides[0]},{sides[0]}]', or choose an encoder that takes any size, such as "
        "tu-convnext_tiny, mit_b0 or resnet18",
        page="networks",
    )
