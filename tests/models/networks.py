"""Small networks of timm and torchvision, of each kind of block, with a drop-path rate."""

from functools import partial

import timm
import torchvision
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

RATE = 0.5


def of_timm(arch, **options):
    return partial(timm.create_model, arch, num_classes=5, drop_path_rate=RATE, **options)


def of_torchvision(kind, *args, **options):
    return partial(kind, *args, num_classes=5, stochastic_depth_prob=RATE, **options)


VIT = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
FOUR = {"depths": (1, 1, 2, 1), "dims": (8, 8, 16, 16)}
SWIN = ([4, 4], 8, [1, 1], [1, 2], [2, 2])  # patch, width, depths, heads, window
WITH_DROP_PATH = {  # made by a call; the images' size is 32 or what stands behind it
    "vit": (of_timm("vit_tiny_patch16_224", **VIT), 32),
    "vit with layer scale": (of_timm("deit3_small_patch16_224", **VIT), 32),
    "eva": (of_timm("eva02_tiny_patch14_224", **VIT), 32),
    "cait": (of_timm("cait_xxs24_224", **VIT), 32),
    "mixer": (
        partial(
            timm.models.mlp_mixer.MlpMixer,
            num_classes=5,
            img_size=32,
            patch_size=8,
            num_blocks=2,
            embed_dim=16,
            drop_path_rate=RATE,
        ),
        32,
    ),
    "convnext": (of_timm("convnext_atto", **FOUR), 32),
    "swin": (
        of_timm(
            "swin_tiny_patch4_window7_224",
            img_size=32,
            window_size=4,
            embed_dim=8,
            depths=(2, 2),
            num_heads=(1, 2),
        ),
        32,
    ),
    "resnet": (of_timm("resnet18", layers=(1, 1, 2, 1), channels=(8, 8, 16, 16), stem_width=8), 32),
    "bottleneck": (
        of_timm("resnet50", layers=(1, 1, 2, 1), channels=(8, 8, 16, 16), stem_width=8),
        32,
    ),
    "regnet": (of_timm("regnety_002"), 32),
    "efficientnet": (of_timm("mobilenetv3_small_050"), 32),
    "poolformer": (
        partial(
            timm.models.metaformer.MetaFormer,
            num_classes=5,
            depths=(1, 1, 1, 1),
            dims=(8, 8, 16, 16),
            drop_path_rate=RATE,
        ),
        32,
    ),
    "maxvit": (of_timm("maxvit_pico_rw_256", img_size=64, depths=(1, 1, 1, 1)), 64),
    "torchvision convnext": (
        of_torchvision(ConvNeXt, [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 2)]),
        32,
    ),
    "torchvision swin": (of_torchvision(SwinTransformer, *SWIN), 32),
    "torchvision swin v2": (
        of_torchvision(
            SwinTransformer,
            *SWIN,
            block=SwinTransformerBlockV2,
            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
        ),
        32,
    ),
    "torchvision efficientnet": (
        of_torchvision(EfficientNet, [MBConvConfig(6, 3, 1, 32, 8, 4, 1, 1)], 0.1),
        32,
    ),
    "torchvision maxvit": (
        of_torchvision(MaxVit, (64, 64), 8, 2, [8, 16], [1, 1], 8),
        64,
    ),
}
WITHOUT = {
    "torchvision resnet": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=5
        ),
        32,
    ),
    "torchvision resnext": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], 5, groups=2, width_per_group=8
        ),
        32,
    ),
    "torchvision vit": (partial(VisionTransformer, 32, 8, 2, 2, 16, 32, num_classes=5), 32),
    "torchvision regnet": (partial(torchvision.models.regnet_y_400mf, num_classes=5), 32),
    "timm resnet without": (
        partial(timm.create_model, "resnet18", num_classes=5, layers=(1, 1, 1, 1)),
        32,
    ),
}
